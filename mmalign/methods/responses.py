"""Objectives over the responses of a prompt, against a reference: what pairs and lists have in common; a pair is a list of two.

Shape legend: P = prompts in the batch, R = responses in the batch.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback

from mmalign.data.encode import EncodedPrompt, encode_row
from mmalign.data.rows import ItemsRow, ListRow, PairRow
from mmalign.data.verdicts import describe_reading
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import ResponseLogps
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.errors import UserError
from mmalign.losses.list_kernel import ListObjective
from mmalign.losses.pair_kernel import PairObjective
from mmalign.losses.registry import Named, Registry
from mmalign.methods.cached_reference import CachedReference
from mmalign.methods.policy import build_reference, fingerprint_reference, load_policy
from mmalign.methods.policy_and_reference import compute_policy_and_reference
from mmalign.models.dropout import switch_dropout_off
from mmalign.models.moving_reference import MovingReference
from mmalign.models.references import Reference
from mmalign.options.methods import ListwiseOptions, PreferenceOptions, ResponsesOptions
from mmalign.training.method import Method, MethodOutput, Sum
from mmalign.training.moving_reference import MovingReferenceCallback

Objective = TypeVar("Objective", PairObjective, ListObjective)


class ResponsesMethod(Method, Generic[Objective]):
    """One objective or a weighted sum of several; rewards are logged as the first one has them."""

    registry: ClassVar[Registry[Any]]
    lists: ClassVar[bool]
    """Whether a row has any number of responses, or chosen and rejected."""
    options: ResponsesOptions
    prompts_per_row: int = 1

    def __init__(
        self, processor: Any, options: ResponsesOptions, *, reference: Reference | None, reference_fingerprint: str | None = None
    ) -> None:
        """Keep the parts.

        Args:
            processor: The policy's processor.
            options: The objectives, and how rows are read.
            reference: The frozen model; None reads cached log-probabilities from the rows, where an objective asks for them.
            reference_fingerprint: What the cached ones must come from; see ``fingerprint_checkpoint``.

        Raises:
            ValueError: If an objective can't be built, or there is a reference and none has use for it.
        """
        self.processor, self.options, self.reference = processor, options, reference
        self.objectives: tuple[Named[Objective], ...] = self.build_objectives(options)
        compared = [named for named in self.objectives if named.objective.uses_reference]
        if reference is not None and not compared:
            raise UserError(f"objective {self.objectives[0].name} compares with no reference; leave the reference out")
        by_token = any(named.objective.needs_tokens for named in compared)
        cached = reference is None and bool(compared)
        self.cached = CachedReference(reference_fingerprint, by_token=by_token, lists=self.lists) if cached else None
        self.shared = True

    @classmethod
    def build(cls, options: PreferenceOptions | ListwiseOptions) -> tuple[nn.Module, Any, Method]:
        """Load policy and reference.

        Raises:
            ValueError: If a reference is named and no objective has use for it, or a model can't be loaded.
        """
        uses_reference = any(named.objective.uses_reference for named in cls.build_objectives(options))
        own: list[Any] = [options.reference_model, options.reference_quantization, options.moving]
        chosen = [options.reference != "auto", *(value is not None for value in own)]
        if not uses_reference and any(chosen):
            raise UserError(
                f"objective {', '.join(options.objective)} compares with no reference; leave --reference, --reference-model, "
                "--reference-quantization and --reference-update out"
            )
        model, processor = load_policy(options)
        switch_dropout_off(model)
        reference = build_reference(options, model, processor) if uses_reference else None
        return model, processor, cls(processor, options, reference=reference, reference_fingerprint=fingerprint_reference(options))

    @classmethod
    def build_objectives(cls, options: Any) -> tuple[Named[Objective], ...]:
        """Build what is summed.

        Raises:
            ValueError: With the objective, its parameter and what was expected.
        """
        return cls.registry.parse_sum(options.objective, beta=options.beta)

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """Name the objectives with their betas."""
        named = cls.registry.parse_sum(options["objective"], beta=options["beta"])
        betas = [f" (beta {one.objective.beta:g})" if "beta" in cls.registry.parameters(one.name) else "" for one in named]
        return f" with {' + '.join(one.name + beta for one, beta in zip(named, betas, strict=True))}"

    @abstractmethod
    def read(self, raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> PairRow | ListRow | ItemsRow:
        """Decode a row."""

    @abstractmethod
    def check_numbers(self, raw: Mapping[str, Any]) -> None:
        """Raise UserError if an objective can't use the numbers of a row that could be read."""

    @abstractmethod
    def number_limits(self) -> Any:
        """Name what ``check_numbers`` expects."""

    @abstractmethod
    def collate_numbers(self, rows: Sequence[Mapping[str, Any]], target: Tensor) -> dict[str, Any]:
        """Make what the objectives read beside log-probabilities; ``target`` holds the ids of the scored tokens."""

    def turned(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row's columns in the order in which ``encode`` gives its responses."""
        return row

    def check_dataset(self, dataset: Dataset) -> None:
        """Check that cached log-probabilities are there and come from the reference.

        Raises:
            ValueError: If they are missing or stale.
        """
        if self.cached is not None:
            self.cached.check_dataset(dataset)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode and tokenise the row, and check its numbers."""
        if self.cached is not None:
            self.cached.check(raw)
        self.read(raw, index=index, image_root=self.options.image_root)
        self.check_numbers(raw)
        self.encode_row(raw, index=index)

    def check_inputs(self) -> Mapping[str, Any]:
        """How rows are read, and which numbers are expected."""
        reading = describe_reading(self.processor, self.options, answer_end=self.options.answer_end)
        return {**reading, "numbers": self.number_limits(), "cached": None if self.cached is None else list(self.cached.columns)}

    def encode(self, raw: Mapping[str, Any]) -> list[EncodedPrompt]:
        """Tokenise a checked row, a prompt for each image that it is seen with; cached log-probabilities must be of its text and images."""
        prompts = self.encode_row(raw, index=0)
        if self.cached is not None:
            self.cached.check_text(raw, prompts)
        return prompts

    def encode_row(self, raw: Mapping[str, Any], *, index: int) -> list[EncodedPrompt]:
        """Read and tokenise a row; as many prompts for every row, the one with the row's own images first."""
        row = self.read(raw, index=index, image_root=self.options.image_root)
        assert not isinstance(row, ItemsRow), "listwise encodes them itself"
        return [encode_row(self.processor, row, answer_end=self.options.answer_end, max_length=self.options.max_length)]

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Choose how responses are laid out: see ``probe_rows``.

        Raises:
            ValueError: If the model's own numbers can't be had, or the first rows' cached log-probabilities are of other texts.
        """
        encoded = [prompt for row in rows[:PROBED_ROWS] for prompt in self.encode(row)]
        choice = probe_rows(model, encoded, pad_token_id=self.processor.tokenizer.pad_token_id)
        self.shared = choice.shared
        return choice.describe(self.options.row_tokens)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row per prompt with all its responses, or one per response where they can't share it.

        What the objectives read stands beside the model's inputs: under ``numbers``, and cached log-probabilities under ``reference``.
        """
        encoded = [self.encode(row) for row in rows]
        # Rows with their own images come first: see ``views.py``.
        prompts = [row[number] for number in range(len(encoded[0])) for row in encoded]
        pad, row_tokens = self.processor.tokenizer.pad_token_id, self.options.row_tokens if self.shared else None
        batch = collate_prompts(prompts, pad_token_id=pad, shared=self.shared, row_tokens=row_tokens)
        rows = [self.turned(row) for row in rows]
        if self.cached is not None:
            batch["reference"] = self.cached.collate(rows)
        batch["numbers"] = self.collate_numbers(rows, batch["layout"]["target"])
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Rows of the data."""
        return len(batch["layout"]["repeats"]) // self.prompts_per_row

    def run(self, model: nn.Module, batch: dict[str, Any], **asked: bool) -> tuple[ResponseLogps, ResponseLogps | None]:
        """Run the policy, and the reference where one is in memory; what is asked for goes to ``compute_policy_and_reference``."""
        policy, reference = compute_policy_and_reference(model, model_inputs(batch), self.reference, **asked)
        if isinstance(self.reference, MovingReference) and reference is not None and model.training:
            self.reference.watch(policy.token_logps, reference.token_logps)
        return policy, reference

    def callbacks(self, checkpoint: Path | None) -> list[TrainerCallback]:
        """What moves a reference that moves."""
        return [MovingReferenceCallback(self.reference, checkpoint=checkpoint)] if isinstance(self.reference, MovingReference) else []

    def sum(self, losses: Mapping[str, Tensor], metrics: dict[str, Sum], *, added: Tensor | float = 0.0) -> MethodOutput:
        """Add up the objectives' losses, (P,) each by name, and what is added to each prompt's."""
        total = torch.stack([named.weight * losses[named.name] for named in self.objectives]).sum(0) + added
        if len(losses) > 1:
            metrics |= {f"loss/{name}": Sum(values.detach().sum(), len(values)) for name, values in losses.items()}
        return MethodOutput(total.sum(), metrics)


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without what only the objectives read."""
    return {key: value for key, value in batch.items() if key not in ("numbers", "reference", "reference_cells", "held")}
