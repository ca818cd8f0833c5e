"""Token log-probabilities from hidden states, without a [tokens, vocabulary] tensor beyond one chunk.

Shape legend: K = scored tokens, D = hidden width, V = vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Rows of logits held at once: 2 ** 24 fp32 values are 64 MiB, small beside any model and large enough for a fast matmul.
MAX_CHUNK_LOGITS = 2**24


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the logits behind its output head: multiply, then bound."""

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform logits in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative, by the transformed logits: tanh' = 1 - tanh^2."""
        return self.scale if self.softcap is None else (1 - (logits / self.softcap).square()).mul_(self.scale)


def linear_token_logps(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """Compute log p(target) under softmax(logits) with logits = scale * (hidden @ weight.T + bias), chunk by chunk.

    Args:
        hidden: (K, D) hidden states that predict the targets.
        weight: (V, D) output embeddings.
        bias: (V,) or None.
        target: (K,) token ids.
        scale: What the model multiplies its logits by.
        softcap: Then bounds them to softcap * tanh(logits / softcap), as Gemma's families do.

    Returns:
        (K,) float32 log-probabilities. Softmax runs in float32 whatever the inputs are.
    """
    return _LinearTokenLogps.apply(hidden, weight, bias, target, LogitTransform(scale, softcap), torch.is_grad_enabled())


def linear_token_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, transform: LogitTransform) -> Tensor:
    """Compute each target's own logit; arguments as in ``linear_token_logps``.

    Returns:
        (K,) float32 logits.
    """
    values = (hidden.float() * weight.index_select(0, target).float()).sum(-1)
    if bias is not None:
        values = values + bias.index_select(0, target).float()
    values = values * transform.scale
    return values if transform.softcap is None else transform.softcap * torch.tanh(values / transform.softcap)


class _LinearTokenLogps(torch.autograd.Function):
    """With a frozen head, the hidden states' gradient is made in the forward pass and only scaled in the backward pass.

    With a training head the logits are computed again in the backward pass, those of one chunk kept over from the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, transform: LogitTransform, keep: bool
    ) -> Tensor:
        # Autocast is off inside custom functions' backward: settle the type here, as F.linear under autocast would.
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        head_trains = keep and any(ctx.needs_input_grad[1:3])
        unit_grad = torch.empty_like(hidden) if keep and not head_trains and ctx.needs_input_grad[0] else None
        logps = hidden.new_empty(len(target), dtype=torch.float32)
        log_sum = torch.empty_like(logps)
        kept = None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(len(target), len(weight)):
                logits = transform.apply_(_linear(hidden[part], weight, bias))
                value = logits.gather(-1, target[part, None]).squeeze(-1)
                slope = transform.slope(logits) if unit_grad is not None or head_trains else 1.0
                peak = logits.amax(-1)
                total = logits.sub_(peak[:, None]).exp_().sum(-1)
                log_sum[part] = peak + total.log()
                logps[part] = value - log_sum[part]
                if unit_grad is not None:
                    grad_logits = _grad_logits(logits.div_(-total[:, None]), torch.ones_like(total), target[part], slope)
                    torch.mm(grad_logits.to(hidden.dtype), weight, out=unit_grad[part])
                elif head_trains:
                    kept = (logits.div_(-total[:, None]), slope)
        if head_trains:
            ctx.save_for_backward(hidden, weight, bias, target, log_sum)
        else:
            ctx.save_for_backward(unit_grad)
        ctx.head_trains, ctx.transform, ctx.kept = head_trains, transform, kept
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.head_trains:
            (unit_grad,) = ctx.saved_tensors
            # Scaled in float32: a row of the loss's gradient may be tiny.
            grad_hidden = None if unit_grad is None else (unit_grad * grad[:, None]).to(unit_grad.dtype)
            return grad_hidden, None, None, None, None, None
        hidden, weight, bias, target, log_sum = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        # From the last chunk, whose probabilities are still there, backwards.
        for part in reversed(chunks(len(target), len(weight))):
            if ctx.kept is not None:
                (minus_probs, slope), ctx.kept = ctx.kept, None
            else:
                logits = ctx.transform.apply_(_linear(hidden[part], weight, bias))
                slope = ctx.transform.slope(logits)
                minus_probs = logits.sub_(log_sum[part, None]).exp_().neg_()
            logits = _grad_logits(minus_probs.mul_(grad[part, None]), grad[part], target[part], slope)
            typed = logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(typed, weight, out=grad_hidden[part])
            if grad_weight is not None:
                add_product_(grad_weight, typed.t(), hidden[part])
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        return grad_hidden, _like(grad_weight, weight), _like(grad_bias, bias), None, None, None


def chunks(num_tokens: int, width: int) -> list[slice]:
    """Cut tokens into equal parts of at most ``MAX_CHUNK_LOGITS`` values of ``width`` each."""
    rows = max(1, MAX_CHUNK_LOGITS // width)
    number = -(-num_tokens // rows)
    return [slice(num_tokens * i // number, num_tokens * (i + 1) // number) for i in range(number)]


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``total`` in place, in float32 whatever the factors are."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(hidden, weight, bias).float()


def _grad_logits(minus_probs: Tensor, onehot: Tensor, target: Tensor, slope: Tensor | float) -> Tensor:
    """D logp / d logits = onehot - softmax, times the transform's slope; in place."""
    minus_probs.scatter_add_(-1, target[:, None], onehot[:, None].to(minus_probs.dtype))
    return times_slope_(minus_probs, slope)


def times_slope_(grad: Tensor, slope: Tensor | float) -> Tensor:
    """D / d transformed logits to d / d linear logits, in place; nothing where the transform is none."""
    return grad if isinstance(slope, float) and slope == 1.0 else grad.mul_(slope)


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)
