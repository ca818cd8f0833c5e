"""Run by two processes: the trainer under DDP and FSDP2 takes the steps of one process with the whole batch.

The test process calls ``run_alone`` for what is expected. FSDP on a CPU is not offered by accelerate; ``ShardedTrainer`` is for tests.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageTextToText

from mmalign.methods.preference import PreferenceConfig, PreferenceMethod
from mmalign.methods.router import RoutedMethod, RouterConfig
from mmalign.methods.sft import SupervisedMethod
from mmalign.models.references import Reference
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback, verify_checkpoint
from mmalign.training.config import TrainConfig
from mmalign.training.trainer import MethodTrainer
from tests.methods.test_router import build_sparse
from tests.tiny_models import build_tiny_llava
from tests.training.test_trainer import chat_dataset, losses, pair_dataset

CASES = ("sft", "uneven", "preference", "moe")
# Eight rows in two steps of four; "uneven" has seven, and its last batch is filled with the epoch's first row.
GLOBAL_BATCH = 4
# The layers to wrap are the model class's own list, as in scripts/accelerate/fsdp2_8gpu.yaml.
FSDP = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "FULL_STATE_DICT",
}


class ShardedTrainer(MethodTrainer):
    """FSDP2 over gloo: on a CPU accelerate falls back to DDP without a word, so the state is told after it was made."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        state._shared_state.update(fsdp_plugin=plugin, distributed_type=DistributedType.FSDP)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


def build(case: str, folder: Path, *, batch_size: int, filled: bool = False, sharded: bool = False) -> MethodTrainer:
    """Make a case's trainer."""
    if case == "moe":
        model, processor = build_sparse()
        # No balance loss: see main.
        method: Any = RoutedMethod(SupervisedMethod(processor), RouterConfig(balance_weight=0.0, z_weight=0.0))
        dataset = chat_dataset()
    else:
        model, processor = build_tiny_llava(scale=1.0)
        method, dataset = SupervisedMethod(processor), chat_dataset()
        if case == "preference":
            method = PreferenceMethod(processor, PreferenceConfig(), reference=Reference(model, kind="copy"))
            dataset = method.prepare(pair_dataset())
    if case == "uneven":
        rows = [dataset[i] for i in range(7)]
        dataset = Dataset.from_list([*rows, rows[0]] if filled else rows, features=dataset.features)
    # Parts that get no gradient have no optimiser state, which FSDP's checkpoints don't take.
    model.model.vision_tower.requires_grad_(False)
    trainer_options = {"train_sampling_strategy": "sequential", "use_cpu": True}
    trainer_options |= {"fsdp": True, "fsdp_config": FSDP} if sharded else {}
    config = TrainConfig(
        learning_rate=1e-3, batch_size=batch_size, max_steps=4, logging_steps=1, save_steps=4, schedule="constant", trainer=trainer_options
    )
    arguments = build_training_arguments(config, output_dir=folder)
    kind = ShardedTrainer if sharded else MethodTrainer
    return kind(model=model, args=arguments, train_dataset=dataset, method=method, callbacks=[ManifestCallback()])


def run_alone(folder: Path) -> None:
    """Train every case in this process, and keep losses and weights."""
    for case in CASES:
        trainer = build(case, folder / case, batch_size=GLOBAL_BATCH, filled=True)
        trainer.train()
        (folder / f"{case}.json").write_text(json.dumps([losses(trainer), trainer.state.log_history[0]]))
        trainer.model.save_pretrained(folder / f"{case}-end")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for sharded in (False, True):
        for case in CASES:
            out = folder / f"{case}-{sharded}"
            trainer = build(case, out, batch_size=GLOBAL_BATCH // 2, sharded=sharded)
            trainer.train()
            assert trainer.args.world_size == 2
            parameters = list(trainer.model_wrapped.parameters())
            if sharded:
                assert all(isinstance(parameter, DTensor) for parameter in parameters)
            else:
                assert isinstance(trainer.model_wrapped, DistributedDataParallel)
            expected, log = json.loads((folder / f"{case}.json").read_text())
            got = losses(trainer)
            assert all(abs(a - b) < 2e-5 * max(1, abs(b)) for a, b in zip(got, expected, strict=True)), (case, sharded, got, expected)
            for key, value in log.items():
                # Those two are of a process's own tokens, and so not the same for other splits.
                if ("/" in key or key == "grad_norm") and key not in ("router/balance", "router/dead_experts"):
                    found = trainer.state.log_history[0][key]
                    assert abs(found - value) < 1e-3 * max(1, abs(value)), (case, sharded, key, found, value)
            weights = trainer.gather_weights()
            if dist.get_rank() == 0:
                # As training_run.save_run does it.
                trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out / "end", state_dict=weights)
                check_end(out, folder / f"{case}-end")
                print(f"{'fsdp2' if sharded else 'ddp'} {case}: losses, metrics and saved weights equal", flush=True)
            dist.barrier()
    dist.destroy_process_group()


def check_end(out: Path, expected: Path) -> None:
    """Plain transformers loads what was saved, and it is what one process came to; the checkpoint verifies."""
    assert verify_checkpoint(out / "checkpoint-4") is None
    got, loading = AutoModelForImageTextToText.from_pretrained(out / "end", output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    wanted = dict(AutoModelForImageTextToText.from_pretrained(expected).named_parameters())
    for name, parameter in got.named_parameters():
        # Adam divides by the gradient's size: where that is all rounding, a step of 1e-3 can go either way.
        assert (parameter - wanted[name]).norm() < 1e-3 * wanted[name].norm() + 1e-3, name


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
