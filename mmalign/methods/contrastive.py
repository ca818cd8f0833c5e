"""Contrastive training of an image-text scorer (CLIP)."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmalign.data.images import load_image
from mmalign.data.rows import response_text
from mmalign.data.verdicts import describe_root
from mmalign.errors import UserError
from mmalign.losses.contrastive import clip_loss
from mmalign.models.contrastive import build_or_load_clip, freeze_towers
from mmalign.options.methods import ContrastiveOptions
from mmalign.training.method import Method, MethodOutput, Sum


class ContrastiveMethod(Method):
    """Symmetric contrastive loss over the images and texts of a batch."""

    name = "contrastive"
    summary = "a contrastive image-text model, trained on image and text pairs"
    intended_use = "To score how well a text fits an image, as one of the two proxies of a preference pair's difficulty."
    columns = ("images", "text")

    def __init__(self, processor: Any, *, max_length: int, image_root: Path | None = None) -> None:
        """Keep the processor; texts are cut to ``max_length`` tokens, what the text tower can read."""
        self.processor = processor
        self.max_length = max_length
        self.image_root = image_root

    @classmethod
    def build(cls, options: ContrastiveOptions) -> tuple[nn.Module, Any, Method]:
        """Load or make a CLIP; its text tower reads no more tokens than it has positions."""
        model, processor = build_or_load_clip(options.model, tokenizer=options.tokenizer, seed=options.seed)
        freeze_towers(model, options.freeze)
        limit = model.config.text_config.max_position_embeddings
        return model, processor, cls(processor, max_length=min(options.max_length or limit, limit), image_root=options.image_root)

    def _read(self, raw: Mapping[str, Any]) -> tuple[Any, str]:
        if len(raw["images"]) != 1:
            raise UserError(f"row has {len(raw['images'])} images; expected one image and its text")
        return load_image(raw["images"][0], root=self.image_root), response_text(raw["text"], "text")

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the image and look at the text."""
        self._read(raw)

    def check_inputs(self) -> Mapping[str, Any]:
        """Where images lie: texts are cut, and none is too long."""
        return {"image_root": describe_root(self.image_root)}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pixels (B, 3, H, W), ids (B, T), and a key (B,) that is equal for equal texts."""
        images, texts = zip(*(self._read(row) for row in rows), strict=True)
        encoded = self.processor(
            images=list(images), text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.max_length
        )
        return {**encoded, "text_keys": torch.tensor([zlib.crc32(text.encode()) for text in texts])}

    def num_items(self, batch: dict[str, Any]) -> int:
        """Image-text pairs."""
        return len(batch["text_keys"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the pairs' losses; negatives come from the same micro-batch."""
        text_keys = batch["text_keys"]
        logits = model(**{key: value for key, value in batch.items() if key != "text_keys"}).logits_per_image
        loss = clip_loss(logits, text_keys).sum()
        right = text_keys[logits.argmax(-1)] == text_keys
        return MethodOutput(loss, {"contrastive/accuracy": Sum(right.float().sum(), len(text_keys))})
