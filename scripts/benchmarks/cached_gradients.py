"""How close the student's gradient from a cached teacher's k likeliest tokens comes to that from its whole distribution.

    python scripts/benchmarks/cached_gradients.py --teacher runs/study/start/sft --student runs/study/d2d --data runs/study/start/world/sft
    python scripts/benchmarks/cached_gradients.py --random

Log-probabilities are rounded as ``mmalign cache-teacher`` stores them by default, and the loss is ``mmalign train mimic``'s. Of each batch
the gradients by all trained weights (the vision tower is frozen) are compared: their cosine, and the length of their difference relative
to the whole one's. With ``--random``, a random model of 32,000 tokens whose head makes its distributions peaked teaches a copy of itself
with noise on all weights. With ``--write``, the table goes into docs/distillation.md.
"""

import argparse
import copy
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from workload import ENVIRONMENT, build_model, build_pairs, write_section

from mmalign.data.datasets import load_rows
from mmalign.data.encode import encode_chat
from mmalign.data.rows import read_chat
from mmalign.data.vocabulary import count_shared_tokens
from mmalign.engine.batch import collate_prompts
from mmalign.engine.distillation import TeacherStates, TopTokens, compute_student_output, compute_teacher_states, head_size
from mmalign.engine.divergence import Divergence
from mmalign.engine.logps import unwrap
from mmalign.engine.teacher_cache import find_top_tokens
from mmalign.models.adapters import freeze_parts
from mmalign.models.load import load_mllm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distillation.md"
# Logits N(0, 6^2) over 32,000 tokens: a nat or two. The noise is this part of each weight's spread.
HEAD_SPREAD, NOISE = 6.0, 0.05


class Setting(NamedTuple):
    """Who teaches whom, on what."""

    teacher: Any
    student: Any
    batches: list[dict[str, Any]]
    vocabulary: int


class Closeness(NamedTuple):
    """A cached gradient beside the live one, of one batch."""

    outside: float
    """The teacher's mass outside its k likeliest tokens, mean over tokens."""
    divergence: float
    """Cached over live."""
    cosine: float
    error: float


def load_trained(options: argparse.Namespace) -> Setting:
    """Models and chats from disk."""
    (teacher, taught), (student, processor) = (load_mllm(str(source), dtype="float32") for source in (options.teacher, options.student))
    size = count_shared_tokens(processor.tokenizer, taught.tokenizer, student_size=head_size(student), teacher_size=head_size(teacher))
    rows = load_rows(options.data).select(range(options.batches * options.batch_size))
    # Padding rows of the head are left out of a cache, and so here.
    return Setting(teacher, student, collate(processor, rows, options.batch_size), min(size, len(taught.tokenizer)))


def build_random(options: argparse.Namespace) -> Setting:
    """A random teacher with a head of its own, and a student that is near to it."""
    teacher, processor = load_mllm(str(build_model("v32k", options.work / "v32k")), dtype="float32")
    torch.manual_seed(0)
    head: Any = unwrap(teacher).get_output_embeddings()
    # No longer the embedding's, which would make every token predict itself.
    head.weight = nn.Parameter(torch.randn(head.weight.shape) * HEAD_SPREAD / head.in_features**0.5)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * NOISE)
    pairs = build_pairs(options.batches * options.batch_size)
    chats = pairs.map(lambda row: {"messages": row["prompt"] + row["chosen"]}, remove_columns=["prompt", "chosen", "rejected"])
    return Setting(teacher, student, collate(processor, chats, options.batch_size), head_size(teacher))


def collate(processor: Any, rows: Dataset, size: int) -> list[dict[str, Any]]:
    """Batches of conversations."""
    encoded = [encode_chat(processor, read_chat(raw, index=i)) for i, raw in enumerate(rows)]
    pad = processor.tokenizer.pad_token_id
    return [collate_prompts(encoded[i : i + size], pad_token_id=pad) for i in range(0, len(encoded), size)]


def gradient(setting: Setting, batch: dict[str, Any], told: TeacherStates | TopTokens, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Divergence by token, and the gradient of its mean by all trained weights, one long vector."""
    setting.student.zero_grad()
    values = compute_student_output(setting.student, batch, told, kind, vocabulary=setting.vocabulary).divergence
    values.mean().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in setting.student.parameters() if p.grad is not None])


def store(top: TopTokens) -> TopTokens:
    """What is read back from float16 columns."""
    return TopTokens(top.ids, top.logps.clamp_min(torch.finfo(torch.float16).min).half().float())


def compare(setting: Setting, top_ks: list[int], kind: Divergence) -> tuple[dict[int, list[Closeness]], dict[str, float]]:
    """Measure every k on every batch; and say how peaked the teacher is and how far off the student."""
    found: dict[int, list[Closeness]] = {k: [] for k in top_ks}
    entropies, divergences = [], []
    for batch in setting.batches:
        states = compute_teacher_states(setting.teacher, batch)
        values, live = gradient(setting, batch, states, kind)
        weight, bias = states.head
        logits = nn.functional.linear(states.hidden, weight, bias)[:, : setting.vocabulary]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().mean().item())
        divergences.append(values.mean().item())
        for k in top_ks:
            top = store(find_top_tokens(states, k, vocabulary=setting.vocabulary))
            cached, own = gradient(setting, batch, top, kind)
            found[k].append(
                Closeness(
                    top.logps[:, -1].exp().mean().item(),
                    (cached.mean() / values.mean()).item(),
                    nn.functional.cosine_similarity(own.double(), live.double(), dim=0).item(),
                    ((own - live).norm() / live.norm()).item(),
                )
            )
    return found, {"entropy": statistics.mean(entropies), "divergence": statistics.mean(divergences)}


def table(found: dict[int, list[Closeness]]) -> str:
    """Means over batches, and the worst batch."""
    lines = ["| k | teacher's mass outside | divergence / live | cosine | lowest | relative error | highest |", "|---:|" + "---:|" * 6]
    for k, values in found.items():
        outside, divergence, cosine, error = (statistics.mean(column) for column in zip(*values, strict=True))
        lowest, highest = min(value.cosine for value in values), max(value.error for value in values)
        lines.append(f"| {k} | {outside:.2%} | {divergence:.4f} | {cosine:.5f} | {lowest:.5f} | {_percent(error)} | {_percent(highest)} |")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.01 else f"{value:.3%}"


def main() -> None:
    """Compare, print, and write on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="a trained model")
    parser.add_argument("--student", type=Path)
    parser.add_argument("--data", type=Path, help="chats")
    parser.add_argument("--random", action="store_true", help="random models of 32,000 tokens instead of these three")
    parser.add_argument("--top-k", type=int, nargs="+", default=[8, 16, 64, 256])
    parser.add_argument("--divergence", choices=["forward", "reverse", "jensen-shannon"], default="forward")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder of the random model")
    parser.add_argument("--write", action="store_true", help="put the table into docs/distillation.md")
    options = parser.parse_args()
    if not options.random and None in (options.teacher, options.student, options.data):
        parser.error("--teacher, --student and --data are needed, or --random")
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    setting = build_random(options) if options.random else load_trained(options)
    over = [k for k in options.top_k if not 0 < k < setting.vocabulary]
    if over:
        parser.error(f"--top-k {over[0]} of {setting.vocabulary} tokens; expected 1 to {setting.vocabulary - 1}")
    freeze_parts(setting.student, ["vision_tower"])
    found, about = compare(setting, options.top_k, Divergence(options.divergence))
    name = "random weights" if options.random else options.student.name
    words = shlex.join(word for word in sys.argv[1:] if word != "--write")
    tokens = sum(len(batch["layout"]["target"]) for batch in setting.batches)
    text = (
        f"### Gradient by k, {name}, {options.divergence}\n\n```\npython scripts/benchmarks/cached_gradients.py {words}\n```\n\n"
        f"{setting.vocabulary:,} tokens; the teacher's entropy is {about['entropy']:.2f} nats a token, the divergence "
        f"{about['divergence']:.3f}; {tokens:,} response tokens in {len(setting.batches)} batches.\n\n{table(found)}\n"
    )
    print(text)
    if options.write:
        write_section(text, page=PAGE)


if __name__ == "__main__":
    main()
