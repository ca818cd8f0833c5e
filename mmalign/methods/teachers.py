"""Where the teacher's distributions come from: a model in memory, or columns of the data (see ``cached_teacher.py``).

Shape legend: K = response tokens of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import ChatRow
from mmalign.data.vocabulary import check_same_responses, count_shared_tokens, same_inputs, same_text
from mmalign.engine.batch import collate_prompts
from mmalign.engine.distillation import TeacherStates, TopTokens, compute_teacher_states, head_size
from mmalign.engine.logps import unwrap_parallel
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.models.references import Reference
from mmalign.options.rows import AnswerEnd


class Teacher(Protocol):
    """Whom a student mimics."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns that it reads beside the chat's."""

    @property
    def reads_each_row(self) -> bool:
        """Whether a row has to be tokenised to know that it can be used."""

    @property
    def vocabulary(self) -> int:
        """Tokens, from id 0 on, that student and teacher share."""

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise ValueError if the data set's columns can't be used."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> Any:
        """Prepare one row's part; raise ValueError if student and teacher read other answers."""

    def collate(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Join the rows' parts; empty where the teacher reads the student's own inputs."""

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]]) -> str:
        """Look at the models once before training, with the student's and the teacher's part of a few rows; return a line for the log."""

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> TeacherStates | TopTokens:
        """Say what the teacher predicts, without gradient.

        Args:
            student: The model in training, possibly wrapped.
            inputs: The student's batch.
            own: From ``collate``.
            shift: How many places behind the right ones the distributions are taken.
        """


class LiveTeacher:
    """A frozen model. It may be of another family with another image processor, as long as the tokens are the student's."""

    columns: tuple[str, ...] = ()

    def __init__(
        self, reference: Reference, processor: Any, *, student: nn.Module, student_processor: Any, answer_end: AnswerEnd = "token"
    ) -> None:
        """Compare the vocabularies, and how both read their inputs.

        Raises:
            ValueError: If the tokens are not the same, with both sizes and the first id that differs.
        """
        assert reference.model is not None, "a teacher is a model of its own"
        self.reference = reference
        self.processor = processor
        self.answer_end = answer_end
        self.sizes = head_size(student), head_size(reference.model)
        self.vocabulary = count_shared_tokens(
            student_processor.tokenizer, processor.tokenizer, student_size=self.sizes[0], teacher_size=self.sizes[1]
        )
        self.same_inputs = same_inputs(student_processor, processor)
        self.reads_each_row = not same_text(student_processor, processor)

    def check_dataset(self, dataset: Dataset) -> None:
        """It reads no columns."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> EncodedPrompt | None:
        """Tokenise the conversation as the teacher's processor does; None where that is what the student's did.

        Raises:
            ValueError: If the answers are other tokens to the teacher.
        """
        if self.same_inputs:
            return None
        encoded = encode_chat(self.processor, row, answer_end=self.answer_end)
        check_same_responses(student.responses, encoded.responses, vocabulary=self.vocabulary)
        return encoded

    def collate(self, parts: Sequence[Any]) -> dict[str, Any]:
        """The teacher's own batch."""
        return {} if self.same_inputs else collate_prompts(parts, pad_token_id=self.processor.tokenizer.pad_token_id)

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]]) -> str:
        """Compare with the teacher's own forward, and say what both vocabularies share.

        Raises:
            ValueError: If the numbers differ.
        """
        read = [own or of_student for of_student, own in encoded[:PROBED_ROWS]]
        with self.reference.active(unwrap_parallel(student)) as teacher:
            check_rows(teacher, read, pad_token_id=self.processor.tokenizer.pad_token_id)
        return f"student and teacher share {self.vocabulary:,} tokens (rows of their heads: {self.sizes[0]:,} and {self.sizes[1]:,})"

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> TeacherStates:
        """Run the teacher up to its head."""
        batch = own or inputs
        index: Tensor = batch["layout"]["index"] + shift
        with self.reference.active(unwrap_parallel(student)) as teacher:
            return compute_teacher_states(teacher, batch, index=index)
