"""Run by two processes: KTO's baseline is that of all pairs, so that two processes give one process's loss and gradients."""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from tests.tiny_models import build_tiny_llava, pair_rows


def build(detach: str) -> tuple[PreTrainedModel, PreferenceMethod]:
    config = PairLossOptions(objective=[f"kto_pair:detach_baseline={detach}"])
    policy, processor = build_tiny_llava(scale=2.0)
    # A teacher: rewards differ from pair to pair, and the baselines with them.
    teacher, _ = build_tiny_llava(scale=2.2, seed=1)
    return policy, PreferenceMethod(processor, config, reference=Reference(policy, kind="copy", model=teacher))


def main() -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    rows = [{**row, "pair_beta_scale": 1.0, "pair_weight": 1.0} for row in pair_rows(5)]
    # Three pairs here, two there.
    parts = rows[:3], rows[3:]
    expected: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for detach in ("true", "false"):
        alone, method = build(detach)
        whole = method.compute(alone, method.collate(rows)).loss_sum
        whole.backward()
        apart = torch.stack([method.compute(alone, method.collate(part)).loss_sum for part in parts]).sum()
        assert abs(float(apart - whole)) > 1e-4, "baselines of each process alone would give another loss"
        expected[detach] = whole.detach(), {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    dist.init_process_group("gloo")
    for detach, (whole, grads) in expected.items():
        inner, method = build(detach)
        model = DistributedDataParallel(inner, find_unused_parameters=True)
        loss = method.compute(model, method.collate(parts[rank])).loss_sum
        loss.backward()
        summed = loss.detach()
        dist.all_reduce(summed)
        torch.testing.assert_close(summed, whole, rtol=1e-5, atol=0)
        norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
        assert norm > 1e-3
        for name, grad in grads.items():
            # DDP averages what one process sums.
            assert (inner.get_parameter(name).grad * 2 - grad).norm() < 1e-4 * norm, (detach, name)
        if rank == 0:
            print(f"detach={detach}: loss and gradients equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "run by torchrun"
    sys.exit(main())
