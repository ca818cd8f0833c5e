"""Run by two processes: router losses under DDP give the mean of the processes' own gradients."""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmalign.methods.sft import SupervisedMethod
from mmalign.options.training import RouterOptions
from mmalign.training.router import RouterLosses
from tests.methods.test_router import build_sparse, chats


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world == 2
    alone, processor = build_sparse()
    method, router = SupervisedMethod(processor), RouterLosses(RouterOptions(balance_weight=1.0, router_z_weight=0.1))
    rows = chats(4)
    total = torch.stack([router.compute(method, alone, method.collate(rows[part::world])).loss_sum for part in range(world)]).sum()
    (total / world).backward()
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    inner = build_sparse()[0]
    # The last layers of a CLIP tower, behind the one that is projected, get no gradient.
    model = DistributedDataParallel(inner, find_unused_parameters=True)
    loss = router.compute(method, model, method.collate(rows[rank::world])).loss_sum
    loss.backward()
    summed = loss.detach()
    dist.all_reduce(summed)
    torch.testing.assert_close(summed, total.detach(), rtol=1e-5, atol=0)
    for name, grad in expected.items():
        torch.testing.assert_close(inner.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max() + 1))
    assert expected["model.language_model.layers.0.mlp.gate.weight"].abs().max() > 1e-3
    if rank == 0:
        print(f"ddp: loss and {len(expected)} gradients equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "run by torchrun"
    sys.exit(main())
