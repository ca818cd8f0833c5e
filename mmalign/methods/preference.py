"""Preference training: any pair objective of the family, or a weighted sum of several.

Shape legend: B = preference pairs in the batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.datasets import add_columns
from mmalign.data.encode import EncodedPrompt
from mmalign.data.numbers import is_finite
from mmalign.data.rows import IMAGES_OTHER, PAIR_COLUMNS, read_pair
from mmalign.engine.logps import ResponseLogps
from mmalign.engine.probe import PROBED_ROWS
from mmalign.engine.views import Views, encode_views, split_views
from mmalign.errors import UserError
from mmalign.losses.coefficients import BETA_MODES, difficulty_coefficients
from mmalign.losses.image_terms import CHOSEN, REJECTED, Cell, CellLogps
from mmalign.losses.pair_kernel import PairBatch, PairObjective, PairValues, absent, chosen_nll, compute_rewards, objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.registry import Named
from mmalign.losses.scores import Logps, ScoredTokens
from mmalign.methods.cached_reference import CachedReference
from mmalign.methods.pair_selection import FLIPPED, LABEL_FLIP, check_selection, select_pairs, swap_sides
from mmalign.methods.preference_metrics import describe_start, difficulty_quartiles, reward_metrics
from mmalign.methods.responses import ResponsesMethod
from mmalign.models.eval_mode import eval_mode
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions, PreferenceOptions
from mmalign.training.method import Method, MethodOutput, Selection
from mmalign.training.processes import mean_over_processes

START_ROWS = 64
"""Pairs on which rewards before training are measured."""
_COEFFICIENTS = ("pair_beta_scale", "pair_weight")
_QUARTILE = "difficulty_quartile"


class PreferenceMethod(ResponsesMethod[PairObjective]):
    """DPO (arXiv:2305.18290) and its family, with DA-DPO's difficulty (arXiv:2601.00623) on any of them."""

    name = "preference"
    summary = "a multimodal LLM, trained on preference pairs"
    intended_use = "For research on hallucination: to be compared with the model that it started from."
    registry = PAIR_OBJECTIVES
    lists = False
    read = staticmethod(read_pair)
    options: PairLossOptions

    def __init__(
        self, processor: Any, options: PairLossOptions, *, reference: Reference | None, reference_fingerprint: str | None = None
    ) -> None:
        """Keep the parts; see ``ResponsesMethod``."""
        super().__init__(processor, options, reference=reference, reference_fingerprint=reference_fingerprint)
        self.objective_columns = tuple(dict.fromkeys(name for one in self.objectives for name in one.objective.columns))
        cells = [cell for named in self.objectives for cell in named.objective.cells]
        self.views, self._reads_cells = Views.of(cells), bool(cells)
        self.prompts_per_row = len(self.views.responses)
        self.columns = (*PAIR_COLUMNS, *((IMAGES_OTHER,) if self.views.need_other else ()), *self.objective_columns)
        self.asked = {
            "keep_logits": any(named.objective.needs_logits for named in self.objectives),
            "divergence": any(named.objective.needs_divergence for named in self.objectives),
        }
        if self.cached is not None:
            self._cache_cells(self.cached)
        self.num_buckets = None if options.curriculum == "none" else options.curriculum_buckets
        self.start_rows = START_ROWS if options.center_rewards else PROBED_ROWS
        self._pair_columns = [*_COEFFICIENTS, *self.objective_columns]
        self._centers: dict[str, tuple[float, float]] = {}

    def _cache_cells(self, cached: CachedReference) -> None:
        """Name the columns of cells that the reference is asked about.

        Raises:
            ValueError: If an objective asks for more than columns can hold, or pairs are to be flipped whose cells are cached as they are.
        """
        more = [named.name for named in self.objectives if named.objective.needs_logits or named.objective.needs_divergence]
        if more:
            raise UserError(f"objective {more[0]} reads more of the reference than its log-probabilities; leave --reference cached out")
        if self.views.alone:
            return
        if self.options.noisy_gap == "flip":
            raise UserError(
                "--noisy-gap flip changes which answers other images are asked about; leave --reference cached out, or drop them"
            )
        cached.read_cells(self.views, [named.objective for named in self.objectives])

    @classmethod
    def build(cls, options: PreferenceOptions) -> tuple[nn.Module, Any, Method]:  # type: ignore[override]
        """Load policy and reference; another model's rewards are measured before the first step, against itself they are 0."""
        model, processor, method = super().build(options)
        method.start_rows = START_ROWS if options.reference_model is not None else method.start_rows
        return model, processor, method

    @classmethod
    def build_objectives(cls, options: PairLossOptions) -> tuple[Named[PairObjective], ...]:
        """Build what is summed.

        Raises:
            ValueError: As in the base, and if difficulty changes a beta that an objective has not.
        """
        named = super().build_objectives(options)
        compare = [one.name for one in named if one.objective.form is not absent or one.objective.terms]
        without = [name for name in compare if "beta" not in PAIR_OBJECTIVES.parameters(name)]
        if options.difficulty_mode in BETA_MODES and without:
            mode = options.difficulty_mode
            raise UserError(f"difficulty_mode {mode!r} changes beta, and {without[0]} has none; use 'loss-weight' or 'off'")
        return named

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """Name the objectives, and what difficulty does."""
        mode = options["difficulty_mode"]
        return f"{super().describe(options)}, {'every pair alike' if mode == 'off' else f'pairs weighed by difficulty ({mode})'}"

    def check_dataset(self, dataset: Dataset) -> None:
        """As in the base, and that difficulty is there where it is read.

        Raises:
            ValueError: If it isn't, or cached log-probabilities are missing or stale.
        """
        super().check_dataset(dataset)
        mode = self.options.difficulty_mode
        if mode != "off" and "difficulty" not in dataset.column_names:
            raise UserError(
                f"difficulty_mode is {mode!r} and the data set has no column difficulty: "
                "run mmalign score-difficulty first and train on its scored.parquet"
            )
        check_selection(dataset, self.options)

    def select(self, dataset: Dataset) -> Selection:
        """Treat noisy labels, filter by difficulty, and sort."""
        return select_pairs(dataset, self.options)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Add each pair's beta, weight and difficulty quartile as columns, computed once over all pairs that are trained on."""
        dataset = super().prepare(dataset)
        values = dataset["difficulty"][:] if "difficulty" in dataset.column_names else None
        # Where nothing reads it, a column of this name may hold anything, such as levels in words.
        scored = values is not None and (self._reads_difficulty or all(map(_is_difficulty, values)))
        difficulty = torch.tensor(values if scored else [0.5] * len(dataset), dtype=torch.float64)
        coefficients = difficulty_coefficients(difficulty, beta=1.0, mode=self.options.difficulty_mode)
        columns = dict(zip(_COEFFICIENTS, (coefficients.beta.numpy(), coefficients.weight.numpy()), strict=True))
        dataset = add_columns(dataset, columns | ({_QUARTILE: difficulty_quartiles(difficulty).numpy()} if scored else {}))
        present = [name for name in (_QUARTILE, LABEL_FLIP) if name in dataset.column_names]
        self._pair_columns = [*_COEFFICIENTS, *present, *self.objective_columns]
        return dataset

    def encode(self, raw: Mapping[str, Any]) -> list[EncodedPrompt]:
        """Tokenise a checked row, the chosen response first."""
        if not self.views.alone:
            return super().encode(self.turned(raw))
        # Only now: cached log-probabilities are of the responses in the order in which they stand in the data.
        encoded = super().encode(raw)
        return [prompt.reverse_responses() for prompt in encoded] if raw.get(FLIPPED) else encoded

    def encode_row(self, raw: Mapping[str, Any], *, index: int) -> list[EncodedPrompt]:
        """Read and tokenise a row with all images that objectives compare."""
        if self.views.alone:
            return super().encode_row(raw, index=index)
        options = self.options
        row = read_pair(raw, index=index, image_root=options.image_root, with_other=self.views.need_other)
        return encode_views(self.processor, row, self.views, options, answer_end=options.answer_end, max_length=options.max_length)

    def check_inputs(self) -> Mapping[str, Any]:
        """As in the base, and what images are compared."""
        if self.views.alone:
            return super().check_inputs()
        views = {image: list(names) for image, names in self.views.responses.items()}
        return {**super().check_inputs(), "views": views, "weaken": [self.options.weaken, self.options.weaken_seed]}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As in the base; cached log-probabilities of cells stand under ``reference_cells``."""
        batch = super().collate(rows)
        if self.cached is not None and self.cached.cells:
            batch["reference_cells"] = self.cached.collate_cells(rows)
        return batch

    def turned(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A flipped row with its sides swapped."""
        return swap_sides(row) if row.get(FLIPPED) else row

    def check_numbers(self, raw: Mapping[str, Any]) -> None:
        """Check difficulty, where it is read, and the objectives' columns."""
        if self._reads_difficulty and "difficulty" in raw and not _is_difficulty(raw["difficulty"]):
            raise UserError(f"difficulty is {raw['difficulty']!r}; expected a number in [0, 1]: score the pairs again")
        for objective in (named.objective for named in self.objectives):
            for name in objective.columns:
                if not (is_finite(raw[name]) and raw[name] >= objective.least):
                    least = f" from {objective.least:g}" if math.isfinite(objective.least) else ""
                    raise UserError(f"{name} is {raw[name]!r}; expected a finite number{least}")

    def number_limits(self) -> Any:
        """Whether difficulty is read; columns, and the least that each objective takes of its own."""
        return [self._reads_difficulty, *([list(named.objective.columns), str(named.objective.least)] for named in self.objectives)]

    @property
    def _reads_difficulty(self) -> bool:
        options = self.options
        return options.difficulty_mode != "off" or bool(options.difficulty_range) or options.curriculum != "none"

    def collate_numbers(self, rows: Sequence[Mapping[str, Any]], target: Tensor) -> dict[str, Any]:
        """The pairs' columns, each (B,)."""
        return {name: torch.tensor([row[name] for row in rows]) for name in self._pair_columns}

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how pairs are laid out, and measure rewards before the first step where they aren't 0.

        Raises:
            ValueError: If the model's own numbers can't be had, or the first rows' cached log-probabilities are of other texts.
        """
        reason = super().start(model, rows)
        if len(rows) <= PROBED_ROWS and not self.options.center_rewards:
            return reason
        first = self._measure_start(model, rows)
        if self.options.center_rewards:
            # A run that resumes asks the same model, the one before its first step.
            self._centers = {name: (values.chosen.mean().item(), values.rejected.mean().item()) for name, values in first.items()}
        objective = self.objectives[0]
        return "\n".join([reason, *describe_start(objective.objective, first[objective.name])])

    def _measure_start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> dict[str, PairValues]:
        """Compute each objective's rewards before the first step, without beta, one row at a time."""
        found: dict[str, list[PairValues]] = {named.name: [] for named in self.objectives}
        with torch.no_grad(), eval_mode(model):
            for row in rows:
                pairs = self.read_pairs(model, send_to_device(self.collate([row]), next(model.parameters()).device))
                for named in self.objectives:
                    found[named.name].append(compute_rewards(named.objective, pairs))
        return {name: PairValues(*(torch.cat(side) for side in zip(*values, strict=True))) for name, values in found.items()}

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Run the models, and sum the objectives."""
        return self.compute_pairs(self.read_pairs(model, batch))

    def compute_pairs(self, pairs: PairBatch) -> MethodOutput:
        """Sum of the objectives over the pairs; rewards are logged with the plain beta, so that difficulty modes can be compared."""
        first = self.objectives[0]
        rewards = {named.name: compute_rewards(named.objective, pairs) for named in self.objectives}
        losses = {
            named.name: objective_loss(named.objective, pairs, rewards=self._centered(named.name, rewards[named.name]))
            for named in self.objectives
        }
        added = self.options.sft_weight * chosen_nll(pairs) if self.options.sft_weight else 0.0
        return self.sum(losses, reward_metrics(first.objective, pairs, rewards[first.name]), added=added)

    def _centered(self, name: str, rewards: PairValues) -> PairValues:
        chosen, rejected = self._centers.get(name, (0.0, 0.0))
        return PairValues(rewards.chosen - chosen, rewards.rejected - rejected)

    def _part(
        self, policy: ResponseLogps, reference: Logps | None, *, pairs: int
    ) -> tuple[ScoredTokens, Logps, Logps | None, Mapping[Cell, CellLogps]]:
        if not self._reads_cells:
            return policy.scored, policy, reference, {}
        return split_views(self.views, policy, reference, pairs=pairs)

    def read_pairs(self, model: nn.Module, batch: dict[str, Any]) -> PairBatch:
        """Run policy and reference on a batch."""
        return self.make_pairs(batch, *self.run(model, batch, **self.asked))

    def make_pairs(self, batch: dict[str, Any], policy: ResponseLogps, live: ResponseLogps | None) -> PairBatch:
        """Lay out what policy and reference, where one ran, say of a batch."""
        columns = batch["numbers"]
        tokens, own, reference, cells = self._part(policy, live, pairs=self.num_items(batch))
        divergence = None
        if policy.divergence is not None:
            sums, pairs = policy.scored.sums(policy.divergence), self.num_items(batch)
            divergence = PairValues(*(sums[self.views.places(cell, pairs, device=sums.device)] for cell in (CHOSEN, REJECTED)))
        if self.cached is not None:
            reference = self.cached.logps(batch["reference"], tokens)
            cells = self.cached.add_cells(cells, reference, batch.get("reference_cells"))
        return PairBatch(
            tokens,
            own,
            reference,
            columns,
            beta_scale=columns["pair_beta_scale"],
            weight=columns["pair_weight"],
            label_flip=columns.get(LABEL_FLIP, 0.0),
            mean=mean_over_processes,
            cells=cells,
            divergence=divergence,
        )


def _is_difficulty(value: Any) -> bool:
    return is_finite(value) and 0.0 <= value <= 1.0
