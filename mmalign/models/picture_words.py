"""Families whose picture tokens are words of the language model: Emu3 and Chameleon; see ``models/picture_tokens.py``.

Shape legend: R = pictures, N = tokens of a picture, L = those and the words among them, K = any tokens, P = words of a prompt,
C = codes, D = hidden width.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ChameleonForConditionalGeneration, Emu3ForConditionalGeneration, Emu3Processor

from mmalign.errors import UserError
from mmalign.models.picture_families import OwnTokenizer, PictureHead, refuse_side


class VocabularyPictures(OwnTokenizer):
    """Codes that are words of the language model, with the words' embeddings and head; of all words, codes alone may be drawn."""

    pads = False

    def __init__(self, model: Any, *, columns: int, row_end: int | None) -> None:
        """Find the parts of a picture of ``columns`` x ``columns`` tokens."""
        self._model, self._vq = model, model.model.vqmodel
        self._words: Tensor = model.model.vocabulary_mapping.img2bpe_mapping_tensor.long()
        self.first: int = model.config.get_text_config().vocab_size
        self.columns, self.size, self.row_end = columns, columns**2, row_end

    @property
    def head(self) -> PictureHead:
        """The rows of the words' head that predict codes."""
        weight: Tensor = self._model.lm_head.weight
        return PictureHead(weight.index_select(0, self._words.to(weight.device)), None)

    def embed(self, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        return F.embedding(self._words_of(codes), self._model.get_input_embeddings().weight)

    def read(self, hidden: Tensor) -> Tensor:
        """As it is."""
        return hidden

    def own_logits(self, prefix_ids: Tensor, picture_ids: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        drawn = picture_ids >= self.first
        words = torch.where(drawn, self._words_of((picture_ids - self.first).clamp_min(0)), picture_ids)
        hidden = self._model.model(input_ids=torch.cat([prefix_ids, words], 1), use_cache=False).last_hidden_state
        logits: Tensor = self._model.lm_head(hidden[:, prefix_ids.shape[1] - 1 : -1][drawn])
        return logits[:, self._words.to(logits.device)]

    def idle(self) -> list[nn.Module]:
        """The tokenizer of pictures."""
        return [self._vq]

    def _words_of(self, codes: Tensor) -> Tensor:
        return self._words.to(codes.device)[codes]


class Emu3Pictures(VocabularyPictures):
    """Emu3 (arXiv:2409.18869): squares of any size, which stands in the prompt; a word ends each row of tokens."""

    def __init__(self, model: Emu3ForConditionalGeneration, *, side: int | None = None) -> None:
        """Find the parts of pictures of ``side`` x ``side`` pixels; None: as large as the processor's own.

        Raises:
            ValueError: If the side is no number of whole tokens.
        """
        factor = model.model.vqmodel.vision_spatial_factor
        self._side = math.isqrt(Emu3Processor.image_area) if side is None else side
        if side is not None and side % factor:
            raise UserError(f"picture_side is {side}; expected a multiple of {factor}, a token's side in {type(model).__name__}")
        super().__init__(model, columns=self._side // factor, row_end=model.vocabulary_mapping.eol_token_id)

    def begin(self, processor: Any, caption: str) -> tuple[str, dict[str, Any]]:
        """The caption as it is, behind which the processor writes the begin of a picture and its size."""
        return caption, {"return_for_image_generation": True, "ratio": "1:1", "image_area": self._side**2}

    def read_pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> Tensor:
        """The middle square of each; see ``PictureTokens``."""
        squares = [ImageOps.fit(picture, (self._side, self._side), Image.Resampling.BICUBIC) for picture in pictures]
        pixels: Tensor = processor.image_processor(squares, do_resize=False, return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        vq = self._vq.to(pixels.device).eval()
        return torch.stack(vq.encode(pixels, [(self._side, self._side)] * len(pixels)).image_tokens).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        pixels: Tensor = self._vq.eval().decode(codes.unflatten(1, (-1, self.columns)))
        return pixels

    def show(self, processor: Any, pixels: Tensor) -> list[Image.Image]:
        """See ``PictureTokens``."""
        return list(processor.postprocess(list(pixels.float().cpu()), return_tensors="PIL.Image.Image")["pixel_values"])


class ChameleonPictures(VocabularyPictures):
    """Chameleon (arXiv:2405.09818): squares of one size. transformers has no decoder of its codes, and bars them from its logits."""

    decodes = False

    def __init__(self, model: ChameleonForConditionalGeneration, *, side: int | None = None) -> None:
        """Find the parts."""
        resolution = model.config.vq_config.resolution
        refuse_side(side, resolution, model)
        super().__init__(model, columns=resolution // 2 ** (model.model.vqmodel.encoder.num_resolutions - 1), row_end=None)

    def begin(self, processor: Any, caption: str) -> tuple[str, dict[str, Any]]:
        """A turn with its end, as the processor writes it, and the begin of a picture."""
        return f"{caption}{processor.tokenizer.sep_token}{processor.image_start_token}", {"return_for_text_completion": True}

    @contextmanager
    def unbarred(self) -> Iterator[None]:
        """Leave the logits as they are in the forward passes inside, where the model's would bar picture tokens."""
        mapping = self._model.model.vocabulary_mapping
        barred, mapping.image_tokens = mapping.image_tokens, []
        try:
            yield
        finally:
            mapping.image_tokens = barred

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        codes: Tensor = self._vq.to(pixels.device).encode(pixels.to(self._vq.dtype)).image_tokens
        return codes.view(len(pixels), -1)

    def decode(self, codes: Tensor) -> Tensor:
        """It has no decoder: ``decodes`` says so before."""
        raise NotImplementedError

    def show(self, processor: Any, pixels: Tensor) -> list[Image.Image]:
        """It has no decoder: ``decodes`` says so before."""
        raise NotImplementedError
