"""An accelerator that isn't there: tensors that say they are on ``cuda:0``, or on ``mps:0``, and compute on the CPU.

An operation on tensors of both devices is refused as CUDA refuses it, and numbers of 64 bits as MPS does, so that a step shows without an
accelerator whether it would run on one. Numbers, memory and kernels of a real one are not tried.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, MPS, CPU = torch.device("cuda:0"), torch.device("mps:0"), torch.device("cpu")
_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default}
# Which arguments must be on one device where indices may stand on the CPU.
_INDEXED = {
    _ATEN.index.Tensor: (0,),
    _ATEN.index_put_.default: (0, 2),
    _ATEN.index_put.default: (0, 2),
    _ATEN._index_put_impl_.default: (0, 2),
}
# A tensor without dimensions passes for a number, but not where it is an index or a part.
_STRICT = {
    _ATEN.index_select.default, _ATEN.gather.default, _ATEN.scatter.src, _ATEN.scatter_add_.default, _ATEN.index_add_.default,
    _ATEN.index_add.default, _ATEN.embedding.default, _ATEN.masked_scatter.default, _ATEN.cat.default, _ATEN.stack.default,
}  # fmt: skip


class DeviceTensor(Tensor):
    """A tensor of the device; to autograd it is on ``meta``, which needs no driver."""

    held: Tensor
    place = CUDA
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type["DeviceTensor"], held: Tensor) -> "DeviceTensor":
        """Wrap a tensor of the CPU.

        Raises:
            TypeError: As MPS does of float64.
        """
        if cls.place == MPS and held.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
        form = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "layout": held.layout}
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(cls, held.size(), device="meta", **form)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        return _run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that isn't there."""
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As code asks that has kernels of its own for it."""
        return self.place == CUDA

    def tolist(self) -> Any:
        """Read the numbers, which a device allows."""
        return self.held.tolist()

    def numpy(self, **options: Any) -> Any:
        """Refuse as a device does."""
        raise TypeError(
            f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return DeviceTensor.place if isinstance(args[0], DeviceTensor) else CPU
    here = [value for value in tree_leaves((args, kwargs)) if isinstance(value, DeviceTensor)]
    if here:
        _refuse_mixed(func, args, kwargs)
    asked = kwargs.get("device")
    plain_args, plain = tree_map_only(DeviceTensor, lambda value: value.held, (args, dict(kwargs)))
    out = func(*plain_args, **(plain if asked is None else plain | {"device": CPU}))
    stays_there = isinstance(args[0], DeviceTensor) if func in _COPIES else bool(here)
    if not (stays_there if asked is None else asked.type != "cpu"):
        return out
    if _changes(func):
        return args[0]
    known = {id(value.held): value for value in here}
    return tree_map_only(Tensor, lambda value: known[id(value)] if id(value) in known else DeviceTensor(value), out)


def _refuse_mixed(func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise a RuntimeError where CUDA would: tensors of the CPU beside one of the device, but for copies, indices and numbers."""
    if func in _COPIES:
        return
    looked_at = [args[place] for place in _INDEXED[func]] if func in _INDEXED else tree_leaves((args, kwargs))
    plain = [value for value in looked_at if isinstance(value, Tensor) and not isinstance(value, DeviceTensor)]
    changes_plain = _changes(func) and not isinstance(args[0], DeviceTensor)
    if any(value.dim() or func in _STRICT or changes_plain for value in plain):
        raise RuntimeError(f"expected all tensors on one device, found {DeviceTensor.place} and cpu, in {func}")


def _changes(func: Any) -> bool:
    """Whether it changes its first argument: add_, and not __rshift__."""
    name: str = func._schema.name
    return name.endswith("_") and not name.endswith("__")


def move(held: Any) -> Any:
    """Put a module, or the tensors in a nest of containers, on the device; a module is changed in place."""
    if not isinstance(held, nn.Module):
        return tree_map_only(Tensor, lambda value: value if isinstance(value, DeviceTensor) else DeviceTensor(value), held)
    for module in held.modules():
        for name, weight in module._parameters.items():
            if weight is not None and not isinstance(weight, DeviceTensor):
                module._parameters[name] = nn.Parameter(DeviceTensor(weight.data), requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and not isinstance(buffer, DeviceTensor):
                module._buffers[name] = DeviceTensor(buffer)
    return held


@contextmanager
def pretending(device: torch.device = CUDA) -> Iterator[None]:
    """Run the block as if the device were there; models are loaded before it."""
    with (
        patch.object(DeviceTensor, "place", device),
        patch.object(torch, "tensor", _on_device(torch.tensor)),
        patch.object(torch, "as_tensor", _as_tensor),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(nn.Module, "to", _module_to(nn.Module.to)),
        _Everywhere(),
    ):
        yield


def _on_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` goes to the driver before anything could stand in its way."""

    def made(data: Any, *, device: Any = None, **form: Any) -> Tensor:
        out = make(data.held if isinstance(data, DeviceTensor) else data, **form)
        return out if device is None or torch.device(device).type == "cpu" else DeviceTensor(out)

    return made


def _as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    if isinstance(data, Tensor):
        return data.to(device=data.device if device is None else device, dtype=dtype or data.dtype)
    return torch.tensor(data, dtype=dtype, device=device)


def _module_to(to: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        place = next((value for value in args if isinstance(value, (str, torch.device))), kwargs.get("device"))
        return to(module, *args, **kwargs) if place is None or torch.device(place).type == "cpu" else move(module)

    return moved
