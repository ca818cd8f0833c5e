"""The contrastive gap: how much better the chosen answer fits the image than the rejected one, by a CLIP model.

Shape legend: S = text pieces of a batch, D = embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.rows import PairRow
from mmalign.difficulty.sentences import cut_to_fit, split_sentences
from mmalign.models.text_towers import encode_texts, pooled, text_limit

TEXT_POLICY = "mean over sentences of any language; longer ones in pieces of whole words"


class ContrastiveGap(NamedTuple):
    """Of one pair."""

    gap: float
    """In cosine units."""
    num_cut: int
    """Sentences of both answers that the text tower could not hold in one piece."""


@dataclass(frozen=True)
class Pieces:
    """A response as the text tower reads it."""

    texts: list[str]
    num_cut: int
    """Sentences that were too long, and stand in several pieces."""


def split_text(text: str, tokenizer: Any, max_tokens: int) -> Pieces:
    """Split a response into sentences, and a sentence that the text tower can't hold into pieces of whole words. No word is left out.

    Args:
        text: The response.
        tokenizer: The text tower's.
        max_tokens: Its longest input, special tokens included.
    """
    sentences = [cut_to_fit(sentence, lambda part: len(tokenizer(part)["input_ids"]) <= max_tokens) for sentence in split_sentences(text)]
    return Pieces([piece for pieces in sentences for piece in pieces], sum(len(pieces) > 1 for pieces in sentences))


class Fit(NamedTuple):
    """How well a response fits the images of its row."""

    cosine: float
    """Mean over images and sentences; 0 where there is no image."""
    num_cut: int
    """Sentences that the text tower could not hold in one piece."""


def score_contrastive(model: Any, processor: Any, rows: Sequence[PairRow]) -> list[ContrastiveGap]:
    """Compute the contrastive gap of each pair: mean cosine of image and sentence, chosen minus rejected.

    Each image is encoded once. Pairs without an image, or with several, use the mean over their images; none gives 0.

    Returns:
        A gap for each row.
    """
    fits = score_fit(model, processor, [row.images for row in rows], [(row.chosen, row.rejected) for row in rows])
    return [ContrastiveGap(chosen.cosine - rejected.cosine, chosen.num_cut + rejected.num_cut) for chosen, rejected in fits]


@torch.no_grad()
def score_fit(model: Any, processor: Any, images: Sequence[Sequence[Any]], responses: Sequence[Sequence[str]]) -> list[list[Fit]]:
    """Compute how well each response fits the images of its row. Each image is encoded once.

    Args:
        model: Has ``get_image_features`` and ``get_text_features``.
        processor: Of the model.
        images: For each row, in PIL's form.
        responses: For each row, none of them empty.

    Returns:
        For each row, a value for each response.
    """
    flat_images = [image for own in images for image in own]
    if not flat_images:
        return [[Fit(0.0, 0)] * len(own) for own in responses]
    pixels = processor.image_processor(images=flat_images, return_tensors="pt").to(model.device, model.dtype)
    image_features = _unit(model.get_image_features(**pixels)).split([len(own) for own in images])
    pieces = [split_text(text, processor.tokenizer, text_limit(model.config)) for own in responses for text in own]
    flat = [piece for response in pieces for piece in response.texts]
    text_features = _unit(model.get_text_features(**encode_texts(model, processor, flat))).split([len(part.texts) for part in pieces])
    found = iter(zip(pieces, text_features, strict=True))
    return [
        [Fit((seen @ said.t()).mean().item() if len(seen) else 0.0, part.num_cut) for part, said in islice(found, len(own))]
        for seen, own in zip(image_features, responses, strict=True)
    ]


def _unit(output: Any) -> Tensor:
    return F.normalize(pooled(output).float(), dim=-1)
