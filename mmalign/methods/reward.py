"""Training a reward model: the better of two responses gets the higher reward. What is saved is a stock multimodal LLM.

Shape legend: B = prompts in the batch, R = responses in the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmalign.data.encode import EncodedPrompt, refuse_same_responses
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.data.rows import LIST_COLUMNS, PAIR_COLUMNS, read_list, read_pair
from mmalign.data.verdicts import describe_reading
from mmalign.engine.batch import collate_prompts
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.engine.rewards import compute_rewards
from mmalign.losses.bradley_terry import bradley_terry_loss
from mmalign.methods.listwise import list_metrics
from mmalign.methods.policy import load_policy
from mmalign.options.methods import RewardLossOptions, RewardOptions
from mmalign.training.method import Method, MethodOutput, Sum


class RewardMethod(Method):
    """Bradley-Terry on pairs, or on every two responses of a list; the reward is read as ``engine/rewards.py`` says."""

    name = "reward"
    summary = "a multimodal LLM, trained as a reward model: its logits of two words say how good a response is"
    intended_use = "To score responses with mmalign score-rewards, for preference training and for choosing among samples."

    def __init__(self, processor: Any, options: RewardLossOptions) -> None:
        """Keep the parts.

        Raises:
            ValueError: If the answers are not one token each.
        """
        self.processor, self.options = processor, options
        self.prompts = RewardPrompts(processor, options)
        self.columns: Sequence[str] = LIST_COLUMNS if options.lists else PAIR_COLUMNS
        self.shared = True

    @classmethod
    def build(cls, options: RewardOptions) -> tuple[nn.Module, Any, Method]:
        """Load the model."""
        model, processor = load_policy(options)
        return model, processor, cls(processor, options)

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """Say how it is asked."""
        return f" (asked {options['question']!r}, {' or '.join(options['answers'])})"

    def _read(self, raw: Mapping[str, Any], *, index: int = 0) -> tuple[EncodedPrompt, list[float]]:
        """Decode and tokenise a row; the scores of its responses."""
        if self.options.lists:
            row = read_list(raw, index=index, image_root=self.options.image_root)
            responses, scores = row.responses, row.scores
            images, prompt = row.images, row.prompt
        else:
            pair = read_pair(raw, index=index, image_root=self.options.image_root)
            responses, scores = [pair.chosen, pair.rejected], [1.0, 0.0]
            images, prompt = pair.images, pair.prompt
        encoded = self.prompts.encode(images=images, prompt=prompt, responses=responses, max_length=self.options.max_length)
        refuse_same_responses(encoded)
        return encoded, scores

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row and tokenise it."""
        self._read(raw, index=index)

    def check_inputs(self) -> Mapping[str, Any]:
        """How rows are read, and what is asked behind them."""
        reading = describe_reading(self.processor, self.options, answer_end="template")
        return {**reading, "lists": self.options.lists, "question": self.options.question, "answers": self.options.answers}

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how responses are laid out: see ``probe_rows``.

        Raises:
            ValueError: If the model's own numbers can't be had.
        """
        encoded = [self._read(row)[0] for row in rows[:PROBED_ROWS]]
        choice = probe_rows(model, encoded, pad_token_id=self.processor.tokenizer.pad_token_id)
        self.shared = choice.shared
        return choice.reason

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row per prompt with all its responses, or one per response where they can't share it; scores stand under ``numbers``."""
        encoded, scores = zip(*map(self._read, rows), strict=True)
        batch = collate_prompts(encoded, pad_token_id=self.processor.tokenizer.pad_token_id, shared=self.shared)
        return {**batch, "numbers": {"scores": torch.tensor([score for row in scores for score in row])}}

    def num_items(self, batch: dict[str, Any]) -> int:
        """Prompts."""
        return len(batch["layout"]["repeats"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the prompts' losses."""
        inputs = {key: value for key, value in batch.items() if key != "numbers"}
        rewards = compute_rewards(model, inputs, self.prompts.answers)
        scores, counts, options = batch["numbers"]["scores"], batch["layout"]["repeats"], self.options
        losses = bradley_terry_loss(rewards, scores, counts, margin=options.margin, centering=options.centering)
        metrics = list_metrics(rewards, scores, counts)
        metrics["rewards/mean"] = Sum(rewards.detach().sum(), len(rewards))
        return MethodOutput(losses.sum(), metrics)
