"""Hidden states behind the log-probabilities: what the output head reads, and what each layer hands on.

Shape legend: K = scored tokens, D = hidden width, L = decoder layers, V = vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.engine.divergence import Head
from mmalign.engine.logps import ResponseLogps, compute_response_logps, read_head, unwrap
from mmalign.errors import UserError


@dataclass(frozen=True)
class ResponseStates:
    """States at the positions that predict the scored tokens of a batch."""

    logps: ResponseLogps
    final: Tensor
    """(K, D) as the output head reads them."""
    layers: Tensor | None
    """(L, K, D) as each decoder layer hands them on, before the final norm; None where they were not asked for."""


def compute_response_states(model: nn.Module, batch: dict[str, Any], *, layers: bool = False) -> ResponseStates:
    """Compute log p of every scored response token, and keep the hidden states on the way.

    Args:
        model: As ``compute_response_logps`` takes it.
        batch: From ``collate_prompts``.
        layers: Keep every decoder layer's output too.

    Returns:
        Log-probabilities and states, with gradient where grad mode is on.

    Raises:
        ValueError: If layers are asked for and the language model has no list of them.
    """
    inner, index = unwrap(model), batch["layout"]["index"]
    handed_on: dict[int, Tensor] = {}

    def pick(hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1).index_select(0, index)

    def keep(number: int, output: Any) -> None:
        handed_on[number] = pick(output[0] if isinstance(output, tuple) else output)

    handles = [
        layer.register_forward_hook(lambda _, __, output, number=number: keep(number, output))
        for number, layer in enumerate(_decoder(inner).layers if layers else [])
    ]
    try:
        logps = compute_response_logps(model, batch, keep_states=True)
    finally:
        for handle in handles:
            handle.remove()
    assert logps.states is not None
    return ResponseStates(logps, logps.states, torch.stack([handed_on[i] for i in sorted(handed_on)]) if layers else None)


@dataclass(frozen=True)
class OutputHead:
    """A model's way from a hidden state to logits."""

    head: Head
    norm: nn.Module | None
    """The norm behind the last layer, for states before it."""

    def logits(self, final: Tensor) -> Tensor:
        """(K, D) states as the head reads them to (K, V) float32 logits."""
        return self.head.logits(final)

    def lens(self, handed_on: Tensor) -> Tensor:
        """(K, D) states of any layer to (K, V) float32 logits, as if it were the last layer (logit lens)."""
        assert self.norm is not None
        return self.logits(self.norm(handed_on))


def read_output_head(model: nn.Module) -> OutputHead:
    """Take a model's head; its weights are shared, not copied.

    Raises:
        ValueError: If the language model has no list of layers with a norm behind it.
    """
    head = read_head(model)
    return OutputHead(head, _final_norm(_decoder(unwrap(model)), head.weight.shape[1]))


def _decoder(inner: Any) -> Any:
    decoder = inner.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise UserError(f"the language model of {type(inner).__name__} is a {type(decoder).__name__} without a list of layers")
    return decoder


def _final_norm(decoder: nn.Module, width: int) -> nn.Module:
    """What stands behind the last layer: ``norm``, or the one module of the decoder's own with a weight for each value of a state."""
    norm = getattr(decoder, "norm", None)
    if isinstance(norm, nn.Module):
        return norm
    weights = [(child, getattr(child, "weight", None)) for child in decoder.children()]
    found = [child for child, weight in weights if isinstance(weight, Tensor) and weight.shape == (width,)]
    if len(found) != 1:
        raise UserError(f"{type(decoder).__name__} has {len(found)} norms of {width} values beside its layers; expected the final one")
    return found[0]
