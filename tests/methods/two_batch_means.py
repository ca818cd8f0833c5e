"""Run by two processes: KTO's baseline is that of all pairs, and DisCO's constraint that of all tokens.

Two processes give one process's loss and gradients.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from mmalign.methods.listwise import ListwiseMethod
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions, PairLossOptions
from tests.tiny_models import build_tiny_llava, list_rows, pair_rows

CASES = ("kto_pair:detach_baseline=true", "kto_pair:detach_baseline=false", "disco_b:kl_weight=100")


def build(case: str) -> tuple[PreTrainedModel, PreferenceMethod | ListwiseMethod]:
    policy, processor = build_tiny_llava(scale=2.0)
    # A teacher: rewards differ from pair to pair, and the baselines with them.
    teacher, _ = build_tiny_llava(scale=2.2, seed=1)
    reference = Reference(policy, kind="copy", model=teacher)
    if case.startswith("disco"):
        return policy, ListwiseMethod(processor, ListLossOptions(objective=[case]), reference=reference)
    return policy, PreferenceMethod(processor, PairLossOptions(objective=[case]), reference=reference)


def rows_for(case: str) -> list[dict[str, Any]]:
    if case.startswith("disco"):
        return [{**row, "scores": [float(score > 0.4) for score in row["scores"]]} for row in list_rows([3, 2, 4, 2, 3], seed=200)]
    return [{**row, "pair_beta_scale": 1.0, "pair_weight": 1.0} for row in pair_rows(5)]


def main() -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    expected: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    # Three rows here, two there.
    parts = {case: (rows_for(case)[:3], rows_for(case)[3:]) for case in CASES}
    for case in CASES:
        alone, method = build(case)
        rows = rows_for(case)
        whole = method.compute(alone, method.collate(rows)).loss_sum
        whole.backward()
        apart = torch.stack([method.compute(alone, method.collate(part)).loss_sum for part in parts[case]]).sum()
        assert abs(float(apart - whole)) > 1e-4, "numbers of each process alone would give another loss"
        expected[case] = whole.detach(), {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    dist.init_process_group("gloo")
    for case, (whole, grads) in expected.items():
        inner, method = build(case)
        model = DistributedDataParallel(inner, find_unused_parameters=True)
        loss = method.compute(model, method.collate(parts[case][rank])).loss_sum
        loss.backward()
        summed = loss.detach()
        dist.all_reduce(summed)
        torch.testing.assert_close(summed, whole, rtol=1e-5, atol=0)
        norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
        assert norm > 1e-3
        for name, grad in grads.items():
            # DDP averages what one process sums.
            assert (inner.get_parameter(name).grad * 2 - grad).norm() < 1e-4 * norm, (case, name)
        if rank == 0:
            print(f"{case}: loss and gradients equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "run by torchrun"
    sys.exit(main())
