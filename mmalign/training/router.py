"""Losses of a sparse model's routers, added to those of any method: what keeps the experts in use.

Shape legend: L = layers with experts, B = rows, N = row length, E = experts of a layer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.engine.router import find_routers, find_top_k, record_routers
from mmalign.errors import UserError
from mmalign.losses.router import compute_expert_load, compute_router_entropy, load_balancing_loss, router_z_loss
from mmalign.options.training import MllmOptions, RouterOptions
from mmalign.training.method import Method, MethodOutput, Sum

BALANCE_WEIGHT = 0.01
"""LLaVA-MoD's and MoE-LLaVA's, as in DeepSpeed: 0.01 per layer, where 1 is balance."""


class RouterLosses:
    """Router losses and metrics beside a method's own.

    Both losses are of each micro-batch's tokens, weighted by its items: unlike a sum over tokens, balance within parts of a batch is not
    balance within the whole. Padding doesn't count. A token of a shared row counts once, however many responses share it; in plain rows
    a prompt counts once for each response.
    """

    def __init__(self, options: RouterOptions) -> None:
        """Take the weights, each on the sum over layers."""
        self.balance_weight = BALANCE_WEIGHT if options.balance_weight is None else options.balance_weight
        self.z_weight = options.router_z_weight

    def compute(self, method: Method, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Run the method while its policy's routers are listened to."""
        with record_routers(model) as record:
            output = method.compute(model, batch)
        logits, counted, top_k = record.stack(), batch["attention_mask"].bool().flatten(), find_top_k(model)
        balance, z = load_balancing_loss(logits, counted, top_k=top_k), router_z_loss(logits, counted)
        added = self.balance_weight * balance.sum() + self.z_weight * z.sum()
        metrics = router_metrics(logits.detach(), counted, balance.detach(), z.detach(), top_k=top_k)
        return MethodOutput(output.loss_sum + added * method.num_items(batch), output.metrics | metrics)


def build_router_losses(options: MllmOptions, model: nn.Module) -> RouterLosses | None:
    """Take the weights for a sparse model; None where the model is dense.

    Raises:
        ValueError: If the model is dense and a weight is given.
    """
    if find_routers(model):
        return RouterLosses(options)
    if options.balance_weight is not None or options.router_z_weight:
        raise UserError(
            f"{options.model} is dense and has no router; leave --balance-weight and --router-z-weight out, or run mmalign upcycle first"
        )
    return None


@torch.no_grad()
def router_metrics(logits: Tensor, counted: Tensor, balance: Tensor, z: Tensor, *, top_k: int) -> dict[str, Sum]:
    """Say how the experts are used: means over tokens and layers, and each expert's load.

    Args:
        logits: (L, B * N, E).
        counted: (B * N,) bool.
        balance: (L,), 1 at balance.
        z: (L,).
        top_k: Experts per token.

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
