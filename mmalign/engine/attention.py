"""Attention over shared rows, through transformers' own mask interface.

The model builds its own rule (causal, sliding, chunked, bidirectional over images). The wrapper here evaluates that rule at
the indices which a token would have in a plain row, and adds: a key is visible if it belongs to the same prompt, or to the same
response to it. So one form is exact for every attention-only family, and the model code stays as it is.

Shape legend: B = rows, N = row length.
"""

import contextvars
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, flex_attention_mask, sdpa_mask

from mmalign.errors import UserError

SHARED = {"sdpa": "mmalign_shared_sdpa", "flex_attention": "mmalign_shared_flex", "eager": "mmalign_shared_eager"}
"""What each of transformers' implementations becomes. FlexAttention skips the blocks that the mask leaves empty; it has no backward
pass on the CPU (torch 2.15). Eager is what models have whose attention is more than a softmax (Gemma-2 bounds its logits)."""


class RowLayout(NamedTuple):
    """Which tokens share a row, each (B, N); see ``collate_prompts``."""

    prompt: Tensor
    segment: Tensor
    plain_index: Tensor


_layout: contextvars.ContextVar[RowLayout | None] = contextvars.ContextVar("row_layout", default=None)


@contextmanager
def row_layout(layout: RowLayout) -> Iterator[None]:
    """Attend by ``layout`` in the forward passes inside; outside, attention is the model's own."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def _shared_mask(base: Callable[..., Any]) -> Callable[..., Any]:
    def mask(*args: Any, mask_function: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        layout = _layout.get()
        if layout is None:
            own_rule = {} if mask_function is None else {"mask_function": mask_function}
            return base(*args, **own_rule, **kwargs)
        assert mask_function is not None, "transformers calls the mask interface with the model's rule"
        prompt, segment, plain_index = layout

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            key_segment = segment[batch, key]
            visible = (key_segment == 0) | (key_segment == segment[batch, query])
            visible = visible & (prompt[batch, key] == prompt[batch, query])
            return visible & mask_function(batch, head, plain_index[batch, query], plain_index[batch, key])

        # Skipping the mask would fall back to plain causal attention.
        return base(*args, mask_function=rule, **{**kwargs, "allow_is_causal_skip": False, "use_vmap": False})

    return mask


def use_shared_attention(model: PreTrainedModel) -> None:
    """Let the language model's attention follow ``row_layout``. The vision tower keeps its own.

    Raises:
        ValueError: If the model doesn't attend through the exchangeable interface, or not by attention alone.
    """
    text_config = model.config.get_text_config()
    current = text_config._attn_implementation
    if current in SHARED.values():
        return
    # Told by the layers' kind: where a model is asked in half precision, rounding may hide it.
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=model.config).layers):
        raise UserError("some of its layers keep a state that runs on through the row (linear attention, convolutions)")
    if current not in SHARED:
        raise UserError(
            f"{type(model).__name__} runs {current!r} attention; shared rows need one of {', '.join(map(repr, SHARED))}: "
            "load it with attn_implementation='sdpa', or 'eager' where the model has no other"
        )
    # A model without parts of their own configuration (Chameleon) goes by the empty name.
    model.set_attn_implementation({"" if text_config is model.config else "text_config": SHARED[current]})


def _own_eager_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The eager attention of the model that the layer belongs to: each file of transformers has its own.

    Raises:
        ValueError: If the model's file has none.
    """
    forward = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if forward is None:
        raise UserError(f"{type(module).__name__} has no eager_attention_forward of its own; shared rows need it, or 'sdpa'")
    return forward(module, *args, **kwargs)


AttentionMaskInterface.register(SHARED["sdpa"], _shared_mask(sdpa_mask))
AttentionInterface.register(SHARED["sdpa"], sdpa_attention_forward)
AttentionMaskInterface.register(SHARED["flex_attention"], _shared_mask(flex_attention_mask))
AttentionInterface.register(SHARED["flex_attention"], flex_attention_forward)
AttentionMaskInterface.register(SHARED["eager"], _shared_mask(eager_mask))
AttentionInterface.register(SHARED["eager"], _own_eager_attention)
