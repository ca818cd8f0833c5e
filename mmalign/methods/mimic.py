"""Mimic distillation: the student's next-token distribution is pulled to the teacher's, on the responses of given chats or on all text.

After LLaVA-MoD (arXiv:2408.15881, section 3.3).

Shape legend: K = scored tokens of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import nn

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import CHAT_COLUMNS, read_chat
from mmalign.data.verdicts import describe_reading
from mmalign.engine.batch import collate_prompts
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.engine.student import compute_student_output
from mmalign.methods.policy import load_policy
from mmalign.methods.teachers import TokenTeacher, build_teacher
from mmalign.options.methods import MimicLossOptions, MimicOptions
from mmalign.training.method import Method, MethodOutput, Sum


class MimicMethod(Method):
    """Divergence from a teacher, and cross-entropy, summed over scored tokens: the responses', or all text."""

    name = "mimic"
    summary = "a multimodal LLM, distilled from a teacher on chats about images"
    intended_use = "As a small model that answers like its teacher, and as the start of preference training."

    def __init__(self, processor: Any, options: MimicLossOptions, *, teacher: TokenTeacher) -> None:
        """Keep the student's processor, divergence and weights, and whom to mimic."""
        self.processor, self.options, self.teacher = processor, options, teacher
        self.columns = (*CHAT_COLUMNS, *teacher.columns)

    @classmethod
    def build(cls, options: MimicOptions) -> tuple[nn.Module, Any, Method]:
        """Load student and teacher.

        Raises:
            ValueError: If the teacher doesn't share the student's tokens.
        """
        model, processor = load_policy(options)
        return model, processor, cls(processor, options, teacher=build_teacher(options, model, processor))

    def prepare(self, dataset: Dataset) -> Dataset:
        """Let the teacher look at its columns.

        Raises:
            ValueError: If they are missing or stale.
        """
        self.teacher.check_dataset(dataset)
        return dataset

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> tuple[EncodedPrompt, Any]:
        row = read_chat(raw, index=index, image_root=self.options.image_root)
        options = self.options
        every = options.distil == "all"
        student = encode_chat(self.processor, row, answer_end=options.answer_end, max_length=options.max_length, every_token=every)
        return student, self.teacher.encode(raw, row, student)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row and tokenise it for student and teacher."""
        self._encode(raw, index)

    def check_inputs(self) -> Mapping[str, Any]:
        """How student and teacher read chats."""
        reading = describe_reading(self.processor, self.options, answer_end=self.options.answer_end)
        return {**reading, "distil": self.options.distil, "teacher": self.teacher.check_inputs()}

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
        """Scored tokens."""
        return len(batch["layout"]["target"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum over scored tokens of kl_weight * temperature^2 * divergence - ce_weight * log p."""
        options = self.options
        inputs = {key: value for key, value in batch.items() if key != "teacher"}
        # A conversation is one plain row: the token itself stands right behind the state that predicts it.
        shift = int(options.legacy_mask)
        output = compute_student_output(
            model,
            inputs,
            self.teacher.ask(model, inputs, batch["teacher"], shift=shift),
            options,
            vocabulary=self.teacher.vocabulary,
            index=inputs["layout"]["index"] + shift,
            with_logps=options.ce_weight > 0,
        )
        count, divergence = len(output.divergence), output.divergence.sum()
        loss = options.kl_weight * options.temperature**2 * divergence
        metrics = {"loss/kl": Sum(divergence.detach(), count)}
        if output.logps is not None:
            nll = -output.logps.sum()
            loss = loss + options.ce_weight * nll
            metrics["loss/nll"] = Sum(nll.detach(), count)
        return MethodOutput(loss, metrics)
