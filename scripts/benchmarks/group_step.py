"""Time and memory of one training step on a group of sampled responses to one image, against TRL's GRPOTrainer.

    pip install -e '.[benchmark]'
    python scripts/benchmarks/group_step.py --model small --write

A step is forward pass, backward pass and optimiser on given responses with given rewards and old log-probabilities: what sampling costs
is no matter of this table. All arms train the same model on the same groups with GRPO's clipped objective, in turn in one process, and
before any step their losses and gradients must agree. Process CPU time is compared, not wall time. The vision tower is frozen.

TRL is run by its own ``compute_loss`` on these tokens, a row of image, prompt and response each, as its own generation lays them out. It
runs as shipped (without Triton its head scores every position) and "compact", scoring response positions only, as on CUDA; that one
choice is forced by a patch.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import ENVIRONMENT, build_model, build_pairs, make_parser, prepare_process, report, runnable, versions
from distillation_step import Arm, LossFunction, build_optimizer, check_arms, mean_loss, measure, table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmalign.data.caches import REFERENCE_FINGERPRINT, cache_list
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.methods.listwise import ListwiseMethod
from mmalign.models.adapters import freeze_parts
from mmalign.models.load import load_mllm
from mmalign.options.methods import ListLossOptions

ARMS = ("ours", "TRL compact", "TRL shipped")
OLD = "old"


def build_groups(number: int, size: int) -> list[dict[str, Any]]:
    """Prompts about an image with this many scored responses each, of the pairs' words; ``size`` is even."""
    pairs = list(build_pairs(number * size // 2))
    groups = [pairs[start : start + size // 2] for start in range(0, len(pairs), size // 2)]
    scores = torch.rand(number, size, generator=torch.Generator().manual_seed(0)).tolist()
    return [
        {
            "images": group[0]["images"],
            "prompt": group[0]["prompt"],
            "responses": [pair[side] for pair in group for side in ("chosen", "rejected")],
            "scores": own,
        }
        for group, own in zip(groups, scores, strict=True)
    ]


@torch.no_grad()
def add_old_logps(row: dict[str, Any], model: nn.Module, method: ListwiseMethod) -> dict[str, Any]:
    """What the policy that sampled would have said: this model's log-probabilities, moved so that some ratios are clipped."""
    (encoded,) = method.encode_row(row, index=0)
    batch = collate_prompts([encoded], pad_token_id=method.processor.tokenizer.pad_token_id)
    found = compute_response_logps(model, batch).per_response()
    noise = torch.Generator().manual_seed(0)
    moved = [values + 0.3 * torch.randn(len(values), generator=noise) for values in found]
    return {**row, **cache_list(encoded, moved), REFERENCE_FINGERPRINT: OLD}


def trl_inputs(batch: dict[str, Any], pad: int) -> dict[str, Any]:
    """The group as rows of TRL's: the prompt on the left, responses on the right, filled up; each with the image."""
    layout, scores = batch["layout"], batch["numbers"]["scores"]
    ids = batch["input_ids"][0]
    prompt = ids[layout["segment"][0] == 0]
    responses = [ids[layout["segment"][0] == number] for number in range(1, len(scores) + 1)]
    old = batch["reference"].split([len(response) for response in responses])
    completion = pad_sequence(responses, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(response) for response in responses], batch_first=True)
    prompts = prompt.expand(len(scores), -1)
    pixels: Tensor = batch["images"]["pixel_values"]
    return {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": completion, "completion_mask": mask,
        "advantages": (scores - scores.mean()) / (scores.std() + 1e-4), "old_per_token_logps": pad_sequence(list(old), batch_first=True),
        "pixel_values": pixels.expand(len(scores), *pixels.shape[1:]), "num_images": [1] * len(scores),
    }  # fmt: skip


def trl_loss(model: Any, processor: Any, options: argparse.Namespace, *, compact: bool) -> LossFunction:
    """TRL's GRPOTrainer on given responses."""
    import trl.trainer.utils
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=f"{options.work}/out", per_device_train_batch_size=options.group, num_generations=options.group, loss_type="grpo",
        beta=0.0, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, args=arguments, reward_funcs=lambda completions, **rest: [0.0] * len(completions), processing_class=processor,
        train_dataset=build_pairs(options.group).select_columns(["images", "prompt"]),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1

    def loss(batch: dict[str, Any]) -> Tensor:
        trl.trainer.utils._use_triton = lambda device: compact
        return trainer.compute_loss(model, trl_inputs(batch, processor.tokenizer.pad_token_id))

    return loss


def build_arms(options: argparse.Namespace) -> tuple[dict[str, Arm], ListwiseMethod, nn.Module]:
    """One model and optimiser for all arms; old log-probabilities come from the rows."""
    folder = build_model(options.model, Path(options.work) / options.model)
    model, processor = load_mllm(str(folder), dtype="float32")
    freeze_parts(model, ["vision_tower"])
    method = ListwiseMethod(processor, ListLossOptions(objective=["grpo"]), reference=None, reference_fingerprint=OLD)
    makers: dict[str, Callable[[], LossFunction]] = {
        "ours": lambda: mean_loss(method, model),
        "TRL compact": partial(trl_loss, model, processor, options, compact=True),
        "TRL shipped": partial(trl_loss, model, processor, options, compact=False),
    }
    optimizer = build_optimizer(model)
    losses = {name: makers[name]() for name in options.arms}
    model.train()
    return {name: Arm(model, optimizer, loss, loss) for name, loss in losses.items()}, method, model


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, rounds=3, model="small")
    parser.add_argument("--group", type=int, default=8, help="responses per prompt, an even number")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="all that can run, if not given")
    options = parser.parse_args()
    options.arms = options.arms or runnable(ARMS)
    if options.batch_size != 1 or options.group < 2 or options.group % 2:
        parser.error(f"--batch-size is {options.batch_size} and --group {options.group}; expected one prompt and an even group")
    if runnable(options.arms) != options.arms:
        parser.error("TRL is not installed: pip install -e '.[benchmark]', or leave its arms out")
    return options


def main() -> None:
    """Check that the arms agree, then measure them in turn."""
    options = parse()
    os.environ.update(ENVIRONMENT)
    prepare_process()
    arms, method, model = build_arms(options)
    rows = [add_old_logps(row, model, method) for row in build_groups(options.rounds, options.group)]
    batches = [method.collate([row]) for row in rows]
    losses = check_arms(arms, batches[0])
    measure(arms, batches)
    lengths = [int(batch["attention_mask"].sum()) for batch in batches], [len(batch["layout"]["target"]) for batch in batches]
    tokens = f"shared rows of {statistics.median(lengths[0]):.0f} tokens of which {statistics.median(lengths[1]):.0f} are responses'"
    about = f"{options.rounds} steps of each arm in turn on groups of {options.group}, {tokens}; {versions(arms)}. "
    about += f"First losses: {', '.join(f'{loss:.5f}' for loss in losses)}."
    report(f"A step on a group of responses, {options.model}", about, table(arms), write=options.write)


if __name__ == "__main__":
    main()
