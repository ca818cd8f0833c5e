"""Preference training over (images, prompt, chosen, rejected): any objective of the family, or a weighted sum of several.

Shape legend: B = preference pairs in the batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import PAIR_COLUMNS, check_columns, read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import ResponseLogps
from mmalign.engine.method import MethodOutput, Sum
from mmalign.engine.probe import probe_rows
from mmalign.losses.coefficients import DifficultyMode, difficulty_coefficients
from mmalign.losses.kernel import PairBatch, PairObjective, chosen_nll, compute_rewards, objective_loss
from mmalign.losses.objectives import PAIR_OBJECTIVES, VISITS
from mmalign.losses.registry import Named
from mmalign.losses.scores import Logps
from mmalign.methods.forward import as_logps, compute_policy_and_reference, scored_tokens
from mmalign.models.references import Reference

REFERENCE_COLUMNS = ("reference_logps_chosen", "reference_logps_rejected")
REFERENCE_TOKEN_COLUMNS = ("reference_token_logps_chosen", "reference_token_logps_rejected")
NUM_QUARTILES = 4


@dataclass(frozen=True)
class PreferenceConfig:
    """How pairs become a loss."""

    objectives: tuple[str, ...] = ("dpo",)
    """Names with parameters, as ``losses.registry`` reads them; several are summed."""
    beta: float | None = None
    """Beta of every objective that has one and is not given its own; None: each one's default."""
    difficulty_mode: DifficultyMode = "off"
    sft_weight: float = 0.0
    """Weight of the chosen response's mean negative log-likelihood, added to each pair's loss (RPO, arXiv:2404.19733, eq. 2)."""
    max_length: int | None = None
    row_tokens: int | None = None
    """Pack several pairs into rows of about this many tokens; None: a row a pair."""

    def __post_init__(self) -> None:
        """Refuse objectives that can't be built, and rows of no length.

        Raises:
            ValueError: With the objective, its parameter and what was expected, or if row_tokens is not positive.
        """
        named = self.build_objectives()
        without = [one.name for one in named if "beta" not in PAIR_OBJECTIVES.parameters(one.name)]
        if self.difficulty_mode in ("paper", "paper-norm") and without:
            raise ValueError(
                f"difficulty_mode {self.difficulty_mode!r} changes beta, and {without[0]} has none; use 'loss-weight' or 'off'"
            )
        if self.row_tokens is not None and self.row_tokens < 1:
            raise ValueError(f"row_tokens is {self.row_tokens}; expected a number of tokens, such as 4096")

    def build_objectives(self) -> tuple[Named[PairObjective], ...]:
        """Build what is summed; rewards are logged as the first one has them."""
        return PAIR_OBJECTIVES.parse_sum(self.objectives, beta=self.beta)


class PreferenceMethod:
    """DPO (arXiv:2305.18290) and its family, with DA-DPO's difficulty (arXiv:2601.00623) on any of them."""

    name = "preference"

    def __init__(self, processor: Any, config: PreferenceConfig, *, reference: Reference | None, image_root: Path | None = None) -> None:
        """Keep the parts.

        Args:
            processor: The policy's processor.
            config: The objectives and the use of difficulty.
            reference: The frozen model; None reads cached log-probabilities from the rows, where an objective asks for them.
            image_root: Folder that relative image paths start from.

        Raises:
            ValueError: If there is a reference and no objective has use for it.
        """
        self.objectives = config.build_objectives()
        with_reference = [named for named in self.objectives if named.objective.uses_reference]
        if reference is not None and not with_reference:
            raise ValueError(f"objective {self.objectives[0].name} compares with no reference; leave the reference out")
        self.cached_columns: tuple[str, ...] = ()
        if reference is None and with_reference:
            by_token = any(named.objective.score.needs_tokens for named in with_reference)
            self.cached_columns = REFERENCE_TOKEN_COLUMNS if by_token else REFERENCE_COLUMNS
        self.objective_columns = tuple(dict.fromkeys(name for one in self.objectives for name in one.objective.columns))
        self.columns = (*PAIR_COLUMNS, *self.objective_columns)
        self.processor = processor
        self.config = config
        self.reference = reference
        self.image_root = image_root
        self.shared = True
        self._has_quartiles = False

    def prepare(self, dataset: Dataset) -> Dataset:
        """Add each pair's beta, weight and difficulty quartile as columns, computed once over the whole data set.

        Raises:
            ValueError: If the mode needs a difficulty and there is none, or cached log-probabilities are missing.
        """
        check_columns(dataset.column_names, self.cached_columns, what="the data set, for reference 'cached',")
        has_difficulty = "difficulty" in dataset.column_names
        if not has_difficulty and self.config.difficulty_mode != "off":
            raise ValueError(
                f"difficulty_mode is {self.config.difficulty_mode!r} and the data set has no column difficulty: "
                "run mmalign score-difficulty first and train on its scored.parquet"
            )
        difficulty = torch.tensor(dataset["difficulty"] if has_difficulty else [0.5] * len(dataset), dtype=torch.float64)
        coefficients = difficulty_coefficients(difficulty, beta=1.0, mode=self.config.difficulty_mode)
        dataset = dataset.add_column("pair_beta_scale", coefficients.beta.tolist())
        dataset = dataset.add_column("pair_weight", coefficients.weight.tolist())
        if has_difficulty:
            dataset = dataset.add_column("difficulty_quartile", difficulty_quartiles(difficulty).tolist())
        self._has_quartiles = has_difficulty
        return dataset

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        row = read_pair(raw, index=index, image_root=self.image_root)
        return encode_responses(
            self.processor,
            images=row.images,
            prompt=row.prompt,
            responses=[row.chosen, row.rejected],
            max_length=self.config.max_length,
        )

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Check the row's numbers, decode it, and tokenise it where its length is limited."""
        if "difficulty" in raw and not (_is_number(raw["difficulty"]) and 0.0 <= raw["difficulty"] <= 1.0):
            raise ValueError(f"difficulty is {raw['difficulty']!r}; expected a number in [0, 1]: score the pairs again")
        for name in self.objective_columns:
            if not (_is_number(raw[name]) and math.isfinite(raw[name]) and (name not in VISITS or raw[name] >= 0)):
                raise ValueError(f"{name} is {raw[name]!r}; expected a finite number{' from 0' if name in VISITS else ''}")
        for name in self.cached_columns:
            values = raw.get(name, [])
            if not all(_is_number(value) and math.isfinite(value) for value in (values if isinstance(values, list) else [values])):
                raise ValueError(f"{name} is {values!r}; expected a finite log-probability: score the pairs again")
        if self.cached_columns == REFERENCE_TOKEN_COLUMNS:
            self._check_lengths(raw, self._encode(raw, index))
        elif self.config.max_length is None:
            read_pair(raw, index=index, image_root=self.image_root)
        else:
            self._encode(raw, index)

    def _check_lengths(self, raw: Mapping[str, Any], encoded: EncodedPrompt) -> None:
        for name, scored in zip(REFERENCE_TOKEN_COLUMNS, encoded.scored, strict=True):
            if name in raw and len(raw[name]) != sum(scored):
                raise ValueError(f"{name} has {len(raw[name])} values for {sum(scored)} tokens: score the pairs again with this tokenizer")

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how pairs are laid out: see ``probe_rows``."""
        choice = probe_rows(model, [self._encode(row) for row in rows], pad_token_id=self.processor.tokenizer.pad_token_id)
        self.shared = choice.shared
        return choice.reason

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row a pair, or one a response where they can't share it, with the pair's columns beside it under ``pairs``, each (B,)."""
        encoded = [self._encode(row) for row in rows]
        row_tokens = self.config.row_tokens if self.shared else None
        batch = collate_prompts(encoded, pad_token_id=self.processor.tokenizer.pad_token_id, shared=self.shared, row_tokens=row_tokens)
        columns = ["pair_beta_scale", "pair_weight", *(["difficulty_quartile"] if self._has_quartiles else []), *self.objective_columns]
        if self.cached_columns == REFERENCE_TOKEN_COLUMNS:
            batch["reference"] = torch.tensor([value for row in rows for name in self.cached_columns for value in row[name]])
        elif self.cached_columns:
            batch["reference"] = torch.tensor([row[name] for row in rows for name in self.cached_columns])
        batch["pairs"] = {name: torch.tensor([row[name] for row in rows]) for name in columns}
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Pairs."""
        return len(batch["pairs"]["pair_weight"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the objectives over the pairs; rewards are logged with the plain beta, so that difficulty modes can be compared."""
        inputs = {key: value for key, value in batch.items() if key not in ("pairs", "reference")}
        outcome, expected = compute_policy_and_reference(model, inputs, self.reference)
        tokens = scored_tokens(outcome, batch["layout"]["target"])
        reference = None if expected is None else as_logps(expected)
        if self.cached_columns == REFERENCE_TOKEN_COLUMNS:
            reference = Logps(tokens.sums(batch["reference"]), batch["reference"])
        elif self.cached_columns:
            reference = Logps(batch["reference"])
        columns = batch["pairs"]
        pairs = PairBatch(
            tokens, as_logps(outcome), reference, columns, beta_scale=columns["pair_beta_scale"], weight=columns["pair_weight"]
        )
        losses = {named.name: objective_loss(named.objective, pairs) for named in self.objectives}
        total = sum((named.weight * losses[named.name] for named in self.objectives), self.config.sft_weight * chosen_nll(pairs))
        metrics = self._metrics(pairs, outcome)
        if len(losses) > 1:
            metrics |= {f"loss/{name}": Sum(values.detach().sum(), len(values)) for name, values in losses.items()}
        return MethodOutput(total.sum(), metrics)

    @torch.no_grad()
    def _metrics(self, pairs: PairBatch, outcome: ResponseLogps) -> dict[str, Sum]:
        objective = self.objectives[0].objective
        rewards, columns = compute_rewards(objective, pairs), pairs.columns
        count = len(rewards.chosen)
        chosen, rejected = objective.beta * rewards.chosen, (objective.beta_rejected or objective.beta) * rewards.rejected
        margin, right = chosen - rejected, (chosen > rejected).float()
        logps, lengths = pairs.policy.sums.view(-1, 2).sum(0), outcome.lengths().view(-1, 2).sum(0)
        metrics = {
            "rewards/chosen": Sum(chosen.sum(), count),
            "rewards/rejected": Sum(rejected.sum(), count),
            "rewards/margin": Sum(margin.sum(), count),
            "rewards/accuracy": Sum(right.sum(), count),
            "logps/chosen_per_token": Sum(logps[0], lengths[0]),
            "logps/rejected_per_token": Sum(logps[1], lengths[1]),
            "difficulty/beta": Sum(objective.beta * columns["pair_beta_scale"].sum(), count),
        }
        if "difficulty_quartile" in columns:
            for number in range(1, NUM_QUARTILES + 1):
                inside = (columns["difficulty_quartile"] == number).float()
                metrics[f"rewards/margin_q{number}"] = Sum((margin * inside).sum(), inside.sum())
                metrics[f"rewards/accuracy_q{number}"] = Sum((right * inside).sum(), inside.sum())
        return metrics


def difficulty_quartiles(difficulty: Tensor) -> Tensor:
    """Number the quarter that each pair falls in by rank, 1 = easiest; ties go by position, so quarters are equal in size.

    Args:
        difficulty: (B,) of the whole data set.

    Returns:
        (B,) integers from 1 to 4.
    """
    rank = torch.empty(len(difficulty), dtype=torch.long)
    rank[difficulty.argsort(stable=True)] = torch.arange(len(difficulty))
    return 1 + NUM_QUARTILES * rank // max(1, len(difficulty))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
