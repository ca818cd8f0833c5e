"""Rewards by a reward model: any multimodal LLM, asked as ``engine/rewards.py`` says."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.engine.rewards import RewardModel
from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.rewards.groups import Group, Rewards


class ModelReward:
    """The model's difference of two logits; it sees the images."""

    columns: Sequence[str] = ()

    def __init__(self, source: str) -> None:
        """Load the model.

        Raises:
            ValueError: If there is none, or its answers are not one token each.
        """
        self._source, self._model = source, RewardModel.load(source)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """What can be asked can be judged."""

    def check_inputs(self) -> Any:
        """The weights."""
        return fingerprint_checkpoint(self._source, dtype="auto")

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        """Any finite number; None for an answer without words, reasoning aside."""
        said = [[strip_reasoning(response).text.strip() for response in group.responses] for group in groups]
        asked = [number for number, texts in enumerate(said) if any(texts)]
        found = self._model([groups[i].question for i in asked], [[text for text in said[i] if text] for i in asked])
        values = {number: iter(rewards) for number, rewards in zip(asked, found, strict=True)}
        return [[next(values[number]) if text else None for text in texts] for number, texts in enumerate(said)]
