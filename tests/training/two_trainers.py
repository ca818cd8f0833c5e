"""Run by two processes: the trainer under DDP and FSDP2 takes the steps of one process with the whole batch.

The test process calls ``run_alone`` for what is expected.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset, List
from datasets import Image as ImageFeature
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageTextToText, PreTrainedModel

from mmalign.cli import main as main_command
from mmalign.data.datasets import load_rows
from mmalign.methods.groups import GroupLists
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.online import OnlineMethod
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.methods.teachers import CachedTeacher, LiveTeacher
from mmalign.models.references import Reference
from mmalign.options.methods import MimicLossOptions, OnlineLossOptions, PairLossOptions
from mmalign.options.training import RouterOptions, TrainerOptions
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback, verify_checkpoint
from mmalign.training.router import RouterLosses
from mmalign.training.trainer import MethodTrainer
from tests.data_files import chat_rows, save_rows
from tests.methods.test_online import WordReward, questions
from tests.methods.test_router import build_sparse
from tests.tiny_models import build_tiny_llava
from tests.training.sharded_trainer import ShardedTrainer
from tests.training.test_trainer import chat_dataset, losses, pair_dataset

CASES = (
    "sft", "some text", "uneven", "preference", "teacher", "moe", "mimic", "mimic cached", "mimic sparse", "mimic balance",
    "mimic on-policy", "online",
)  # fmt: skip
# Eight rows in two steps of four; the uneven cases have seven, and their last batch is filled with the epoch's first row.
GLOBAL_BATCH = 4
UNEVEN = ("uneven", "mimic", "mimic cached", "mimic sparse", "mimic balance", "mimic on-policy")
# What needs whole weights is not sharded.
SHARDED = tuple(case for case in CASES if case not in ("mimic on-policy", "online"))
# The layers to wrap are the model class's own list, as in scripts/accelerate/fsdp2_8gpu.yaml.
FSDP = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "FULL_STATE_DICT",
}


def build(case: str, folder: Path, *, batch_size: int, accumulation: int = 1, filled: bool = False, sharded: bool = False) -> MethodTrainer:
    """Make a case's trainer; ``folder.parent`` holds what ``cache_teacher`` wrote."""
    model, processor = build_sparse() if case in ("moe", "mimic sparse", "mimic balance") else build_tiny_llava(scale=1.0)
    # The second process's rows have no images.
    dataset = chat_dataset(without_images=(2, 3, 6, 7) if case == "some text" else ())
    method: Any = SupervisedMethod(processor)
    router = None
    if case in ("preference", "teacher"):
        other = build_tiny_llava(scale=1.1, seed=1)[0] if case == "teacher" else None
        config = PairLossOptions(objective=["kto_pair"]) if case == "teacher" else PairLossOptions()
        method = PreferenceMethod(processor, config, reference=Reference(model, kind="copy", model=other))
        dataset = method.prepare(pair_dataset())
    elif case == "online":
        own = OnlineLossOptions(reward="answers", objective=["disco"], correct=4.0, samples=4, max_new_tokens=6)
        method = OnlineMethod(processor, own, learner=GroupLists(processor, own), reward=WordReward(counts=True))
        dataset = Dataset.from_list(questions(8)).cast_column("images", List(ImageFeature(decode=False)))
    elif case == "mimic cached":
        dataset = load_rows(folder.parent / "taught" / "data")
        method = MimicMethod(processor, MimicLossOptions(), teacher=CachedTeacher(model, fingerprint=None))
        method.prepare(dataset)
    elif case.startswith("mimic"):
        other, _ = build_teacher()
        teacher = LiveTeacher(Reference(model, kind="copy", model=other), processor, student=model, student_processor=processor)
        sampled = {"on_policy": 0.5, "sample_tokens": 6} if case == "mimic on-policy" else {}
        method = MimicMethod(processor, MimicLossOptions(ce_weight=0.0 if case == "mimic" else 1.0, **sampled), teacher=teacher)
    if case in ("moe", "mimic sparse", "mimic balance"):
        # Balance is of a micro-batch's tokens: only where those are the same is it compared.
        router = RouterLosses(RouterOptions(balance_weight=None if case == "mimic balance" else 0.0))
    if case in UNEVEN:
        rows = [dataset[i] for i in range(7)]
        dataset = Dataset.from_list([*rows, rows[0]] if filled else rows, features=dataset.features)
    # Parts that get no gradient have no optimiser state, which FSDP's checkpoints don't take.
    model.model.vision_tower.requires_grad_(False)
    trainer_options = {"train_sampling_strategy": "sequential", "use_cpu": True}
    trainer_options |= {"fsdp": True, "fsdp_config": FSDP} if sharded else {}
    config = TrainerOptions(
        learning_rate=1e-3,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=4,
        logging_steps=1,
        save_steps=4,
        schedule="constant",
        gradient_checkpointing=case == "some text",
        trainer=trainer_options,
    )
    arguments = build_training_arguments(config, output_dir=folder)
    kind = ShardedTrainer if sharded else MethodTrainer
    return kind(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=processor,
        method=method,
        router=router,
        projector_learning_rate=3e-3 if case == "sft" else None,
        callbacks=[ManifestCallback()],
    )


def build_teacher() -> tuple[PreTrainedModel, Any]:
    """Another dense model, surer than the students."""
    return build_tiny_llava(scale=4.0, seed=1)


def cache_teacher(folder: Path) -> None:
    """Keep what the teacher says of the chats."""
    for part in build_teacher():
        part.save_pretrained(folder / "teacher")
    chats = save_rows(folder / "chats.parquet", chat_rows(8))
    assert main_command(["cache-teacher", str(chats), "--model", str(folder / "teacher"), "--out", str(folder / "taught")]) == 0


def run_alone(folder: Path) -> None:
    """Train every case in this process, and keep losses and weights."""
    cache_teacher(folder)
    for case in CASES:
        # Two processes have two micro-batches per step, and so has one that accumulates.
        parts = 2 if case == "mimic balance" else 1
        trainer = build(case, folder / case, batch_size=GLOBAL_BATCH // parts, accumulation=parts, filled=True)
        trainer.train()
        (folder / f"{case}.json").write_text(json.dumps([losses(trainer), trainer.state.log_history[0]]))
        trainer.model.save_pretrained(folder / f"{case}-end")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for sharded in (False, True):
        for case in SHARDED if sharded else CASES:
            out = folder / f"{case}-{sharded}"
            trainer = build(case, out, batch_size=GLOBAL_BATCH // 2, sharded=sharded)
            trainer.train()
            assert trainer.args.world_size == 2
            if isinstance(trainer, ShardedTrainer):
                assert trainer.is_sharded()
            else:
                assert isinstance(trainer.model_wrapped, DistributedDataParallel)
            expected, log = json.loads((folder / f"{case}.json").read_text())
            got = losses(trainer)
            assert all(abs(a - b) <= 5e-5 * abs(b) for a, b in zip(got, expected, strict=True)), (case, sharded, got, expected)
            for key, value in log.items():
                # Those two are of a micro-batch's own tokens, and so not the same for other splits.
                if ("/" in key or key == "grad_norm") and (case == "mimic balance" or key not in ("router/balance", "router/dead_experts")):
                    found = trainer.state.log_history[0][key]
                    assert abs(found - value) < 1e-3 * max(1, abs(value)), (case, sharded, key, found, value)
            if case == "mimic balance":
                # Two layers that are at best in balance, at the default weight, and the same distillation before the first step.
                plain = json.loads((folder / "mimic sparse.json").read_text())[0]
                assert 0.02 * 0.9 < got[0] - plain[0] < 0.02 * 4
            weights = trainer.gather_weights()
            if dist.get_rank() == 0:
                # As runs.training.save_run does it.
                trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out / "end", state_dict=weights)
                check_end(out, folder / f"{case}-end")
                print(f"{'fsdp2' if sharded else 'ddp'} {case}: losses, metrics and saved weights equal", flush=True)
            dist.barrier()
    dist.destroy_process_group()


def check_end(out: Path, expected: Path) -> None:
    """Plain transformers loads what was saved, and it is what one process came to; so is the checkpoint, which verifies."""
    assert verify_checkpoint(out / "checkpoint-4") is None
    # A tied head is no weight of its own, gathered from parts or not.
    assert all("lm_head.weight" not in load_file(out / name / "model.safetensors") for name in ("end", "checkpoint-4"))
    wanted = dict(AutoModelForImageTextToText.from_pretrained(expected).named_parameters())
    for folder in (out / "end", out / "checkpoint-4"):
        got, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
        for name, parameter in got.named_parameters():
            # Adam divides by the gradient's size: where that is all rounding, a step of 1e-3 can go either way.
            assert (parameter - wanted[name]).norm() < 1e-3 * wanted[name].norm() + 1e-3, name


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
