"""Preference training over several scored responses of each prompt: (images, prompt, responses, scores).

Shape legend: B = prompts in the batch, N = most responses of a prompt, R = responses in the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt, encode_row
from mmalign.data.rows import LIST_COLUMNS, ListRow, read_list
from mmalign.engine.batch import collate_prompts
from mmalign.engine.method import MethodOutput, Sum
from mmalign.engine.probe import probe_rows
from mmalign.errors import UserError
from mmalign.losses.list_objectives import LIST_OBJECTIVES, ListBatch, ListObjective, compute_list_rewards, list_objective_loss, pad_lists
from mmalign.losses.registry import Named
from mmalign.losses.steps import StepKind
from mmalign.methods.cached_reference import CachedReference
from mmalign.methods.forward import compute_policy_and_reference
from mmalign.models.references import Reference
from mmalign.options.rows import AnswerEnd


@dataclass(frozen=True)
class ListwiseConfig:
    """How lists become a loss."""

    objectives: tuple[str, ...] = ("adpo",)
    """Names with parameters, as ``losses.registry`` reads them; several are summed."""
    beta: float | None = None
    """Beta of every objective that has one and is not given its own; None: each one's default."""
    max_length: int | None = None
    answer_end: AnswerEnd = "token"
    row_tokens: int | None = None
    """Pack several prompts into rows of about this many tokens; None: a row a prompt."""

    def __post_init__(self) -> None:
        """Refuse objectives that can't be built, and rows of no length.

        Raises:
            ValueError: With the objective, its parameter and what was expected, or if row_tokens is not positive.
        """
        self.build_objectives()
        if self.row_tokens is not None and self.row_tokens < 1:
            raise UserError(f"row_tokens is {self.row_tokens}; expected a number of tokens, such as 4096")

    def build_objectives(self) -> tuple[Named[ListObjective], ...]:
        """Build what is summed; rewards are logged as the first one has them."""
        return LIST_OBJECTIVES.parse_sum(self.objectives, beta=self.beta)


class ListwiseMethod:
    """ADPO, Plackett-Luce, in-context ranking and preference trees; a pair is a list of two."""

    name = "listwise"
    columns = LIST_COLUMNS

    def __init__(
        self,
        processor: Any,
        config: ListwiseConfig,
        *,
        reference: Reference | None,
        reference_fingerprint: str | None = None,
        image_root: Path | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            processor: The policy's processor.
            config: The objectives.
            reference: The frozen model; None reads cached log-probabilities from the rows.
            reference_fingerprint: What the cached ones must come from; see ``fingerprint_checkpoint``.
            image_root: Folder that relative image paths start from.

        Raises:
            ValueError: If log-probabilities are cached and an objective weights tokens.
        """
        self.processor = processor
        self.config = config
        self.objectives = config.build_objectives()
        by_token = [named.name for named in self.objectives if named.objective.needs_tokens]
        if reference is None and by_token:
            raise UserError(f"objective {by_token[0]} weights tokens, and lists are cached as sums; use reference 'copy' or 'adapter-off'")
        self.cached = CachedReference(reference_fingerprint, by_token=False, lists=True) if reference is None else None
        self.reference = reference
        self.image_root = image_root
        self.steps = sorted({named.objective.steps for named in self.objectives} - {"whole"})
        self.shared = True

    def prepare(self, dataset: Dataset) -> Dataset:
        """Check that cached log-probabilities are there and come from the reference.

        Raises:
            ValueError: If they are missing or stale.
        """
        if self.cached is not None:
            self.cached.check_dataset(dataset)
        return dataset

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        return self._encode_row(read_list(raw, index=index, image_root=self.image_root))

    def _encode_row(self, row: ListRow) -> EncodedPrompt:
        return encode_row(self.processor, row, answer_end=self.config.answer_end, max_length=self.config.max_length)

    def _encode_checked(self, raw: Mapping[str, Any]) -> EncodedPrompt:
        encoded = self._encode(raw)
        if self.cached is not None:
            self.cached.check_text(raw, encoded)
        return encoded

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row, look at its scores, and tokenise it."""
        if self.cached is not None:
            self.cached.check(raw)
        row = read_list(raw, index=index, image_root=self.image_root)
        for named in self.objectives:
            low, high = named.objective.score_range
            outside = [score for score in row.scores if not low <= score <= high]
            if outside:
                raise UserError(f"scores hold {outside[0]:g}; objective {named.name} expects {low:g} to {high:g}: rescale them")
        self._encode_row(row)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how lists are laid out: see ``probe_rows``."""
        choice = probe_rows(model, [self._encode_checked(row) for row in rows], pad_token_id=self.processor.tokenizer.pad_token_id)
        self.shared = choice.shared
        return choice.reason

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row a prompt with all its responses, or one a response where they can't share it; ``scores`` (R,) beside it."""
        row_tokens = self.config.row_tokens if self.shared else None
        encoded, pad = [self._encode_checked(row) for row in rows], self.processor.tokenizer.pad_token_id
        batch = collate_prompts(encoded, pad_token_id=pad, shared=self.shared, row_tokens=row_tokens)
        if self.cached is not None:
            batch["reference"] = self.cached.collate(rows)
        batch["scores"] = torch.tensor([float(score) for row in rows for score in row["scores"]])
        if self.steps:
            target = batch["layout"]["target"]
            batch["step_ends"] = {steps: find_step_ends(self.processor.tokenizer, target, steps) for steps in self.steps}
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Prompts."""
        return len(batch["layout"]["repeats"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the objectives over the prompts."""
        inputs = {key: value for key, value in batch.items() if key not in ("scores", "reference", "step_ends")}
        outcome, expected = compute_policy_and_reference(model, inputs, self.reference, keep_states=bool(self.steps))
        reference = expected if self.cached is None else self.cached.logps(batch["reference"], outcome.scored)
        assert reference is not None
        lists = ListBatch(
            outcome.scored,
            outcome,
            reference,
            batch["layout"]["repeats"],
            batch["scores"],
            states=outcome.states,
            step_ends=batch.get("step_ends", {}),
        )
        rewards = {named.name: compute_list_rewards(named.objective, lists) for named in self.objectives}
        losses = {named.name: list_objective_loss(named.objective, lists, rewards=rewards[named.name]) for named in self.objectives}
        total = torch.stack([named.weight * losses[named.name] for named in self.objectives]).sum(0)
        metrics = list_metrics(rewards[self.objectives[0].name], batch["scores"], lists.counts)
        if len(losses) > 1:
            metrics |= {f"loss/{name}": Sum(values.detach().sum(), len(values)) for name, values in losses.items()}
        return MethodOutput(total.sum(), metrics)


def find_step_ends(tokenizer: Any, token_ids: Tensor, steps: StepKind) -> Tensor:
    """Find the tokens that end a step by their text.

    Args:
        tokenizer: What the ids are of.
        token_ids: (K,) of any responses.
        steps: ``lines``: a token with a line break ends one. ``sentences``: so does one that ends with a full stop, an exclamation or
            a question mark.

    Returns:
        (K,) booleans.
    """
    known, which = token_ids.unique(return_inverse=True)
    texts = [tokenizer.decode([token]) for token in known.tolist()]
    marks = (".", "!", "?") if steps == "sentences" else ()
    return torch.tensor(["\n" in text or text.rstrip().endswith(marks) for text in texts])[which]


@torch.no_grad()
def list_metrics(rewards: Tensor, scores: Tensor, counts: Tensor) -> dict[str, Sum]:
    """Compare the order of rewards with that of scores.

    Args:
        rewards: (R,) implicit rewards.
        scores: (R,) the data's.
        counts: (B,) responses of each prompt.

    Returns:
        ``rewards/margin``: reward of the best response by score - of the worst one; ``rewards/accuracy``: share of the pairs with
        different scores that the rewards order alike; ``rewards/top1``: share of prompts whose best response has the highest reward.
    """
    padded, mask = pad_lists(rewards, counts)
    values, _ = pad_lists(scores, counts)
    best, worst = values.masked_fill(~mask, -torch.inf).argmax(1), values.masked_fill(~mask, torch.inf).argmin(1)
    margin = padded.gather(1, best[:, None]) - padded.gather(1, worst[:, None])
    better = (values[:, :, None] > values[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    right = better & (padded[:, :, None] > padded[:, None, :])
    top = padded.masked_fill(~mask, -torch.inf).argmax(1) == best
    return {
        "rewards/margin": Sum(margin.sum(), len(margin)),
        "rewards/accuracy": Sum(right.sum(), better.sum()),
        "rewards/top1": Sum(top.sum(), len(top)),
    }
