"""Pictures as tokens: what a model that draws them has beside its words.

Words and picture tokens share one numbering here, words first: a picture is a response whose ids are ``first`` and above. So rows,
caches and digests hold pictures as they hold words, and no picture token is taken for a word.

Shape legend: R = pictures, N = tokens of a picture, L = those and the words among them, K = any tokens, P = words of a prompt,
C = codes, D = hidden width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration, Emu3ForConditionalGeneration, JanusForConditionalGeneration, PreTrainedModel

from mmalign.data.pictures import PictureForm
from mmalign.errors import UserError
from mmalign.models.picture_families import JanusPictures, PictureHead
from mmalign.models.picture_words import ChameleonPictures, Emu3Pictures


class PictureTokens(PictureForm, Protocol):
    """How a model draws. Another family is another class with these, and a line in ``_FAMILIES``."""

    size: int
    """N."""
    decodes: bool
    """Whether codes become pictures again."""

    @property
    def head(self) -> PictureHead:
        """The last layer of the head that predicts picture tokens."""

    def embed(self, codes: Tensor) -> Tensor:
        """(K,) codes, counted from 0, to the (K, D) embeddings that the language model reads."""

    def read(self, hidden: Tensor) -> Tensor:
        """(K, D) last hidden states to what ``head`` reads."""

    def own_logits(self, prefix_ids: Tensor, picture_ids: Tensor) -> Tensor:
        """(1, P) words and (1, L) ids of a picture to the (N, C) logits that predict its tokens, by the model's own parts alone."""

    def unbarred(self) -> AbstractContextManager[None]:
        """Let the model's forward pass give what its head gave, where it would bar picture tokens from it."""

    def read_pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> Tensor:
        """What the image processor makes of R pictures, all of one size."""

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Those, to (R, N) codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """(R, N) codes to pixels, as the processor's ``postprocess`` takes them."""

    def show(self, processor: Any, pixels: Tensor) -> list[Image.Image]:
        """Those, to R images, as ``postprocess`` does it."""

    def idle(self) -> list[nn.Module]:
        """Parts that have no say in a picture's log-probability given words."""

    def tokenizer_digest(self) -> str:
        """Of the weights that make codes of pictures and back, by which codes in data are known."""


_FAMILIES: dict[type[PreTrainedModel], Callable[..., PictureTokens]] = {
    JanusForConditionalGeneration: JanusPictures,
    Emu3ForConditionalGeneration: Emu3Pictures,
    ChameleonForConditionalGeneration: ChameleonPictures,
}


def find_picture_tokens(model: PreTrainedModel, *, side: int | None = None) -> PictureTokens:
    """Find how a model draws.

    Args:
        model: Without wrappers.
        side: Of its pictures, in pixels; None: the model's own.

    Raises:
        ValueError: If it does not, or draws no pictures of that size.
    """
    family = next((family for kind, family in _FAMILIES.items() if isinstance(model, kind)), None)
    if family is None:
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise UserError(f"{type(model).__name__} draws no pictures as tokens that are known here; expected one of {known}")
    return family(model, side=side)
