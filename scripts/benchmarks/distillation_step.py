"""Time and memory of one distillation step, against full logits and TRL; and of a sparse student against its dense one.

    pip install -e '.[benchmark]'
    python scripts/benchmarks/distillation_step.py --model v32k --write
    python scripts/benchmarks/distillation_step.py --model v32k --sparse --write

A step is forward passes of both models, backward pass and optimiser. All arms train the same student on the same batches, in turn in one
process, and before any step their losses and gradients must agree. The student's language model has half the teacher's width and half of
its layers; the vision towers are frozen. Process CPU time is compared, not wall time.

TRL's two trainers for multimodal models are run by their own ``compute_loss`` on these tokens: DistillationTrainer would replace the given
answers by the student's own, and what generation costs is no matter of this table; GOLD takes given answers (lmbda 0).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import (
    ENVIRONMENT,
    build_model,
    build_pairs,
    make_parser,
    prepare_process,
    report,
    resident,
    runnable,
    start_peak,
    versions,
)
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.methods.mimic import MimicMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.methods.teachers import LiveTeacher
from mmalign.models.adapters import freeze_parts
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.models.upcycle import upcycle
from mmalign.options.methods import MimicLossOptions
from mmalign.options.models import ExpertsOptions
from mmalign.options.training import RouterOptions
from mmalign.tables import markdown_table
from mmalign.training.method import Method
from mmalign.training.router import RouterLosses

ARMS = ("ours", "full logits", "TRL DistillationTrainer", "TRL GOLD")
SPARSE_ARMS = ("dense", "sparse grouped_mm", "sparse eager")
LossFunction = Callable[[dict[str, Any]], Tensor]


@dataclass
class Arm:
    """One way to make a step, and what was measured of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: LossFunction
    compared: LossFunction
    """What must be the same in all arms: the loss, without router losses."""
    seconds: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)

    def step(self, batch: dict[str, Any]) -> None:
        """Train on a batch; measure CPU seconds, and the peak of memory above weights and optimiser states in MiB."""
        self.optimizer.zero_grad()
        resting, start = start_peak(), time.process_time()
        self.loss(batch).backward()
        self.optimizer.step()
        self.seconds.append(time.process_time() - start)
        self.added.append(resident("VmHWM") - resting)


def build_chats(num_rows: int) -> list[dict[str, Any]]:
    """The pairs' prompts with their chosen answers."""
    return [{"images": row["images"], "messages": row["prompt"] + row["chosen"]} for row in build_pairs(num_rows)]


def mean_loss(method: Method, model: nn.Module, router: RouterLosses | None = None) -> LossFunction:
    """A method's loss over its items, as the trainer divides it."""
    compute = method.compute if router is None else partial(router.compute, method)
    return lambda batch: compute(model, batch).loss_sum / method.num_items(batch)


def plain_inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the models' own forward takes."""
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "pixel_values": batch["images"]["pixel_values"]}


def make_labels(batch: dict[str, Any]) -> Tensor:
    """Ids of the response tokens in their places, -100 elsewhere."""
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    labels[batch["layout"]["index"] + 1] = batch["layout"]["target"]
    return labels.view_as(batch["input_ids"])


def full_logits_loss(student: nn.Module, teacher: nn.Module) -> LossFunction:
    """Logits of both models at all positions, torch's kl_div on all of them, and then the mask."""

    def loss(batch: dict[str, Any]) -> Tensor:
        inputs = plain_inputs(batch)
        with torch.no_grad():
            log_p = teacher(**inputs, use_cache=False).logits.float().log_softmax(-1)
        log_q = student(**inputs, use_cache=False).logits.float().log_softmax(-1)
        divergence = F.kl_div(log_q[:, :-1], log_p[:, :-1], log_target=True, reduction="none").sum(-1)
        mask = make_labels(batch)[:, 1:] != -100
        return divergence[mask].sum() / mask.sum()

    return loss


def trl_options(folder: str) -> dict[str, Any]:
    """Options that both trainers share: forward KL in float32 on the CPU, without recomputation."""
    return {
        "output_dir": f"{folder}/out", "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none",
        "beta": 0.0, "temperature": 1.0, "per_device_train_batch_size": 1,
    }  # fmt: skip


def trl_distillation_loss(student: Any, teacher: Any, processor: Any, folder: str) -> LossFunction:
    """TRL's DistillationTrainer on given answers: prompts on the left of a batch, answers on its right."""
    from trl import DistillationConfig, DistillationTrainer

    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, args=DistillationConfig(**trl_options(folder)),
        train_dataset=build_pairs(1).select_columns(["images", "prompt"]), processing_class=processor,
    )  # fmt: skip

    def loss(batch: dict[str, Any]) -> Tensor:
        ids, labels = batch["input_ids"], make_labels(batch)
        if len(ids) != 1:
            raise ValueError(f"the batch has {len(ids)} rows; the arm TRL DistillationTrainer is laid out for one: use --batch-size 1")
        places = (labels[0] != -100).nonzero().flatten()
        start, end = int(places[0]), int(places[-1]) + 1
        inputs = {"prompt_ids": ids[:, :start], "completion_ids": ids[:, start:end]}
        inputs |= {"prompt_mask": torch.ones_like(inputs["prompt_ids"]), "completion_mask": (labels[:, start:end] != -100).long()}
        inputs |= {"pixel_values": batch["images"]["pixel_values"], "num_items_in_batch": inputs["completion_mask"].sum().float()}
        return trainer.compute_loss(student, inputs)

    return loss


def trl_gold_loss(student: Any, teacher: Any, processor: Any, folder: str) -> LossFunction:
    """TRL's GOLD trainer with given answers."""
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    trainer = GOLDTrainer(
        model=student, teacher_model=teacher, args=GOLDConfig(**trl_options(folder), lmbda=0.0, max_length=None),
        train_dataset=build_pairs(1).rename_column("chosen", "completion").remove_columns("rejected"), processing_class=processor,
    )  # fmt: skip

    def loss(batch: dict[str, Any]) -> Tensor:
        labels = make_labels(batch)
        return trainer.compute_loss(student, {**plain_inputs(batch), "labels": labels}, num_items_in_batch=(labels != -100).sum())

    return loss


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as the trainer makes it."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)


def build_arms(options: argparse.Namespace) -> tuple[dict[str, Arm], Any]:
    """One student and optimiser for all arms."""
    folders = [str(options.work / options.model), str(options.work / f"{options.model}-student")]
    teacher, _ = load_mllm(str(build_model(options.model, Path(folders[0]))), dtype="float32")
    student, processor = load_mllm(str(build_model(options.model, Path(folders[1]), part=2, seed=1)), dtype="float32")
    freeze_parts(student, ["vision_tower"])
    reference = Reference(student, kind="copy", model=teacher)
    live = LiveTeacher(reference, processor, student=student, student_processor=processor)
    method = MimicMethod(processor, MimicLossOptions(), teacher=live)
    makers: dict[str, Callable[[], LossFunction]] = {
        "ours": lambda: mean_loss(method, student),
        "full logits": lambda: full_logits_loss(student, teacher),
        "TRL DistillationTrainer": lambda: trl_distillation_loss(student, teacher, processor, folders[1]),
        "TRL GOLD": lambda: trl_gold_loss(student, teacher, processor, folders[1]),
    }
    optimizer = build_optimizer(student)
    losses = {name: makers[name]() for name in options.arms}
    student.train()
    return {name: Arm(student, optimizer, loss, loss) for name, loss in losses.items()}, method


def build_sparse_arms(options: argparse.Namespace) -> tuple[dict[str, Arm], Any]:
    """A model and the same with experts: 4, of which a token takes 2, in every second layer."""
    dense, processor = load_mllm(str(build_model(options.model, options.work / options.model)), dtype="float32")
    method = SupervisedMethod(processor)
    sparse = upcycle(dense, ExpertsOptions())
    models = {"dense": dense, "sparse": sparse}
    optimizers = {}
    for name, model in models.items():
        freeze_parts(model, ["vision_tower"])
        optimizers[name] = build_optimizer(model.train())
    router = RouterLosses(RouterOptions())

    def run_experts(kind: str, loss: LossFunction) -> LossFunction:
        def run(batch: dict[str, Any]) -> Tensor:
            sparse.get_decoder().set_experts_implementation(kind)
            return loss(batch)

        return run

    arms = {}
    for name in options.arms:
        if name == "dense":
            arms[name] = Arm(dense, optimizers[name], mean_loss(method, dense), mean_loss(method, dense))
            continue
        kind = name.removeprefix("sparse ")
        loss, compared = (run_experts(kind, mean_loss(method, sparse, added)) for added in (router, None))
        arms[name] = Arm(sparse, optimizers["sparse"], loss, compared)
    return arms, method


def check_arms(arms: dict[str, Arm], batch: dict[str, Any]) -> list[float]:
    """Compare losses before any step, and gradients of the weights that all arms have (experts are other weights).

    Raises:
        ValueError: If they differ.
    """
    losses: list[float] = []
    first: dict[str, Tensor] = {}
    base = next(iter(arms))
    for name, arm in arms.items():
        arm.optimizer.zero_grad()
        loss = arm.compared(batch)
        loss.backward()
        losses.append(loss.item())
        if abs(losses[-1] - losses[0]) > 1e-4 * abs(losses[0]):
            raise ValueError(f"the first loss of {name} is {losses[-1]}, that of {base} {losses[0]}; expected the same")
        found = {key: p.grad.clone() for key, p in arm.model.named_parameters() if p.grad is not None}
        first = first or found
        common = first.keys() & found.keys()
        norm = torch.stack([first[key].norm() for key in common]).norm()
        worst = max(float((found[key] - first[key]).norm() / norm) for key in common)
        if len(common) < len(first) / 2 or worst > 1e-3:
            raise ValueError(f"gradients of {name} differ from those of {base} by {worst:.1e}; {len(common)} of {len(first)} compared")
        arm.optimizer.zero_grad()
    return losses


def measure(arms: dict[str, Arm], batches: Sequence[dict[str, Any]]) -> None:
    """Step all arms in turn on every batch, after a step of each optimiser that isn't counted."""
    for arm in {id(arm.optimizer): arm for arm in arms.values()}.values():
        arm.step(batches[0])  # optimiser states are made
        arm.seconds.clear()
        arm.added.clear()
    for batch in batches:
        for name, arm in arms.items():
            arm.step(batch)
            print(f"{name}: {arm.seconds[-1]:.2f} s, {arm.added[-1]:.0f} MiB", file=sys.stderr, flush=True)


def table(arms: dict[str, Arm]) -> str:
    """Medians over all steps, ranges, and medians of the ratios to the first arm's step on the same batch."""
    base = next(iter(arms))
    rows = []
    for name, arm in arms.items():
        seconds, added = statistics.median(arm.seconds), statistics.median(arm.added)
        spreads = f"{min(arm.seconds):.2f} to {max(arm.seconds):.2f}", f"{min(arm.added):.0f} to {max(arm.added):.0f}"
        times = [own / first for own, first in zip(arm.seconds, arms[base].seconds, strict=True)]
        memory = statistics.median(own / first for own, first in zip(arm.added, arms[base].added, strict=True))
        ratio, ratios = f"{statistics.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}"
        rows.append([name, f"{seconds:.2f}", spreads[0], f"{added:.0f}", spreads[1], ratio, ratios, f"{memory:.2f}"])
    header = ["arm", "CPU s per step", "range", "added MiB", "range", f"time / {base}", "range", f"added / {base}"]
    return markdown_table(header, rows, text=(0, 2, 4, 6))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--sparse", action="store_true", help="compare a sparse student with its dense one, without a teacher")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *SPARSE_ARMS], help="all that can run, if not given")
    options = parser.parse_args()
    known = SPARSE_ARMS if options.sparse else ARMS
    options.arms = options.arms or runnable(known)
    unknown = [arm for arm in options.arms if arm not in known]
    if unknown:
        parser.error(f"{unknown[0]} is no arm {'with' if options.sparse else 'without'} --sparse; expected some of {', '.join(known)}")
    if runnable(options.arms) != options.arms:
        parser.error("TRL is not installed: pip install -e '.[benchmark]', or leave its arms out")
    return options


def main() -> None:
    """Check that the arms agree, then measure them in turn."""
    options = parse()
    os.environ.update(ENVIRONMENT)
    prepare_process()
    arms, method = (build_sparse_arms if options.sparse else build_arms)(options)
    rows = build_chats(options.rounds * options.batch_size)
    batches = [method.collate(rows[i : i + options.batch_size]) for i in range(0, len(rows), options.batch_size)]
    losses = check_arms(arms, batches[0])
    measure(arms, batches)
    lengths = [int(batch["attention_mask"].sum()) for batch in batches], [method.num_items(batch) for batch in batches]
    tokens = f"{statistics.median(lengths[0]):.0f} tokens of which {statistics.median(lengths[1]):.0f} are compared"
    about = f"{options.rounds} steps of each arm in turn, {tokens}; {versions(arms)}. "
    about += f"First losses: {', '.join(f'{loss:.5f}' for loss in losses)}."
    title = f"{'Sparse student' if options.sparse else 'Distillation step'}, {options.model}"
    report(title, about, table(arms), write=options.write)


if __name__ == "__main__":
    main()
