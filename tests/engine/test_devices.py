"""Whether a step and an answer would run on an accelerator: every tensor is on the device of those it meets (tests/pretend_device.py)."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from mmalign.config import parse_options
from mmalign.data.encode import encode_questions
from mmalign.data.messages import Message
from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Decoding, Greedy, Sampling
from mmalign.engine.generation import generate
from mmalign.methods.registry import find_method
from mmalign.options.methods import METHODS
from tests.data_files import chat_rows, save_rows, scored_rows
from tests.pretend_device import CUDA, MPS, DeviceTensor, move, pretending
from tests.tiny_models import build_tiny_llava, random_image

REWARD = "def reward(prompt, answers, row):\n    return [float(len(answer) % 7) for answer in answers]\n"


@pytest.fixture(scope="module")
def rows(tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data that methods train on."""
    folder = tmp_path_factory.mktemp("rows")
    asked = {"score_chosen": 0.8, "score_rejected": 0.2, "visits_chosen": 3, "visits_rejected": 2, "severity": 0.5, "ls_factor": 0.5}
    pairs = [row | asked for row in scored_rows(4, reference=tiny_llava_dir)]
    (folder / "reward.py").write_text(REWARD)
    return {
        "pairs": save_rows(folder / "pairs.parquet", pairs),
        "chats": save_rows(folder / "chats.parquet", chat_rows(4)),
        "prompts": save_rows(folder / "prompts.parquet", [{name: row[name] for name in ("id", "images", "prompt")} for row in pairs]),
        "reward": folder / "reward.py",
    }


STEPS = [
    ("sft", "chats", ""),
    ("sft", "chats", "--row-tokens 64"),
    ("preference", "pairs", "--difficulty-mode paper"),
    ("preference", "pairs", "--reference cached"),
    ("preference", "pairs", "--reference-update ema:0.9"),
    ("preference", "pairs", "--row-tokens 64"),
    ("preference", "pairs", "--lora-rank 4 --train-projector --objective mdpo"),
    ("preference", "pairs", "--sft-weight 1 --objective hsa_dpo mm_dpo ddpo ld_dpo opa tpo_token chip"),
    ("preference", "pairs", "--objective ipo orpo simpo kto_pair dno smpo madpo step_dpo adpo_pair flex_dpo asft"),
    ("mimic", "chats", "--teacher {model} --on-policy 0.5"),
    ("mimic", "chats", "--teacher {model} --visual-share 0.5"),
    ("reward", "pairs", ""),
    ("online", "prompts", "--reward function:{reward}:reward --objective grpo --samples 2"),
]


# Sampling for a group is slow here, and has no number of 64 bits.
@pytest.mark.parametrize(
    ("kind", "data", "words", "device"),
    [(*step, device) for step in STEPS for device in (CUDA, MPS) if device == CUDA or step[0] != "online"],
)
def test_a_step_keeps_to_the_device(
    kind: str, data: str, words: str, device: torch.device, rows: dict[str, Path], tiny_llava_dir: Path, tmp_path: Path
) -> None:
    shared = ["--model", str(tiny_llava_dir), "--data", str(rows[data]), "--out", str(tmp_path / "out")]
    more = words.format(model=tiny_llava_dir, reward=rows["reward"]).split()
    options = parse_options(METHODS[kind].options, [*shared, *more], prog=kind, description="")
    model, _, method = find_method(kind, vars(options)).build(options)
    dataset = method.prepare(method.select(Dataset.from_parquet(str(rows[data]))).dataset)
    checked = [dataset[i] for i in range(len(dataset))]
    with pretending(device):
        move(model)
        method.start(model, checked[: method.start_rows])
        model.train()
        batch = move(method.complete(model, method.collate(checked), step=0))
        output = method.compute(model, batch)
        output.loss_sum.backward()
        assert output.loss_sum.device == device
        assert torch.isfinite(output.loss_sum.cpu())
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad and weight.grad is not None]
    assert gradients
    assert all(isinstance(gradient, DeviceTensor) for gradient in gradients)


@pytest.mark.parametrize("decoding", [Greedy(), Sampling(top_p=0.9, answers=2), Beams(3)], ids=["greedy", "sampling", "beams"])
def test_answers_keep_to_the_device(decoding: Decoding | Beams) -> None:
    model, processor = build_tiny_llava()
    texts = ("What is it?", "Where is it?")
    prompts = [[Message(role="user", content=[{"type": "image"}, {"type": "text", "text": text}])] for text in texts]
    encoded = [encode_questions(processor, images=[random_image(seed)], prompts=prompts) for seed in range(2)]

    def ask() -> list[list[list[list[int]]]]:
        answers = generate(model.eval(), encoded, max_new_tokens=6, pad_token_id=0, decoding=decoding)
        return [[[answer.ids for answer in own] for own in two] for two in answers]

    expected = ask()
    with pretending():
        move(model)
        assert ask() == expected
