"""How likely is it that a response is true? P(yes) of a model that sees the image."""

from collections.abc import Sequence
from pathlib import Path

from data_tools.scoring import Parts, Sampled, Scorer, place_scores
from data_tools.step_values import AskedValues, asking
from data_tools.tree import Step
from mmalign.data.images import load_image
from mmalign.errors import UserError


class ConfidenceScorer(Scorer):
    """Asks a model about each whole response, as a tree search asks about its steps: scores are seldom equal, as yes and no are."""

    def __init__(self, values: AskedValues, *, image_root: Path) -> None:
        """Hold what asks the model."""
        self.values, self.image_root = values, image_root

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """P(yes) of yes and no; a response without words has none."""
        self.values.see(items, [load_image(item.question.image, root=self.image_root) for item in items])
        spoken = [(i, text) for i, item in enumerate(items) for text in item.responses if text.strip()]
        asked = self.values([(i, Step((), text, 0.0, 0, 0.0)) for i, text in spoken])
        return place_scores(items, (confidence for confidence, _ in asked))


def build_confidence(parts: Parts) -> ConfidenceScorer:
    """Build the scorer that asks the labeler, or without one the model that is sampled from."""
    options = parts.options
    if options.endpoint is not None and options.labeler is None:
        raise UserError("--scorer confidence needs log-probabilities, which an endpoint doesn't give; name a --labeler")
    return ConfidenceScorer(AskedValues(*parts.load(options.labeler or options.model), turns=asking(options.check)), image_root=parts.root)
