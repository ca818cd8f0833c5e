"""What keeps a router's experts in use, and how they are used. Layers are kept apart: pooled over layers, two layers that each send all
tokens to other experts look balanced.

Shape legend: L = layers with experts, T = tokens, E = experts of a layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.scores import at_least_float32


def load_balancing_loss(router_logits: Tensor, counted: Tensor, *, top_k: int) -> Tensor:
    """Compute each layer's load-balancing loss, E * sum_e f_e P_e (arXiv:2101.03961, Eq. 4 to 6, for top_k choices).

    f_e is the share of choices that fall on expert e (no gradient), P_e its mean probability. 1 at balance, E / top_k where every token
    surely takes the same experts. transformers' own is top_k times this, and pools the layers.

    Args:
        router_logits: (L, T, E) before the softmax.
        counted: (T,) bool; padding is left out.
        top_k: Experts that a token passes through.

    Returns:
        (L,) float32; 0 where no token counts.

    Raises:
        ValueError: If the shapes don't fit, or top_k is not in 1 to E.
    """
    load = compute_expert_load(router_logits, counted, top_k=top_k)
    probability = _masked_mean(_prepare(router_logits, counted).softmax(-1), counted)
    return router_logits.shape[-1] * (load * probability).sum(-1)


def router_z_loss(router_logits: Tensor, counted: Tensor) -> Tensor:
    """Compute each layer's mean of (log sum_e exp logit_e)^2, which keeps logits small (ST-MoE, arXiv:2202.08906, Eq. 5).

    Args:
        router_logits: (L, T, E).
        counted: (T,) bool.

    Returns:
        (L,) float32; 0 where no token counts.
    """
    return _masked_mean(_prepare(router_logits, counted).logsumexp(-1, keepdim=True).square(), counted).squeeze(-1)


@torch.no_grad()
def compute_expert_load(router_logits: Tensor, counted: Tensor, *, top_k: int) -> Tensor:
    """Compute the share of choices that falls on each expert, (L, E): each layer's sum to 1, and 1 / E is balance."""
    logits = _prepare(router_logits, counted)
    num_experts = router_logits.shape[-1]
    if not 1 <= top_k <= num_experts:
        raise UserError(f"top_k is {top_k}; expected 1 to the number of experts ({num_experts})")
    # By probability in float32, as the library's routers choose: ties fall alike.
    chosen = logits.softmax(-1).topk(top_k, dim=-1).indices
    return _masked_mean(F.one_hot(chosen, num_experts).sum(-2).to(logits.dtype), counted) / top_k


def compute_router_entropy(router_logits: Tensor, counted: Tensor) -> Tensor:
    """Compute each layer's mean entropy of a token's expert probabilities, (L,), in nats: log E undecided, 0 decided."""
    log_probs = _prepare(router_logits, counted).log_softmax(-1)
    return _masked_mean(-(log_probs.exp() * log_probs).sum(-1, keepdim=True), counted).squeeze(-1)


def _prepare(router_logits: Tensor, counted: Tensor) -> Tensor:
    """Check shapes, widen to float32 and blank out what doesn't count, so that not even a NaN there has a part in gradients."""
    if router_logits.ndim != 3 or counted.shape != router_logits.shape[1:2]:
        raise UserError(
            f"router_logits are {tuple(router_logits.shape)} and counted is {tuple(counted.shape)}; expected (layers, tokens, experts) and "
            "(tokens,)"
        )
    return at_least_float32(router_logits).masked_fill(~counted[:, None], 0.0)


def _masked_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over counted tokens: (L, T, X) to (L, X)."""
    return values.masked_fill(~counted[:, None], 0.0).sum(1) / counted.sum().clamp_min(1)
