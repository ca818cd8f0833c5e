"""Rows with picture tokens: read by the picture embeddings, scored by the picture head, inside the model's own forward.

The engine asks a model how it draws (``models/picture_tokens.py``) and nothing else: shared rows, log-probabilities, divergences and
caches are those of words.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.models.picture_tokens import PictureTokens


@contextmanager
def picture_embeddings(model: PreTrainedModel, pictures: PictureTokens) -> Iterator[None]:
    """Let the model's input embeddings read ids from ``pictures.first`` on as picture tokens, in the forward passes inside."""
    words = model.get_input_embeddings()
    embed_words = words.forward

    def forward(ids: Tensor) -> Tensor:
        drawn = ids >= pictures.first
        embedded: Tensor = embed_words(ids.masked_fill(drawn, 0))
        codes = pictures.embed(ids[drawn] - pictures.first)
        return embedded.masked_scatter(drawn[..., None], codes.to(embedded.dtype))

    words.forward = forward
    try:
        yield
    finally:
        del words.forward


@contextmanager
def drawing(model: PreTrainedModel, pictures: PictureTokens) -> Iterator[None]:
    """Let the model's forward read picture tokens and return the logits of the next one, (B, N, codes), in place of words'."""
    head: Any = model.get_output_embeddings()
    head.forward = lambda hidden: pictures.head(pictures.read(hidden))
    try:
        with picture_embeddings(model, pictures):
            yield
    finally:
        del head.forward


def without_caption(ids: Tensor, *, kept: Sequence[int], pad_token_id: int) -> Tensor:
    """Put padding in place of all words but the ``kept`` ones, as stock Janus does for the half of guidance that knows no caption."""
    return torch.where(torch.isin(ids, torch.tensor(kept, device=ids.device)), ids, pad_token_id)
