"""Pictures as tokens: what a model that draws them has beside its words.

Words and picture tokens share one numbering here, words first: a picture is a response whose ids are ``first`` and above. So rows,
caches and digests hold pictures as they hold words, and no picture token is taken for a word.

Shape legend: R = pictures, N = tokens of a picture, K = any tokens, D = hidden width.
"""

from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration, PreTrainedModel

from mmalign.errors import UserError
from mmalign.models.held import hash_weights


class PictureTokens(Protocol):
    """How a model draws. Another family is another class with these, and a line in ``_FAMILIES``."""

    first: int
    """Id of the first picture token: one more than the last word's."""
    size: int
    """N."""

    @property
    def head(self) -> nn.Linear:
        """The last layer of the head that predicts picture tokens."""

    def embed(self, codes: Tensor) -> Tensor:
        """(K,) codes, counted from 0, to the (K, D) embeddings that the language model reads."""

    def read(self, hidden: Tensor) -> Tensor:
        """(K, D) last hidden states to what ``head`` reads."""

    def own_logits(self, prefix_ids: Tensor, codes: Tensor) -> Tensor:
        """(1, P) words and (1, N) codes to the (N, codes) logits that predict the codes, by the model's own parts alone."""

    def tokenize(self, pixels: Tensor) -> Tensor:
        """What the image processor makes of R pictures, to (R, N) codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """(R, N) codes to pixels (R, height, width, 3), as the processor's ``postprocess`` takes them."""

    def idle(self) -> list[nn.Module]:
        """Parts that have no say in a picture's log-probability given words."""

    def tokenizer_digest(self) -> str:
        """Of the weights that make codes of pictures and back, by which codes in data are known."""


class JanusPictures:
    """Janus and Janus-Pro (arXiv:2410.13848, arXiv:2501.17811): codes of a VQ model, with embeddings and a head of their own."""

    def __init__(self, model: JanusForConditionalGeneration) -> None:
        """Find the parts."""
        self._model: Any = model
        self._inner: Any = model.model
        self.first: int = model.config.text_config.vocab_size
        self.size: int = model.config.vision_config.num_image_tokens

    @property
    def head(self) -> nn.Linear:
        """See ``PictureTokens``."""
        linear: nn.Linear = self._inner.generation_head.vision_head
        return linear

    def embed(self, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        embedded: Tensor = self._model.prepare_embeddings_for_image_generation(codes)
        return embedded

    def read(self, hidden: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        head = self._inner.generation_head
        read: Tensor = head.activation_fn(head.proj_out(hidden))
        return read

    def own_logits(self, prefix_ids: Tensor, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        words = self._model.get_input_embeddings()(prefix_ids)
        row = torch.cat([words, self._model.prepare_embeddings_for_image_generation(codes)], 1)
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
        vq = self._inner.vqmodel.to(pixels.device)
        latent = vq.quant_conv(vq.encoder(pixels.to(vq.dtype)))
        similarity = F.normalize(latent.float(), dim=1).flatten(2).mT @ F.normalize(vq.quantize.embedding.weight.float(), dim=-1).T
        return similarity.argmax(-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """See ``PictureTokens``."""
        pixels: Tensor = self._model.decode_image_tokens(codes)
        return pixels

    def idle(self) -> list[nn.Module]:
        """The towers, and the words' head where it is not the words' embeddings."""
        tied = self._model.lm_head.weight is self._model.get_input_embeddings().weight
        return [self._inner.vision_model, self._inner.aligner, self._inner.vqmodel, *([] if tied else [self._model.lm_head])]

    def tokenizer_digest(self) -> str:
        """See ``PictureTokens``."""
        return hash_weights(self._inner.vqmodel)


def to_images(processor: Any, pixels: Tensor) -> list[Image.Image]:
    """Turn decoded pixels into images, as the processor's ``postprocess`` does it."""
    shown = processor.postprocess(list(pixels.float().cpu()), return_tensors="pt")["pixel_values"]
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in shown]


_FAMILIES: dict[type[PreTrainedModel], type[JanusPictures]] = {JanusForConditionalGeneration: JanusPictures}


def find_picture_tokens(model: PreTrainedModel) -> PictureTokens:
    """Find how a model draws.

    Args:
        model: Without wrappers.

    Raises:
        ValueError: If it does not.
    """
    family = next((family for kind, family in _FAMILIES.items() if isinstance(model, kind)), None)
    if family is None:
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise UserError(f"{type(model).__name__} draws no pictures as tokens that are known here; expected one of {known}")
    return family(model)
