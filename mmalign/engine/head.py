"""Token log-probabilities from hidden states, without a [tokens, vocabulary] tensor beyond one chunk.

Shape legend: K = scored tokens, D = hidden width, V = vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Rows of logits held at once: 2 ** 24 fp32 values are 64 MiB, small beside any model and large enough for a fast matmul.
MAX_CHUNK_LOGITS = 2**24


def linear_token_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, softcap: float | None = None) -> Tensor:
    """Compute log p(target) under softmax(logits) with logits = hidden @ weight.T + bias, chunk by chunk.

    Args:
        hidden: (K, D) hidden states that predict the targets.
        weight: (V, D) output embeddings.
        bias: (V,) or None.
        target: (K,) token ids.
        softcap: Bounds the logits to softcap * tanh(logits / softcap), as Gemma's families do.

    Returns:
        (K,) float32 log-probabilities. Softmax runs in float32 whatever the inputs are.
    """
    return _LinearTokenLogps.apply(hidden, weight, bias, target, softcap)


class _LinearTokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, softcap: float | None) -> Tensor:
        # Autocast is off inside custom functions' backward: settle the type here, as F.linear under autocast would.
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        chunk = max(1, MAX_CHUNK_LOGITS // weight.shape[0])
        log_sums, values = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True):
                logits = _cap(F.linear(h, weight, bias).float(), softcap)
                log_sums.append(logits.logsumexp(-1))
                values.append(logits.gather(-1, t[:, None]).squeeze(-1))
        log_sum = torch.cat(log_sums)
        ctx.save_for_backward(hidden, weight, bias, target, log_sum)
        ctx.chunk, ctx.softcap = chunk, softcap
        return torch.cat(values) - log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, log_sum = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(target), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = _cap(F.linear(hidden[part], weight, bias).float(), ctx.softcap)
            # The derivative of the cap, by its own value: 1 - tanh^2.
            slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square()
            # d logp / d logits = onehot - softmax, each row scaled by what comes from above; in place, one chunk at a time.
            logits.sub_(log_sum[part, None]).exp_().mul_(-grad[part, None])
            logits.scatter_add_(-1, target[part, None], grad[part, None].to(logits.dtype))
            if slope is not None:
                logits.mul_(slope)
            grad_logits = logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ hidden[part]
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        return grad_hidden, _like(grad_weight, weight), _like(grad_bias, bias), None, None


def _cap(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)
