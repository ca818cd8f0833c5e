"""Any method on a sparse model: its own loss, and what keeps the experts in use.

Shape legend: L = layers with experts, B = rows, N = row length, E = experts of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.engine.method import Method, MethodOutput, Sum
from mmalign.engine.router import find_top_k, record_routers
from mmalign.errors import UserError
from mmalign.losses.router import compute_expert_load, compute_router_entropy, load_balancing_loss, router_z_loss


@dataclass(frozen=True)
class RouterConfig:
    """Weights of the router's losses, each on the sum over layers."""

    balance_weight: float = 0.01
    """LLaVA-MoD's and MoE-LLaVA's, as in DeepSpeed: 0.01 a layer, where 1 is balance."""
    z_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse weights that would reward imbalance.

        Raises:
            ValueError: If one is negative.
        """
        for name in ("balance_weight", "z_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 or more")


class RoutedMethod:
    """Adds router losses and metrics to a method.

    Both losses are of each micro-batch's tokens, weighted by its items: unlike a sum over tokens, balance within parts of a batch is not
    balance within the whole. Padding doesn't count. A token of a shared row counts once, however many responses share it; in plain rows
    a prompt counts once for each response.
    """

    def __init__(self, method: Method, config: RouterConfig) -> None:
        """Keep the method and the weights."""
        self.method = method
        self.config = config
        self.name = method.name
        self.columns = method.columns

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """The method's own."""
        self.method.check(raw, index=index)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """The method's own."""
        return self.method.start(model, rows)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The method's own."""
        return self.method.collate(rows)

    def num_items(self, batch: dict[str, Any]) -> int:
        """The method's own."""
        return self.method.num_items(batch)

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Run the method while its policy's routers are listened to."""
        with record_routers(model) as record:
            output = self.method.compute(model, batch)
        logits, counted, top_k = record.stack(), batch["attention_mask"].bool().flatten(), find_top_k(model)
        balance, z = load_balancing_loss(logits, counted, top_k=top_k), router_z_loss(logits, counted)
        added = self.config.balance_weight * balance.sum() + self.config.z_weight * z.sum()
        metrics = router_metrics(logits.detach(), counted, balance.detach(), z.detach(), top_k=top_k)
        return MethodOutput(output.loss_sum + added * self.num_items(batch), output.metrics | metrics)


@torch.no_grad()
def router_metrics(logits: Tensor, counted: Tensor, balance: Tensor, z: Tensor, *, top_k: int) -> dict[str, Sum]:
    """Say how the experts are used: means over tokens and layers, and each expert's load.

    Args:
        logits: (L, B * N, E).
        counted: (B * N,) bool.
        balance: (L,), 1 at balance.
        z: (L,).
        top_k: Experts a token.

    Returns:
        ``router/balance``, ``router/z``, ``router/entropy`` (nats); ``router/dead_experts``: experts of all layers without a token in the
        micro-batch; ``router_load/l<layer>_e<expert>``: share of choices, counted from the first sparse layer.
    """
    tokens, layers = counted.sum(), len(logits)
    load = compute_expert_load(logits, counted, top_k=top_k)
    means = {"balance": balance, "z": z, "entropy": compute_router_entropy(logits, counted)}
    metrics = {f"router/{name}": Sum(value.sum() * tokens, tokens * layers) for name, value in means.items()}
    metrics["router/dead_experts"] = Sum((load == 0).sum(), 1.0)
    for layer, loads in enumerate(load):
        metrics |= {f"router_load/l{layer}_e{expert}": Sum(value * tokens, tokens) for expert, value in enumerate(loads)}
    return metrics
