"""Rows with picture tokens: read by the picture embeddings, scored by the picture head, inside the model's own forward.

The engine asks a model how it draws (``models/picture_tokens.py``) and nothing else: shared rows, log-probabilities, divergences and
caches are those of words.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmalign.models.picture_tokens import PictureTokens


@contextmanager
def picture_rows(model: PreTrainedModel, pictures: PictureTokens) -> Iterator[None]:
    """Let the model read ids from ``pictures.first`` on as picture tokens, and bar none, in the forward passes inside."""
    words = model.get_input_embeddings()
    embed_words = words.forward

    def forward(ids: Tensor) -> Tensor:
        drawn = ids >= pictures.first
        embedded: Tensor = embed_words(ids.masked_fill(drawn, 0))
        codes = pictures.embed(ids[drawn] - pictures.first)
        return embedded.masked_scatter(drawn[..., None], codes.to(embedded.dtype))

    words.forward = forward
    try:
        with pictures.unbarred():
            yield
    finally:
        del words.forward


@contextmanager
def drawing(model: PreTrainedModel, pictures: PictureTokens) -> Iterator[None]:
    """Let the model's forward read picture tokens and return the logits of the next one, (B, N, codes), in place of words'."""
    head: Any = model.get_output_embeddings()
    head.forward = lambda hidden: F.linear(pictures.read(hidden), *pictures.head)
    try:
        with picture_rows(model, pictures):
            yield
    finally:
        del head.forward


def drop_words(batch: Mapping[str, Any], words: Tensor, *, pads: bool, pad_token_id: int) -> dict[str, Any]:
    """Leave words of plain rows out.

    Args:
        batch: From ``collate_prompts``, a response in each row.
        words: (B, N) which.
        pads: Whether padding stands in their place; else nothing does, and what follows moves up.
        pad_token_id: The tokenizer's.
    """
    dropped = {**batch, "input_ids": batch["input_ids"].masked_fill(words, pad_token_id)}
    if pads:
        return dropped
    moved = (batch["layout"]["position"] - words.cumsum(-1)).clamp_min(0)
    return {
        **dropped,
        "attention_mask": batch["attention_mask"].masked_fill(words, 0),
        "layout": {**batch["layout"], "position": moved},
    }
