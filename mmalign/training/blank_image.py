"""Batches of text alone where weights are sharded: every process has to run the same layers, or the others wait for its part of them."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmalign.data.encode import encode_questions
from mmalign.data.rows import read_question
from mmalign.engine.vision import encode_images, feature_tensors

_SIDE = 64


class BlankImage:
    """An image of no row, which the vision tower and the projector read in each forward pass."""

    def __init__(self, processor: Any) -> None:
        """Take the processor of the model in training."""
        self._processor = processor

    @functools.cached_property
    def _images(self) -> Mapping[str, Tensor]:
        raw = {"images": [Image.new("RGB", (_SIDE, _SIDE))], "prompt": [{"role": "user", "content": "image"}]}
        row = read_question(raw, index=0)
        return encode_questions(self._processor, images=row.images, prompts=[row.prompt]).images

    @contextmanager
    def read_by(self, model: PreTrainedModel) -> Iterator[list[Tensor]]:
        """Let the model read it in the block.

        Args:
            model: Without wrappers; its forward runs inside theirs.

        Yields:
            Zeros, one or more for each forward pass: added to the loss, they take the same layers through the backward pass.
        """
        zeros: list[Tensor] = []

        def read(module: nn.Module, *inputs: Any) -> None:
            images = {name: value.to(model.device) for name, value in self._images.items()}
            features = encode_images(model, {"images": images, "layout": {"image_blocks": None}})
            assert features is not None
            zeros.extend(0.0 * value.float().sum() for value in feature_tensors(features))

        # Where images are read in a batch that has some: behind the words' embeddings, before the language model.
        handle = model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
        try:
            yield zeros
        finally:
            handle.remove()
