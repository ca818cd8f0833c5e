"""Preference training over (images, prompt, chosen, rejected): any objective of the family, or a weighted sum of several.

Shape legend: B = preference pairs in the batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn

from mmalign.data.encode import EncodedPrompt, encode_row
from mmalign.data.rows import PAIR_COLUMNS, read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.method import MethodOutput, Sum
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.engine.processes import mean_over_processes
from mmalign.errors import UserError
from mmalign.losses.coefficients import BETA_MODES, DifficultyMode, difficulty_coefficients
from mmalign.losses.kernel import PairBatch, PairObjective, PairValues, chosen_nll, compute_rewards, objective_loss
from mmalign.losses.objectives import PAIR_OBJECTIVES, VISITS
from mmalign.losses.registry import Named
from mmalign.methods.cached_reference import CachedReference
from mmalign.methods.forward import compute_policy_and_reference
from mmalign.methods.pair_selection import FLIPPED, LABEL_FLIP, swap_sides
from mmalign.methods.preference_metrics import describe_start, difficulty_quartiles, reward_metrics
from mmalign.models.references import Reference
from mmalign.options.rows import AnswerEnd

_COEFFICIENTS = ("pair_beta_scale", "pair_weight")
_QUARTILE = "difficulty_quartile"


@dataclass(frozen=True)
class PreferenceConfig:
    """How pairs become a loss."""

    objectives: tuple[str, ...] = ("dpo",)
    """Names with parameters, as ``losses.registry`` reads them; several are summed."""
    beta: float | None = None
    """Beta of every objective that has one and is not given its own; None: each one's default."""
    difficulty_mode: DifficultyMode = "off"
    center_rewards: bool = False
    """Subtract from the rewards their means on the first rows before training, those of chosen and rejected responses apart."""
    sft_weight: float = 0.0
    """Weight of the chosen response's mean negative log-likelihood, added to each pair's loss (RPO, arXiv:2404.19733, eq. 2)."""
    max_length: int | None = None
    answer_end: AnswerEnd = "token"
    row_tokens: int | None = None
    """Pack several pairs into rows of about this many tokens; None: a row a pair."""

    def __post_init__(self) -> None:
        """Refuse objectives that can't be built, and rows of no length.

        Raises:
            ValueError: With the objective, its parameter and what was expected, or if row_tokens is not positive.
        """
        named = self.build_objectives()
        without = [one.name for one in named if "beta" not in PAIR_OBJECTIVES.parameters(one.name)]
        if self.difficulty_mode in BETA_MODES and without:
            raise UserError(f"difficulty_mode {self.difficulty_mode!r} changes beta, and {without[0]} has none; use 'loss-weight' or 'off'")
        if self.row_tokens is not None and self.row_tokens < 1:
            raise UserError(f"row_tokens is {self.row_tokens}; expected a number of tokens, such as 4096")

    def build_objectives(self) -> tuple[Named[PairObjective], ...]:
        """Build what is summed; rewards are logged as the first one has them."""
        return PAIR_OBJECTIVES.parse_sum(self.objectives, beta=self.beta)


class PreferenceMethod:
    """DPO (arXiv:2305.18290) and its family, with DA-DPO's difficulty (arXiv:2601.00623) on any of them."""

    name = "preference"

    def __init__(
        self,
        processor: Any,
        config: PreferenceConfig,
        *,
        reference: Reference | None,
        reference_fingerprint: str | None = None,
        image_root: Path | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            processor: The policy's processor.
            config: The objectives and the use of difficulty.
            reference: The frozen model; None reads cached log-probabilities from the rows, where an objective asks for them.
            reference_fingerprint: What the cached ones must come from; see ``fingerprint_checkpoint``.
            image_root: Folder that relative image paths start from.

        Raises:
            ValueError: If there is a reference and no objective has use for it.
        """
        self.objectives = config.build_objectives()
        with_reference = [named for named in self.objectives if named.objective.uses_reference]
        if reference is not None and not with_reference:
            raise UserError(f"objective {self.objectives[0].name} compares with no reference; leave the reference out")
        by_token = any(named.objective.score.needs_tokens for named in with_reference)
        cached = reference is None and bool(with_reference)
        self.cached = CachedReference(reference_fingerprint, by_token=by_token) if cached else None
        self.objective_columns = tuple(dict.fromkeys(name for one in self.objectives for name in one.objective.columns))
        self.columns = (*PAIR_COLUMNS, *self.objective_columns)
        self.processor = processor
        self.config = config
        self.reference = reference
        self.image_root = image_root
        self.shared = True
        self._pair_columns = [*_COEFFICIENTS, *self.objective_columns]
        self._centers: dict[str, tuple[float, float]] = {}

    def prepare(self, dataset: Dataset) -> Dataset:
        """Add each pair's beta, weight and difficulty quartile as columns, computed once over all pairs that are trained on.

        Raises:
            ValueError: If the mode needs a difficulty and there is none, or cached log-probabilities are missing or stale.
        """
        if self.cached is not None:
            self.cached.check_dataset(dataset)
        has_difficulty = "difficulty" in dataset.column_names
        if not has_difficulty and self.config.difficulty_mode != "off":
            raise UserError(
                f"difficulty_mode is {self.config.difficulty_mode!r} and the data set has no column difficulty: "
                "run mmalign score-difficulty first and train on its scored.parquet"
            )
        difficulty = torch.tensor(dataset["difficulty"] if has_difficulty else [0.5] * len(dataset), dtype=torch.float64)
        coefficients = difficulty_coefficients(difficulty, beta=1.0, mode=self.config.difficulty_mode)
        for name, values in zip(_COEFFICIENTS, (coefficients.beta, coefficients.weight), strict=True):
            dataset = dataset.add_column(name, values.tolist())
        if has_difficulty:
            dataset = dataset.add_column(_QUARTILE, difficulty_quartiles(difficulty).tolist())
        present = [name for name in (_QUARTILE, LABEL_FLIP) if name in dataset.column_names]
        self._pair_columns = [*_COEFFICIENTS, *present, *self.objective_columns]
        return dataset

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        row = read_pair(raw, index=index, image_root=self.image_root)
        return encode_row(self.processor, row, answer_end=self.config.answer_end, max_length=self.config.max_length)

    def _encode_checked(self, raw: Mapping[str, Any]) -> EncodedPrompt:
        encoded = self._encode(raw)
        if self.cached is not None:
            self.cached.check_text(raw, encoded)
        # Only now: cached log-probabilities are of the responses in the order in which they stand in the data.
        return encoded.reverse_responses() if raw.get(FLIPPED) else encoded

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Check the row's numbers, decode and tokenise it."""
        if "difficulty" in raw and not (_is_number(raw["difficulty"]) and 0.0 <= raw["difficulty"] <= 1.0):
            raise UserError(f"difficulty is {raw['difficulty']!r}; expected a number in [0, 1]: score the pairs again")
        for name in self.objective_columns:
            if not (_is_number(raw[name]) and math.isfinite(raw[name]) and (name not in VISITS or raw[name] >= 0)):
                raise UserError(f"{name} is {raw[name]!r}; expected a finite number{' from 0' if name in VISITS else ''}")
        if self.cached is not None:
            self.cached.check(raw)
        self._encode(raw, index)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how pairs are laid out: see ``probe_rows``.

        Raises:
            ValueError: If the model's own numbers can't be had, or the first rows' cached log-probabilities are of other texts.
        """
        choice = probe_rows(
            model, [self._encode_checked(row) for row in rows[:PROBED_ROWS]], pad_token_id=self.processor.tokenizer.pad_token_id
        )
        self.shared = choice.shared
        if len(rows) <= PROBED_ROWS and not self.config.center_rewards:
            return choice.reason
        first = self._measure_start(model, rows)
        if self.config.center_rewards:
            # A run that goes on asks the same model, the one before its first step.
            self._centers = {name: (values.chosen.mean().item(), values.rejected.mean().item()) for name, values in first.items()}
        objective = self.objectives[0]
        return "\n".join([choice.reason, *describe_start(objective.objective, first[objective.name])])

    def _measure_start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> dict[str, PairValues]:
        """Compute each objective's rewards before the first step, without beta, one row at a time."""
        was_training = model.training
        model.eval()
        found: dict[str, list[PairValues]] = {named.name: [] for named in self.objectives}
        try:
            for row in rows:
                batch = send_to_device(self.collate([row]), next(model.parameters()).device)
                with torch.no_grad():
                    pairs = self._pairs(model, batch)
                    for named in self.objectives:
                        found[named.name].append(compute_rewards(named.objective, pairs))
        finally:
            model.train(was_training)
        return {name: PairValues(*(torch.cat(side) for side in zip(*values, strict=True))) for name, values in found.items()}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row a pair, or one a response where they can't share it, with the pair's columns beside it under ``pairs``, each (B,)."""
        encoded = [self._encode_checked(row) for row in rows]
        row_tokens = self.config.row_tokens if self.shared else None
        batch = collate_prompts(encoded, pad_token_id=self.processor.tokenizer.pad_token_id, shared=self.shared, row_tokens=row_tokens)
        rows = [swap_sides(row) if row.get(FLIPPED) else row for row in rows]
        if self.cached is not None:
            batch["reference"] = self.cached.collate(rows)
        batch["pairs"] = {name: torch.tensor([row[name] for row in rows]) for name in self._pair_columns}
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Pairs."""
        return len(batch["pairs"]["pair_weight"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the objectives over the pairs; rewards are logged with the plain beta, so that difficulty modes can be compared."""
        pairs = self._pairs(model, batch)
        rewards = {named.name: compute_rewards(named.objective, pairs) for named in self.objectives}
        losses = {
            named.name: objective_loss(named.objective, pairs, rewards=self._centered(named.name, rewards[named.name]))
            for named in self.objectives
        }
        total = torch.stack([named.weight * losses[named.name] for named in self.objectives]).sum(0)
        if self.config.sft_weight:
            total = total + self.config.sft_weight * chosen_nll(pairs)
        first = self.objectives[0]
        metrics = reward_metrics(first.objective, pairs, rewards[first.name])
        if len(losses) > 1:
            metrics |= {f"loss/{name}": Sum(values.detach().sum(), len(values)) for name, values in losses.items()}
        return MethodOutput(total.sum(), metrics)

    def _centered(self, name: str, rewards: PairValues) -> PairValues:
        chosen, rejected = self._centers.get(name, (0.0, 0.0))
        return PairValues(rewards.chosen - chosen, rewards.rejected - rejected)

    def _pairs(self, model: nn.Module, batch: dict[str, Any]) -> PairBatch:
        """Run policy and reference."""
        inputs = {key: value for key, value in batch.items() if key not in ("pairs", "reference")}
        outcome, expected = compute_policy_and_reference(model, inputs, self.reference)
        reference = expected if self.cached is None else self.cached.logps(batch["reference"], outcome.scored)
        columns = batch["pairs"]
        scale, weight = columns["pair_beta_scale"], columns["pair_weight"]
        flip = columns.get(LABEL_FLIP, 0.0)
        return PairBatch(
            outcome.scored,
            outcome,
            reference,
            columns,
            beta_scale=scale,
            weight=weight,
            label_flip=flip,
            mean=mean_over_processes,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
