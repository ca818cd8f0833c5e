"""Run by two processes: the engine under DDP and under FSDP2 gives the losses and gradients of one process with the whole batch."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.adapters import add_lora
from mmalign.options.training import LoraOptions
from tests.engine.test_logps import encode
from tests.tiny_models import build_tiny_llava

NUM_ROWS = 4


def build(lora: bool) -> tuple[nn.Module, Any]:
    model, processor = build_tiny_llava()
    torch.manual_seed(0)
    return (add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8)) if lora else model).train(), processor


def run(model: nn.Module, encoded: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = -compute_response_logps(model, collate_prompts(encoded, pad_token_id=0, row_tokens=200)).token_logps.sum()
    loss.backward()
    names = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in names.items()}


def shard(model: nn.Module) -> nn.Module:
    for name, module in model.named_modules():
        if name.split(".")[-2:-1] == ["layers"] and name.split(".")[-1].isdigit():
            fully_shard(module)
    return fully_shard(model)


def compare(name: str, build: Callable[[], nn.Module], encoded: list[Any]) -> None:
    """Compare both wrappers, half of the rows in each process, with one process and all of them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    loss, expected = run(build(), encoded)
    mine = encoded[rank::world]
    for wrapper in ("ddp", "fsdp2"):
        inner = build()
        # The last layers of a CLIP tower, behind the one that is projected, get no gradient.
        model = DistributedDataParallel(inner, find_unused_parameters=True) if wrapper == "ddp" else shard(inner)
        if wrapper == "fsdp2":
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        part, got = run(model, mine)
        dist.all_reduce(part)
        torch.testing.assert_close(part, loss, rtol=1e-5, atol=0)
        assert {name for name in got if got[name].any()} == {name for name in expected if expected[name].any()}, wrapper
        norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
        for weight, grad in expected.items():
            # Both wrappers average over processes what one process sums.
            error = (got.get(weight, torch.zeros_like(grad)) * world - grad).norm()
            assert error < 1e-5 * norm, (wrapper, name, weight, error, norm)
        if rank == 0:
            print(f"{wrapper} {name}: loss and {len(expected)} gradients equal")


def main() -> None:
    for lora in (False, True):
        compare(f"lora={lora}", lambda lora=lora: build(lora)[0], encode(build(lora)[1], NUM_ROWS))  # type: ignore[misc]


def run_by_two(main: Callable[[], None]) -> None:
    """Run what both processes do."""
    assert "RANK" in os.environ, "run by torchrun"
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    main()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_by_two(main)
