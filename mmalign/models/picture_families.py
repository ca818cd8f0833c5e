"""The families of multimodal LLMs that draw: where each has the parts that ``models/picture_tokens.py`` asks for.

Shape legend: R = pictures, N = tokens of a picture, L = those and the words among them, K = any tokens,
P = words of a prompt, C = codes, D = hidden width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Emu3ForConditionalGeneration, Emu3Processor, JanusForConditionalGeneration

from mmalign.data.encode import text_options
from mmalign.data.messages import Message
from mmalign.data.templates import render
from mmalign.errors import UserError
from mmalign.models.held import hash_weights


class PictureHead(NamedTuple):
    """The last layer of the head that predicts picture tokens."""

    weight: Tensor
    """(C, D)"""
    bias: Tensor | None
    """(C,)"""


class JanusPictures:
    """Janus and Janus-Pro (arXiv:2410.13848, arXiv:2501.17811): codes of a VQ model, with embeddings and a head of their own."""

    row_end: int | None = None
    pads = True

    def __init__(self, model: JanusForConditionalGeneration, *, side: int | None = None) -> None:
        """Find the parts."""
        self._model: Any = model
        self._inner: Any = model.model
        self.first: int = model.config.text_config.vocab_size
        self.size: int = model.config.vision_config.num_image_tokens
        self.columns = math.isqrt(self.size)
        _refuse_side(side, self.columns * 2 ** (self._inner.vqmodel.encoder.num_resolutions - 1), model)

    def begin(self, processor: Any, caption: str) -> tuple[str, dict[str, Any]]:
        """A user's turn, behind which the processor writes the begin of a picture."""
        text = render(processor, [Message(role="user", content=[{"type": "text", "text": caption}])], add_generation_prompt=True)
        return text, {"generation_mode": "image", **text_options(processor, text)}

    @property
    def head(self) -> PictureHead:
        """See ``PictureTokens``."""
        linear: nn.Linear = self._inner.generation_head.vision_head
        return PictureHead(linear.weight, linear.bias)

    def embed(self, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        embedded: Tensor = self._model.prepare_embeddings_for_image_generation(codes)
        return embedded

    def read(self, hidden: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        head = self._inner.generation_head
        read: Tensor = head.activation_fn(head.proj_out(hidden))
        return read

    def own_logits(self, prefix_ids: Tensor, picture_ids: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        words = self._model.get_input_embeddings()(prefix_ids)
        row = torch.cat([words, self._model.prepare_embeddings_for_image_generation(picture_ids - self.first)], 1)
        hidden = self._inner(inputs_embeds=row, use_cache=False).last_hidden_state
        logits: Tensor = self._inner.generation_head(hidden[0, prefix_ids.shape[1] - 1 : -1])
        return logits

    def read_pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> Tensor:
        """See ``PictureTokens``."""
        pixels: Tensor = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """The code whose direction is nearest, as LlamaGen's tokenizer, which Janus has, and ``decode`` read codes.

        transformers' ``vqmodel.encode`` compares lengths too, which its ``decode`` drops: its codes are others wherever a code's length
        is not 1.
        """
        # Before training begins, the pixels may be on an accelerator and the model not yet.
        vq = self._inner.vqmodel.to(pixels.device)
        latent = vq.quant_conv(vq.encoder(pixels.to(vq.dtype)))
        similarity = F.normalize(latent.float(), dim=1).flatten(2).mT @ F.normalize(vq.quantize.embedding.weight.float(), dim=-1).T
        return similarity.argmax(-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        pixels: Tensor = self._model.decode_image_tokens(codes)
        return pixels

    def show(self, processor: Any, pixels: Tensor) -> list[Image.Image]:
        """See ``PictureTokens``."""
        shown = processor.postprocess(list(pixels.float().cpu()), return_tensors="pt")["pixel_values"]
        return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in shown]

    def idle(self) -> list[nn.Module]:
        """The towers, and the words' head where it is not the words' embeddings."""
        tied = self._model.lm_head.weight is self._model.get_input_embeddings().weight
        return [self._inner.vision_model, self._inner.aligner, self._inner.vqmodel, *([] if tied else [self._model.lm_head])]

    def tokenizer_digest(self) -> str:
        """See ``PictureTokens``."""
        return hash_weights(self._inner.vqmodel)


class VocabularyPictures:
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

    def tokenizer_digest(self) -> str:
        """See ``PictureTokens``."""
        return hash_weights(self._vq)

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


def _refuse_side(side: int | None, own: int, model: nn.Module) -> None:
    if side not in (None, own):
        raise UserError(f"picture_side is {side}, and pictures of this {type(model).__name__} have {own}; leave it out")
