"""Training on rewards of answers that the policy samples at each step; the answers to a question are trained on as one shared row."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mmalign.data.encode import EncodedPrompt, answer_type, encode_questions, image_token_ids
from mmalign.data.rows import QuestionRow, read_question
from mmalign.data.verdicts import describe_reading
from mmalign.engine.choosing import Among, Sampling
from mmalign.engine.generation import Generated, with_answers
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.errors import UserError
from mmalign.methods.groups import Answered, Learner, build_learner
from mmalign.methods.held_answers import Held, HeldAnswers, HeldAnswersCallback
from mmalign.methods.policy import load_policy
from mmalign.methods.sampling import PolicySampler, draw
from mmalign.models.dropout import switch_dropout_off
from mmalign.options.methods import OnlineLossOptions, OnlineOptions
from mmalign.rewards.groups import Group, Reward, Rewards, mark_right, read_group, score_groups, win_rates
from mmalign.rewards.registry import build_reward
from mmalign.training.method import Method, MethodOutput, Sum

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    """A question as it is read, as it is tokenised, and as it stands in the data."""

    question: QuestionRow
    encoded: EncodedPrompt
    raw: Mapping[str, Any]

    @property
    def prompt_ids(self) -> list[int]:
        """All tokens before the answer."""
        return [*self.encoded.prefix_ids, *self.encoded.responses[0]]


class OnlineMethod(Method):
    """GRPO, DisCO and preferences between the best and the worst answer, on groups that the policy samples itself."""

    name = "online"
    summary = "a multimodal LLM, trained on rewards of its own answers"
    intended_use = "For research on hallucination: to be compared with the model that it started from."

    def __init__(self, processor: Any, options: OnlineLossOptions, *, learner: Learner, reward: Reward, seed: int = 0) -> None:
        """Keep the parts.

        Args:
            processor: The policy's.
            options: How many answers are sampled, and how.
            learner: The objective.
            reward: What answers are worth.
            seed: Of the answers.
        """
        self.processor, self.options, self.learner, self.reward, self._seed = processor, options, learner, reward, seed
        self.columns, self.passes = tuple(reward.columns), options.passes
        self._held = HeldAnswers(options.passes)
        self._warned = False
        drawn = Sampling(options.temperature, options.top_p, options.top_k, answers=options.samples)
        decoding = Among(drawn, len(processor.tokenizer), image_token_ids(processor))
        pad = processor.tokenizer.pad_token_id
        self._sampler = PolicySampler(decoding, max_new_tokens=options.max_new_tokens, pad_token_id=pad)

    @classmethod
    def build(cls, options: OnlineOptions) -> tuple[nn.Module, Any, Method]:
        """Load the policy, and what the objective and the reward need.

        Raises:
            ValueError: If options don't fit together, or a part can't be loaded.
        """
        reward = build_reward(options, folder=options.out)
        model, processor = load_policy(options)
        switch_dropout_off(model)
        learner = build_learner(options, model, processor)
        return model, processor, cls(processor, options, learner=learner, reward=reward, seed=options.seed)

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """Name the objectives and the reward."""
        return f" with {' + '.join(options['objective'])} on {options['samples']} answers per prompt, rewarded by {options['reward']}"

    def _read(self, raw: Mapping[str, Any], index: int = 0) -> _Row:
        question = read_question(raw, index=index, image_root=self.options.image_root)
        return _Row(question, encode_questions(self.processor, images=question.images, prompts=[question.prompt]), raw)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode and tokenise the question, and ask the reward about it."""
        length, most = len(self._read(raw, index).prompt_ids) + self.options.max_new_tokens, self.options.max_length
        if most is not None and length > most:
            raise UserError(f"prompt and longest answer take {length} tokens (images included), more than max_length {most}")
        self.reward.check(raw, index=index)

    def check_inputs(self) -> Mapping[str, Any]:
        """How questions are read, and what the reward looks at."""
        reading = describe_reading(self.processor, self.options, answer_end=self.options.answer_end)
        reward = [self.options.reward, self.reward.check_inputs()]
        return {**reading, "max_new_tokens": self.options.max_new_tokens, "reward": reward}

    def callbacks(self, checkpoint: Path | None) -> list[TrainerCallback]:
        """The objective's, and what keeps answers that several steps learn from."""
        held = [HeldAnswersCallback(self._held, checkpoint=checkpoint)] if self.passes > 1 else []
        return [*self.learner.callbacks(checkpoint), *held]

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how questions are answered, and how answers are laid out: see ``probe_prefix`` and ``probe_rows``.

        Raises:
            ValueError: If the model's own numbers can't be had.
        """
        read = [self._read(row) for row in rows[:PROBED_ROWS]]
        told = self._sampler.start(model, read[0].encoded)
        kind = answer_type(self.processor)
        said = self._sampler.answer(model, [row.encoded for row in read], self._seeds(read, step=0))
        answered = [with_answers(row.encoded, answers, token_type=kind) for row, answers in zip(read, said, strict=True)]
        choice = probe_rows(model, answered, pad_token_id=self.processor.tokenizer.pad_token_id)
        self.learner.shared = choice.shared
        sampled = f"the policy gives {self.options.samples} answers per prompt, of {self.options.max_new_tokens:,} tokens at most"
        return f"{sampled}; {told}\n{choice.describe(self.learner.options.row_tokens)}"

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenise questions; what is laid out is only known once they are answered."""
        return {"rows": [self._read(row) for row in rows]}

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Answer the questions and score the answers, where that was not done at a step before, and lay them out.

        Raises:
            ValueError: If a reward is not finite, or the objective can't use it.
        """
        rows: list[_Row] = batch["rows"]
        seeds = self._seeds(rows, step=self._held.begin(step))
        held = self._held.find(seeds) or self._held.keep(seeds, self._ask(model, rows, seeds))
        groups = self._groups(rows, held.answers)
        learned = [self._learned(*parts) for parts in zip(rows, held.answers, held.rewards, strict=True)]
        told = collate_metrics(groups, held.answers, held.rewards, learned)
        return self.learner.lay_out(learned) | {"online": told, "held": held}

    def _ask(self, model: nn.Module, rows: Sequence[_Row], seeds: Sequence[int]) -> Held:
        answers = self._sampler.answer(model, [row.encoded for row in rows], seeds)
        rewards = score_groups(self.reward, self._groups(rows, answers), name=self.options.reward)
        if not self._warned and all(value is None for group in rewards for value in group):
            self._warned = True
            count, first = sum(map(len, rewards)), rows[0].question.id
            logger.warning(
                "reward %s scored none of %d answers (row %s ...), so that nothing is learned from them; a training goes on so without "
                "another word: look at online/unscored",
                self.options.reward,
                count,
                first,
            )
        return Held(answers, rewards)

    def _seeds(self, rows: Sequence[_Row], *, step: int) -> list[int]:
        return [draw(self._seed, step, row.encoded).seed for row in rows]

    def _groups(self, rows: Sequence[_Row], answers: Sequence[Sequence[Generated]]) -> list[Group]:
        return [self._group(row, said) for row, said in zip(rows, answers, strict=True)]

    def _group(self, row: _Row, answers: Sequence[Generated]) -> Group:
        return read_group(self.processor, row.question, row.raw, prompt=row.prompt_ids, answers=[answer.ids for answer in answers])

    def _learned(self, row: _Row, answers: Sequence[Generated], rewards: Rewards) -> Answered:
        """What the objective sees of a group; where fewer than two answers are left, two that count alike and teach nothing."""
        kept = [
            (answer, value)
            for answer, value in zip(answers, rewards, strict=True)
            if value is not None and (answer.end is not None or self.options.cut == "keep")
        ]
        if len(kept) < 2:
            return Answered(row.encoded, answers[:2], [0.0, 0.0])
        scores = mark_right([value for _, value in kept], self.options.correct)
        scores = win_rates(scores) if self.options.win_rates else scores
        try:
            self.learner.check_scores(scores)
        except UserError as error:
            raise UserError(
                f"row {row.question.id}, reward {self.options.reward}: {error}; --correct X makes rewards right or wrong"
            ) from error
        return Answered(row.encoded, [answer for answer, _ in kept], scores)

    def num_items(self, batch: dict[str, Any]) -> int:
        """Prompts."""
        return self.learner.num_items(batch)

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """The objective's loss over the prompts; groups whose answers have one score add 0 and count."""
        output = self.learner.compute(model, {key: value for key, value in batch.items() if key != "online"})
        sampled = {f"online/{name}": Sum(values.sum(), len(values)) for name, values in batch["online"].items()}
        return MethodOutput(output.loss_sum, output.metrics | sampled)


def collate_metrics(
    groups: Sequence[Group], answers: Sequence[Sequence[Generated]], rewards: Sequence[Rewards], learned: Sequence[Answered]
) -> dict[str, Tensor]:
    """Say what was sampled.

    Returns:
        A value for each group, answer or token, whose mean is logged. ``reward``: of answers that could be scored; ``unscored``: the
        share of those that could not; ``alike``: groups whose answers have one score, which teach nothing; ``length`` in tokens;
        ``cut``: answers that did not end at the longest length; ``empty``: answers without words; ``entropy``: -log p of each token under
        the policy, whose mean estimates its entropy where it samples at temperature 1.
    """
    said = [answer for group in answers for answer in group]
    given = [value for group in rewards for value in group]
    texts = [text for group in groups for text in group.responses]
    values: dict[str, list[Any]] = {
        "reward": [value for value in given if value is not None],
        "unscored": [value is None for value in given],
        "alike": [len(set(group.scores)) == 1 for group in learned],
        "length": [len(answer.tokens) for answer in said],
        "cut": [answer.end is None for answer in said],
        "empty": [not text.strip() for text in texts],
        "entropy": [-logp for answer in said for logp in answer.model_logps or []],
    }
    return {name: torch.tensor(held, dtype=torch.float32) for name, held in values.items()}
