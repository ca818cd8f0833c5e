"""Where the teacher's distributions come from: a model in memory, or columns of the data that ``mmalign cache-teacher`` writes.

Shape legend: K = response tokens of a batch, N = tokens that a cached teacher names of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.caches import (
    TEACHER_COLUMNS,
    TEACHER_FINGERPRINT,
    TEACHER_IMAGES,
    TEACHER_TEXT,
    TOP_IDS,
    TOP_LOGPS,
    VOCABULARY,
    digest_answers,
)
from mmalign.data.encode import EncodedPrompt, encode_chat, image_token_ids
from mmalign.data.last_answer import with_answer
from mmalign.data.rows import ChatRow, check_columns
from mmalign.data.verdicts import digest_processor
from mmalign.data.vocabulary import check_same_tokens, count_shared_tokens, same_inputs
from mmalign.engine.aligned import Alignment
from mmalign.engine.batch import collate_prompts
from mmalign.engine.divergence import Prediction, TeacherStates, TopTokens
from mmalign.engine.logps import unwrap_parallel
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.engine.student import compute_teacher_states, head_size
from mmalign.errors import UserError
from mmalign.models.references import Reference
from mmalign.options.rows import AnswerEnd


class TokenTeacher(Protocol):
    """Whom a student mimics."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns that it reads beside the chat's."""

    @property
    def vocabulary(self) -> int:
        """Tokens, from id 0 on, that student and teacher share."""

    @property
    def barred(self) -> Sequence[int]:
        """Tokens that no answer may hold: those that it takes for images."""

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise ValueError if the data set's columns can't be used."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> Any:
        """Prepare one row's part; raise ValueError if student and teacher read other answers."""

    def answered(self, part: Any, ids: Sequence[int]) -> Any:
        """A row's part with other tokens as the last answer; raise ValueError if the teacher can't read them."""

    def check_inputs(self) -> Mapping[str, Any]:
        """Name all that ``encode`` depends on beside the row and the student's processor."""

    def collate(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Join the rows' parts; empty where the teacher reads the student's own inputs."""

    def num_compared(self, layout: Mapping[str, Tensor], own: Mapping[str, Any]) -> int:
        """Count what the loss is a mean over: the student's scored tokens, or what they are compared by; ``own`` is from ``collate``."""

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]], *, packed: bool = False) -> str:
        """Look at the models once before training; return a line for the log.

        Args:
            student: The model in training.
            encoded: The student's and the teacher's part of a few rows.
            packed: Whether the student's rows hold several conversations, which a teacher meets that reads them.
        """

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> Prediction | Alignment:
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
        self.barred = image_token_ids(processor)

    def check_dataset(self, dataset: Dataset) -> None:
        """It reads no columns."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> EncodedPrompt | None:
        """Tokenise the conversation as the teacher's processor does; None where that is what the student's did.

        Raises:
            ValueError: If the answers are other tokens to the teacher.
        """
        if self.same_inputs:
            return None
        encoded = encode_chat(self.processor, row, answer_end=self.answer_end, every_token=bool(student.scored_prefix))
        prompts = [[[i for i, told in zip(one.prefix_ids, one.scored_prefix, strict=False) if told]] for one in (student, encoded)]
        check_same_tokens(*prompts, vocabulary=self.vocabulary, what="prompt")
        check_same_tokens(student.responses, encoded.responses, vocabulary=self.vocabulary)
        return encoded

    def answered(self, part: EncodedPrompt | None, ids: Sequence[int]) -> EncodedPrompt | None:
        """The conversation with another last answer."""
        return None if part is None else with_answer(part, ids)

    def check_inputs(self) -> Mapping[str, Any]:
        """How it reads conversations, and the tokens that an answer may hold."""
        return {"processor": digest_processor(self.processor), "vocabulary": self.vocabulary}

    def collate(self, parts: Sequence[Any]) -> dict[str, Any]:
        """The teacher's own batch."""
        return {} if self.same_inputs else self.lay_out(parts)

    def lay_out(self, rows: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """The batch of conversations as it reads them."""
        return collate_prompts(rows, pad_token_id=self.processor.tokenizer.pad_token_id)

    def num_compared(self, layout: Mapping[str, Tensor], own: Mapping[str, Any]) -> int:
        """Tokens."""
        return len(layout["target"])

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]], *, packed: bool = False) -> str:
        """Compare with the teacher's own forward, and say what both vocabularies share.

        Raises:
            ValueError: If the numbers differ.
        """
        read = [own or of_student for of_student, own in encoded[:PROBED_ROWS]]
        with self.reference.active(unwrap_parallel(student)) as teacher:
            check_rows(teacher, read, pad_token_id=self.processor.tokenizer.pad_token_id, packed=packed and self.same_inputs)
        return f"student and teacher share {self.vocabulary:,} tokens (rows of their heads: {self.sizes[0]:,} and {self.sizes[1]:,})"

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> TeacherStates:
        """Run the teacher up to its head."""
        batch = own or inputs
        index: Tensor = batch["layout"]["index"] + shift
        with self.reference.active(unwrap_parallel(student)) as teacher:
            return compute_teacher_states(teacher, batch, index=index)


class CachedTeacher:
    """Reads what the teacher said; the divergence is over the tokens that it named and one bucket of all others."""

    columns = TEACHER_COLUMNS
    barred: Sequence[int] = ()

    def __init__(self, student: nn.Module, *, fingerprint: str | None) -> None:
        """``fingerprint`` is what the columns must come from; None takes any one teacher's."""
        self.vocabulary = head_size(student)
        self.fingerprint = fingerprint
        self._num_named: int | None = None

    def check_dataset(self, dataset: Dataset) -> None:
        """Check that the columns are one teacher's, and the expected one's.

        Raises:
            ValueError: If they aren't, with the fingerprints; if the student has too few tokens.
        """
        check_columns(dataset.column_names, TEACHER_COLUMNS, what="the data set, for teacher 'cached',")
        found = sorted(set(dataset[TEACHER_FINGERPRINT][:]) - {None})
        if len(found) != 1 or (self.fingerprint is not None and found[0] != self.fingerprint):
            raise UserError(
                f"the cached teacher is {' and '.join(found) or 'none'}; expected {self.fingerprint or 'one teacher'}: cache it again, "
                "or name the teacher that the columns come from with --teacher-model"
            )
        # A row without a teacher is a broken one, as each row's own check says.
        theirs = max(size or 0 for size in dataset[VOCABULARY][:])
        if theirs > self.vocabulary:
            raise UserError(f"the teacher has {theirs:,} tokens and the student's head {self.vocabulary:,} rows; expected no fewer")
        self.vocabulary = theirs
        # A place has one log-probability more than it names tokens.
        sizes = ((len(raw[TOP_IDS] or ()), len(raw[TOP_LOGPS] or ())) for raw in dataset.select_columns([TOP_IDS, TOP_LOGPS]))
        self._num_named = next((ids // (logps - ids) for ids, logps in sizes if logps > ids > 0), None)
        self._told = f"the teacher is cached ({found[0]}), over {theirs:,} tokens"

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> TopTokens:
        """Read a row's columns.

        Raises:
            ValueError: If they are of other answers, images or tokens than the student's.
        """
        text = digest_answers(row, student)
        if raw[TEACHER_TEXT] != text:
            raise UserError(
                f"the cached teacher is stale, or reads other tokens: it is of the text {raw[TEACHER_TEXT]}, the student's is {text}; "
                "cache it again on these rows, from a teacher with the student's tokenizer and chat template"
            )
        if raw[TEACHER_IMAGES] != student.image_digest:
            raise UserError(
                f"the cached teacher is stale: it saw the images {raw[TEACHER_IMAGES] or 'none'}, "
                f"the row's are {student.image_digest or 'none'}; cache it again on these rows"
            )
        count = sum(map(sum, student.scored))
        if self._num_named is not None and len(raw[TOP_IDS]) != count * self._num_named:
            raise UserError(
                f"the cached teacher names {len(raw[TOP_IDS]) / max(count, 1):g} tokens at each place of this row and {self._num_named} in "
                "the first row: the data are of caches of different --top-k; cache all rows with one"
            )
        ids, logps = torch.tensor(raw[TOP_IDS], dtype=torch.long), torch.tensor(raw[TOP_LOGPS], dtype=torch.float32)
        return TopTokens(ids.view(count, -1), logps.view(count, -1))

    def answered(self, part: TopTokens, ids: Sequence[int]) -> TopTokens:
        """It knows the data's answers alone."""
        raise AssertionError("the options refuse sampled answers for a cached teacher")

    def check_inputs(self) -> Mapping[str, Any]:
        """Its columns are the row's."""
        return {"columns": list(self.columns)}

    def collate(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Ids (K, N) and log-probabilities (K, N + 1)."""
        return {"ids": torch.cat([part.ids for part in parts]), "logps": torch.cat([part.logps for part in parts])}

    def num_compared(self, layout: Mapping[str, Tensor], own: Mapping[str, Any]) -> int:
        """Tokens."""
        return len(layout["target"])

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]], *, packed: bool = False) -> str:
        """Say whose columns they are."""
        return self._told

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> TopTokens:
        """Hand the columns over."""
        assert shift == 0, "a cached teacher is asked at the right places only"
        return TopTokens(own["ids"], own["logps"])
