"""Direct preference optimisation over (images, prompt, chosen, rejected), with a beta or weight for each pair.

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
from mmalign.engine.logps import ResponseLogps, compute_response_logps, unwrap, unwrap_parallel
from mmalign.engine.method import MethodOutput, Sum
from mmalign.engine.probe import probe_rows
from mmalign.engine.reference_cache import FINGERPRINT, LOGPS, TEXT, check_fingerprint, check_text
from mmalign.engine.vision import ImageFeatures, encode_frozen_images, vision_is_frozen
from mmalign.losses.preference import DifficultyMode, PairLogps, difficulty_coefficients, dpo_loss
from mmalign.models.references import Reference

NUM_QUARTILES = 4


@dataclass(frozen=True)
class PreferenceConfig:
    """How pairs become a loss."""

    beta: float = 0.1
    difficulty_mode: DifficultyMode = "off"
    sft_weight: float = 0.0
    """Weight of the chosen response's mean negative log-likelihood, added to each pair's loss (RPO, arXiv:2404.19733, eq. 2)."""
    max_length: int | None = None
    row_tokens: int | None = None
    """Pack several pairs into rows of about this many tokens; None: a row a pair."""

    def __post_init__(self) -> None:
        """Refuse a beta that would turn the preference round, and rows of no length.

        Raises:
            ValueError: If beta or row_tokens is not positive.
        """
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive number, such as 0.1")
        if self.row_tokens is not None and self.row_tokens < 1:
            raise ValueError(f"row_tokens is {self.row_tokens}; expected a number of tokens, such as 4096")


class PreferenceMethod:
    """DPO (arXiv:2305.18290) and DA-DPO (arXiv:2601.00623)."""

    name = "preference"
    columns = PAIR_COLUMNS

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
            config: Beta and the use of difficulty.
            reference: The frozen model; None reads cached log-probabilities from the rows.
            reference_fingerprint: What the cached ones must come from; see ``fingerprint_checkpoint``.
            image_root: Folder that relative image paths start from.
        """
        self.processor = processor
        self.config = config
        self.reference = reference
        self.reference_fingerprint = reference_fingerprint
        self.image_root = image_root
        self.shared = True
        self._has_quartiles = False

    def prepare(self, dataset: Dataset) -> Dataset:
        """Add each pair's beta, weight and difficulty quartile as columns, computed once over the whole data set.

        Raises:
            ValueError: If the mode needs a difficulty and there is none, or cached log-probabilities are missing.
        """
        if self.reference is None:
            check_columns(dataset.column_names, (*LOGPS, TEXT, FINGERPRINT), what="the data set, for reference 'cached',")
            assert self.reference_fingerprint is not None, "a cached reference has a fingerprint"
            check_fingerprint(dataset[FINGERPRINT], self.reference_fingerprint)
        has_difficulty = "difficulty" in dataset.column_names
        if not has_difficulty and self.config.difficulty_mode != "off":
            raise ValueError(
                f"difficulty_mode is {self.config.difficulty_mode!r} and the data set has no column difficulty: "
                "run mmalign score-difficulty first and train on its scored.parquet"
            )
        difficulty = torch.tensor(dataset["difficulty"] if has_difficulty else [0.5] * len(dataset), dtype=torch.float64)
        coefficients = difficulty_coefficients(difficulty, beta=self.config.beta, mode=self.config.difficulty_mode)
        dataset = dataset.add_column("pair_beta", coefficients.beta.tolist())
        dataset = dataset.add_column("pair_weight", coefficients.weight.tolist())
        if has_difficulty:
            dataset = dataset.add_column("difficulty_quartile", difficulty_quartiles(difficulty).tolist())
        self._has_quartiles = has_difficulty
        return dataset

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        row = read_pair(raw, index=index, image_root=self.image_root)
        responses = [row.chosen, row.rejected]
        return encode_responses(
            self.processor, images=row.images, prompt=row.prompt, responses=responses, max_length=self.config.max_length
        )

    def _encode_checked(self, raw: Mapping[str, Any]) -> EncodedPrompt:
        encoded = self._encode(raw)
        if self.reference is None:
            check_text(raw, encoded)
        return encoded

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Check the row's numbers, decode it, and tokenise it where its length is limited."""
        if "difficulty" in raw and not (_is_number(raw["difficulty"]) and 0.0 <= raw["difficulty"] <= 1.0):
            raise ValueError(f"difficulty is {raw['difficulty']!r}; expected a number in [0, 1]: score the pairs again")
        for name in LOGPS if self.reference is None else ():
            if name in raw and not (_is_number(raw[name]) and math.isfinite(raw[name])):
                raise ValueError(f"{name} is {raw[name]!r}; expected a finite log-probability: score the pairs again")
        if self.config.max_length is None:
            read_pair(raw, index=index, image_root=self.image_root)
        else:
            self._encode(raw, index)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how pairs are laid out: see ``probe_rows``.

        Raises:
            ValueError: If the model's own numbers can't be had, or the first rows' cached log-probabilities are of other texts.
        """
        choice = probe_rows(model, [self._encode_checked(row) for row in rows], pad_token_id=self.processor.tokenizer.pad_token_id)
        self.shared = choice.shared
        return choice.reason

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row a pair, or one a response where they can't share it, with the pair's columns beside it under ``pairs``, each (B,)."""
        encoded = [self._encode_checked(row) for row in rows]
        row_tokens = self.config.row_tokens if self.shared else None
        batch = collate_prompts(encoded, pad_token_id=self.processor.tokenizer.pad_token_id, shared=self.shared, row_tokens=row_tokens)
        columns = ["pair_beta", "pair_weight", *(["difficulty_quartile"] if self._has_quartiles else [])]
        columns += LOGPS if self.reference is None else ()
        batch["pairs"] = {name: torch.tensor([row[name] for row in rows]) for name in columns}
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Pairs."""
        return len(batch["pairs"]["pair_beta"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of weight * DPO loss; rewards are logged with the plain beta, so that modes can be compared."""
        pairs = batch["pairs"]
        inputs = {key: value for key, value in batch.items() if key != "pairs"}
        inner = unwrap(model)
        features = encode_frozen_images(inner, inputs) if vision_is_frozen(inner) else None
        reference = self._reference_logps(model, inputs, pairs, features)
        outcome = compute_response_logps(model, inputs, features=features)
        policy = _pair_logps(outcome)
        losses = pairs["pair_weight"] * dpo_loss(policy, reference, beta=pairs["pair_beta"])
        if self.config.sft_weight:
            losses = losses - self.config.sft_weight * policy.chosen / outcome.lengths()[::2]
        return MethodOutput(losses.sum(), self._metrics(policy, reference, outcome, pairs))

    def _reference_logps(
        self, model: nn.Module, inputs: dict[str, Any], pairs: dict[str, Tensor], features: ImageFeatures | None
    ) -> PairLogps:
        if self.reference is None:
            return PairLogps(*(pairs[name].float() for name in LOGPS))
        features = features if self.reference.shares_frozen_vision else None
        with self.reference.active(unwrap_parallel(model)) as reference:
            return _pair_logps(compute_response_logps(reference, inputs, features=features))

    @torch.no_grad()
    def _metrics(self, policy: PairLogps, reference: PairLogps, outcome: ResponseLogps, pairs: dict[str, Tensor]) -> dict[str, Sum]:
        count = len(policy.chosen)
        chosen = self.config.beta * (policy.chosen - reference.chosen)
        rejected = self.config.beta * (policy.rejected - reference.rejected)
        margin, right = chosen - rejected, (chosen > rejected).float()
        lengths = outcome.lengths().view(-1, 2)
        metrics = {
            "rewards/chosen": Sum(chosen.sum(), count),
            "rewards/rejected": Sum(rejected.sum(), count),
            "rewards/margin": Sum(margin.sum(), count),
            "rewards/accuracy": Sum(right.sum(), count),
            "logps/chosen_per_token": Sum(policy.chosen.sum(), lengths[:, 0].sum()),
            "logps/rejected_per_token": Sum(policy.rejected.sum(), lengths[:, 1].sum()),
            "difficulty/beta": Sum(pairs["pair_beta"].sum(), count),
        }
        if "difficulty_quartile" in pairs:
            for number in range(1, NUM_QUARTILES + 1):
                inside = (pairs["difficulty_quartile"] == number).float()
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


def _pair_logps(outcome: ResponseLogps) -> PairLogps:
    sums = outcome.sums().view(-1, 2)
    return PairLogps(sums[:, 0], sums[:, 1])
