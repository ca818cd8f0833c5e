"""How good is a response? A reward model says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_tools.scoring import Parts, Sampled, Scorer, place_scores
from mmalign.data.images import load_image
from mmalign.data.messages import Message
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.engine.rewards import RewardModel, read_wording
from mmalign.errors import UserError


@dataclass(frozen=True)
class _Asked:
    images: list[Image.Image]
    prompt: list[Message]


class RewardScorer(Scorer):
    """Asks a reward model about each response while it sees the image."""

    def __init__(self, model: RewardModel, *, image_root: Path) -> None:
        """Hold the model."""
        self.model, self.image_root = model, image_root

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """The model's rewards; a response without words has none."""
        spoken = [(item, [text for text in item.responses if text.strip()]) for item in items]
        asked = [(self._read(item), texts) for item, texts in spoken if texts]
        rewards = self.model([row for row, _ in asked], [texts for _, texts in asked])
        return place_scores(items, (reward for own in rewards for reward in own))

    def _read(self, item: Sampled) -> _Asked:
        content = [{"type": "image"}, {"type": "text", "text": item.question.prompt}]
        return _Asked([load_image(item.question.image, root=self.image_root)], [Message(role="user", content=content)])


def build_reward(parts: Parts) -> RewardScorer:
    """Build the scorer that asks a reward model."""
    labeler = parts.options.labeler
    if labeler is None:
        raise UserError("--scorer reward and --labeler MODEL go together; name the reward model")
    model, processor = parts.load(labeler)
    return RewardScorer(RewardModel(model, RewardPrompts(processor, read_wording(labeler))), image_root=parts.root)
