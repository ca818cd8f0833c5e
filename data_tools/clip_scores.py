"""How well does a response fit its image? A contrastive model says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.scoring import Parts, Sampled, Scorer, place_scores
from mmalign.data.images import load_image
from mmalign.difficulty.contrastive import score_fit
from mmalign.errors import UserError
from mmalign.models.load import best_device, load_clip


class ClipScorer(Scorer):
    """Compares each response with its image, as the contrastive gap of difficulty does."""

    def __init__(self, model: Any, processor: Any, *, image_root: Path) -> None:
        """Hold a CLIP model, or another with ``get_image_features`` and ``get_text_features``, and its processor."""
        self.model, self.processor, self.image_root = model, processor, image_root

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Mean cosine of the image and the response's sentences; a response without words has none."""
        spoken = [(item, texts) for item in items if (texts := [text for text in item.responses if text.strip()])]
        images = [[load_image(item.question.image, root=self.image_root)] for item, _ in spoken]
        fits = score_fit(self.model, self.processor, images, [texts for _, texts in spoken])
        return place_scores(items, (fit.cosine for own in fits for fit in own))


def build_clip(parts: Parts) -> ClipScorer:
    """Build the scorer that asks a contrastive model."""
    labeler = parts.options.labeler
    if labeler is None:
        raise UserError("--scorer clip and --labeler MODEL go together; name the CLIP or SigLIP model")
    model, processor = load_clip(labeler, dtype=parts.options.dtype)
    return ClipScorer(model.to(best_device()), processor, image_root=parts.root)
