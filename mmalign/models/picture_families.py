"""What the families that draw have in common, and Janus, whose picture tokens are no words; see ``models/picture_tokens.py``.

Shape legend: R = pictures, N = tokens of a picture, L = those and the words among them, K = any tokens,
P = words of a prompt, C = codes, D = hidden width.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration

from mmalign.data.encode import text_options
from mmalign.data.messages import Message
from mmalign.data.templates import given_text, render
from mmalign.errors import UserError
from mmalign.models.held import hash_weights


class PictureHead(NamedTuple):
    """The last layer of the head that predicts picture tokens."""

    weight: Tensor
    """(C, D)"""
    bias: Tensor | None
    """(C,)"""


class OwnTokenizer:
    """What the families have in common: a tokenizer of pictures in the model, and an image processor for it."""

    row_end: int | None = None
    decodes = True
    _vq: Any

    def read_pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> Tensor:
        """See ``PictureTokens``."""
        pixels: Tensor = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        return pixels

    def unbarred(self) -> AbstractContextManager[None]:
        """Nothing bars them."""
        return nullcontext()

    def tokenizer_digest(self) -> str:
        """See ``PictureTokens``."""
        return hash_weights(self._vq)


class JanusPictures(OwnTokenizer):
    """Janus and Janus-Pro (arXiv:2410.13848, arXiv:2501.17811): codes of a VQ model, with embeddings and a head of their own."""

    pads = True

    def __init__(self, model: JanusForConditionalGeneration, *, side: int | None = None) -> None:
        """Find the parts."""
        self._model: Any = model
        self._inner: Any = model.model
        self._vq = model.model.vqmodel
        self.first: int = model.config.text_config.vocab_size
        self.size: int = model.config.vision_config.num_image_tokens
        self.columns = math.isqrt(self.size)
        refuse_side(side, self.columns * 2 ** (self._vq.encoder.num_resolutions - 1), model)

    def begin(self, processor: Any, caption: str) -> tuple[str, dict[str, Any]]:
        """A user's turn, behind which the processor writes the begin of a picture."""
        text = render(processor, [Message(role="user", content=[{"type": "text", "text": caption}])], add_generation_prompt=True)
        return given_text(processor, text), {"generation_mode": "image", **text_options(processor, text)}

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

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """The code whose direction is nearest, as LlamaGen's tokenizer, which Janus has, and ``decode`` read codes.

        transformers' ``vqmodel.encode`` compares lengths too, which its ``decode`` drops: its codes are others wherever a code's length
        is not 1.
        """
        # Before training begins, the pixels may be on an accelerator and the model not yet.
        vq = self._vq.to(pixels.device)
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
        return [self._inner.vision_model, self._inner.aligner, self._vq, *([] if tied else [self._model.lm_head])]


def refuse_side(side: int | None, own: int, model: nn.Module) -> None:
    """Refuse another size where a family has one.

    Raises:
        ValueError: With both.
    """
    if side not in (None, own):
        raise UserError(f"picture_side is {side}, and pictures of this {type(model).__name__} have {own}; leave it out")
