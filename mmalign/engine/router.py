"""Router logits of one forward pass, without a change to the model: hooks while it runs, nothing on it before and after.

Multimodal classes drop what their language model says about its routers, so the routers are listened to. Which modules they are,
each class of transformers declares itself. The logits are part of the graph, so a loss on them reaches the weights; recomputation
under gradient checkpointing happens when the hooks are gone.

Shape legend: L = layers with experts, B = rows, N = row length, E = experts of a layer.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmalign.engine.logps import unwrap
from mmalign.errors import UserError


def find_routers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the routers by name, in the order of the layers; none in a dense model."""
    declared: dict[type[nn.Module], Any] = {}
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            found = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits")
            if found is not None:
                declared[found.target_class] = found
    return {name: module for name, module in model.named_modules() if type(module) in declared}


def find_top_k(model: nn.Module) -> int:
    """Return how many experts a token passes through."""
    return int(unwrap(model).config.get_text_config().num_experts_per_tok)


class RouterRecord:
    """What the routers said in one forward pass with gradient."""

    def __init__(self, routers: dict[str, nn.Module]) -> None:
        """Make room for each router."""
        self._logits: dict[str, list[Tensor]] = {name: [] for name in routers}

    def add(self, name: str, logits: Tensor) -> None:
        """Keep a router's logits; those of a pass without gradient are a reference's, which may be the same model without its adapter."""
        if torch.is_grad_enabled():
            self._logits[name].append(logits)

    def stack(self) -> Tensor:
        """(L, B * N, E) logits, with gradient.

        Raises:
            ValueError: If the routers didn't each speak once.
        """
        counts = {len(values) for values in self._logits.values()}
        if counts == {0}:
            raise UserError(
                "no router was heard in a forward pass with gradient: gradient checkpointing with use_reentrant=True hides them; set "
                "use_reentrant to False"
            )
        if counts != {1}:
            raise UserError(f"routers ran {sorted(counts)} times in one step with gradient; expected one forward pass of the policy")
        return torch.stack([values[0] for values in self._logits.values()])


@contextmanager
def record_routers(model: nn.Module) -> Iterator[RouterRecord]:
    """Listen to the routers of a model, possibly wrapped, in the forward passes inside.

    Raises:
        ValueError: If the model has no routers.
    """
    routers = find_routers(unwrap(model))
    if not routers:
        raise UserError(f"{type(unwrap(model)).__name__} has no routers: it is dense; make it sparse with mmalign upcycle")
    record = RouterRecord(routers)
    with ExitStack() as stack:
        for name, router in routers.items():

            def hook(module: nn.Module, args: Any, output: tuple[Tensor, ...], name: str = name) -> None:
                # transformers' routers return logits, weights, choices.
                record.add(name, output[0])

            stack.callback(router.register_forward_hook(hook).remove)
        yield record
