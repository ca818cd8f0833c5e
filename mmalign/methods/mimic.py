"""Mimic distillation: the student's next-token distribution is pulled to the teacher's, on the response tokens of given chats.

After LLaVA-MoD (arXiv:2408.15881, section 3.3).

Shape legend: K = response tokens of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import CHAT_COLUMNS, read_chat
from mmalign.engine.batch import collate_prompts
from mmalign.engine.distillation import compute_student_output
from mmalign.engine.divergence import Divergence
from mmalign.engine.method import MethodOutput, Sum
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.errors import UserError
from mmalign.methods.teachers import Teacher
from mmalign.options.rows import AnswerEnd


@dataclass(frozen=True)
class MimicConfig:
    """What is mimicked, and how much."""

    divergence: Divergence = field(default_factory=Divergence)
    kl_weight: float = 1.0
    """Of the divergence, which is multiplied by the square of the temperature (arXiv:1503.02531, section 2)."""
    ce_weight: float = 0.0
    """Of the cross-entropy on the chats' own tokens."""
    legacy_mask: bool = False
    """Compare distributions one place late, as LLaVA-MoD's code does: those behind each response token, not those that predict it."""
    max_length: int | None = None
    answer_end: AnswerEnd = "token"

    def __post_init__(self) -> None:
        """Refuse weights without sense.

        Raises:
            ValueError: If the divergence has no weight, or the cross-entropy a negative one.
        """
        if not self.kl_weight > 0:
            raise UserError(f"kl_weight is {self.kl_weight}; expected a positive number: without a teacher it is mmalign train sft")
        if not self.ce_weight >= 0:
            raise UserError(f"ce_weight is {self.ce_weight}; expected 0 or more")


class MimicMethod:
    """Divergence from a teacher, and cross-entropy, summed over response tokens."""

    name = "mimic"

    def __init__(self, processor: Any, config: MimicConfig, *, teacher: Teacher, image_root: Path | None = None) -> None:
        """Keep the parts.

        Args:
            processor: The student's.
            config: Divergence and weights.
            teacher: Whom to mimic.
            image_root: Folder that relative image paths start from.
        """
        self.processor = processor
        self.config = config
        self.teacher = teacher
        self.columns = (*CHAT_COLUMNS, *teacher.columns)
        self.image_root = image_root

    def prepare(self, dataset: Dataset) -> Dataset:
        """Let the teacher look at its columns.

        Raises:
            ValueError: If they are missing or stale.
        """
        self.teacher.check_dataset(dataset)
        return dataset

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> tuple[EncodedPrompt, Any]:
        row = read_chat(raw, index=index, image_root=self.image_root)
        student = encode_chat(self.processor, row, answer_end=self.config.answer_end, max_length=self.config.max_length)
        return student, self.teacher.encode(raw, row, student)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row and tokenise it for student and teacher."""
        self._encode(raw, index)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Compare the first rows with both models' own forward: see ``check_rows``.

        Raises:
            ValueError: If the rows can't be read, or the numbers differ.
        """
        encoded = [self._encode(row) for row in rows]
        told = check_rows(model, [own for own, _ in encoded[:PROBED_ROWS]], pad_token_id=self.processor.tokenizer.pad_token_id)
        return f"{told}\n{self.teacher.start(model, encoded)}"

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenise conversations into one batch, with what the teacher reads beside it under ``teacher``."""
        encoded, parts = zip(*(self._encode(row) for row in rows), strict=True)
        batch = collate_prompts(encoded, pad_token_id=self.processor.tokenizer.pad_token_id)
        batch["teacher"] = self.teacher.collate(parts)
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Response tokens."""
        return len(batch["layout"]["target"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum over response tokens of kl_weight * temperature^2 * divergence - ce_weight * log p."""
        config, kind = self.config, self.config.divergence
        inputs = {key: value for key, value in batch.items() if key != "teacher"}
        # A conversation is one plain row: the token itself stands right behind the state that predicts it.
        shift = int(config.legacy_mask)
        output = compute_student_output(
            model,
            inputs,
            self.teacher.ask(model, inputs, batch["teacher"], shift=shift),
            kind,
            vocabulary=self.teacher.vocabulary,
            index=inputs["layout"]["index"] + shift,
            with_logps=config.ce_weight > 0,
        )
        count, divergence = len(output.divergence), output.divergence.sum()
        loss = config.kl_weight * kind.temperature**2 * divergence
        metrics = {"loss/kl": Sum(divergence.detach(), count)}
        if output.logps is not None:
            nll = -output.logps.sum()
            loss = loss + config.ce_weight * nll
            metrics["loss/nll"] = Sum(nll.detach(), count)
        return MethodOutput(loss, metrics)
