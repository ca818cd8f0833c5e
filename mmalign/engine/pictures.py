"""Rows with picture tokens: read by the picture embeddings, scored by the picture head, inside the model's own forward.

The engine asks a model how it draws (``models/picture_tokens.py``) and nothing else: shared rows, log-probabilities, divergences and
caches are those of words.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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

    words.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del words.forward
