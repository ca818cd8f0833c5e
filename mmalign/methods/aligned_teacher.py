"""A teacher with another tokenizer: it reads the same words, cut into its own tokens, and is compared where both tokenisations meet.

Shape legend: K, J = scored tokens of a batch, the student's and the teacher's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.alignment import NO_GROUP, Aligned, align_answers, list_answers
from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.messages import text_of
from mmalign.data.rows import ChatRow
from mmalign.data.templates import replace_text
from mmalign.data.token_bytes import TokenBytes, match_tokens
from mmalign.data.verdicts import digest_processor
from mmalign.engine.aligned import AlignedStates, Alignment
from mmalign.engine.batch import collate_prompts
from mmalign.engine.generation import end_tokens
from mmalign.engine.logps import unwrap, unwrap_parallel
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.engine.student import compute_teacher_states, head_size
from mmalign.models.references import Reference
from mmalign.options.rows import AnswerEnd


class _Part(NamedTuple):
    """What the teacher reads of a row."""

    row: ChatRow
    encoded: EncodedPrompt
    answers: list[list[int]]
    """The student's tokens of each answer."""
    aligned: Aligned


class AlignedTeacher:
    """A frozen model of any family with any fast tokenizer."""

    columns: tuple[str, ...] = ()

    def __init__(
        self,
        reference: Reference,
        processor: Any,
        *,
        student: nn.Module,
        student_processor: Any,
        answer_end: AnswerEnd = "token",
        by_name: bool = False,
    ) -> None:
        """Read both vocabularies.

        Args:
            reference: The teacher.
            processor: Its own.
            student: The model in training.
            student_processor: Its own.
            answer_end: What stands behind an answer where the template writes nothing.
            by_name: Whether tokens that both have are compared with each other.

        Raises:
            ValueError: If a tokenizer doesn't tell its tokens' bytes.
        """
        assert reference.model is not None, "a teacher is a model of its own"
        self.reference, self.processor, self.answer_end = reference, processor, answer_end
        self._student, self._own = TokenBytes(student_processor.tokenizer), TokenBytes(processor.tokenizer)
        self.vocabulary = min(self._student.size, head_size(student))
        self._size = min(self._own.size, head_size(reference.model))
        self._ends = end_tokens(unwrap(student))
        self.barred = [number for number in range(self.vocabulary) if not self._may_be_said(number)]
        matched = match_tokens(self._student, self._own, sizes=(self.vocabulary, self._size))
        self._matched = tuple(torch.tensor(ids) for ids in matched) if by_name else None

    def _may_be_said(self, number: int) -> bool:
        """Whether a token is text, or ends an answer."""
        return number in self._ends or (number in self._student.bytes and number not in self._student.special)

    def check_dataset(self, dataset: Dataset) -> None:
        """It reads no columns."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> _Part:
        """Tokenise the conversation as the teacher's processor does.

        Raises:
            ValueError: If a tokenizer or a template changes the answers' words.
        """
        return self._read(row, list_answers(student), ended=True)

    def _read(self, row: ChatRow, answers: list[list[int]], *, ended: bool) -> _Part:
        encoded = encode_chat(self.processor, row, answer_end=self.answer_end)
        words = [text_of(message) for message in row.messages if message["role"] == "assistant"]
        aligned = align_answers(self._student, answers, self._own, list_answers(encoded), words, ended=ended)
        return _Part(row, encoded, answers, aligned)

    def answered(self, part: _Part, ids: Sequence[int]) -> _Part:
        """The conversation with the words of other tokens as the last answer.

        Raises:
            ValueError: If the teacher can't read them.
        """
        ended = ids[-1] in self._ends
        # Spaces around the words are the teacher's own template's.
        words = self._student.text(ids[:-1] if ended else ids).strip()
        messages = [*part.row.messages[:-1], replace_text(part.row.messages[-1], words)]
        return self._read(replace(part.row, messages=messages), [*part.answers[:-1], list(ids)], ended=ended)

    def check_inputs(self) -> Mapping[str, Any]:
        """How it reads conversations."""
        return {"processor": digest_processor(self.processor), "aligned": True}

    def collate(self, parts: Sequence[_Part]) -> dict[str, Any]:
        """The teacher's own ``batch``; the groups of its scored tokens (J,) and of the student's (K,)."""
        return self.lay_out(parts)

    def lay_out(self, parts: Sequence[_Part]) -> dict[str, Any]:
        """The same: it never reads the student's own inputs."""
        return {
            "batch": collate_prompts([part.encoded for part in parts], pad_token_id=self.processor.tokenizer.pad_token_id),
            "group": _join([part.aligned.teacher for part in parts]),
            "student_group": _join([part.aligned.student for part in parts]),
        }

    def num_compared(self, layout: Mapping[str, Tensor], own: Mapping[str, Any]) -> int:
        """Groups."""
        return int(own["group"].max().clamp(min=NO_GROUP)) + 1 if len(own["group"]) else 0

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, _Part]], *, packed: bool = False) -> str:
        """Compare with the teacher's own forward, and say how the tokenisations meet; its rows are never packed.

        Raises:
            ValueError: If the numbers differ.
        """
        parts = [part for _, part in encoded]
        with self.reference.active(unwrap_parallel(student)) as teacher:
            check_rows(teacher, [part.encoded for part in parts[:PROBED_ROWS]], pad_token_id=self.processor.tokenizer.pad_token_id)
        mine, theirs = (sum(len(groups[side]) for groups in (part.aligned for part in parts)) for side in (0, 1))
        told = f"the student has {self.vocabulary:,} tokens and the teacher {self._size:,}"
        told += "" if self._matched is None else f", {len(self._matched[0]):,} of them the same"
        groups = sum(part.aligned.num_groups for part in parts)
        return f"{told}; {mine:,} tokens of the first rows' answers meet {theirs:,} of the teacher's in {groups:,} groups"

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> Alignment:
        """Run the teacher up to its head."""
        assert shift == 0, "the options refuse other places"
        with self.reference.active(unwrap_parallel(student)) as teacher:
            states = compute_teacher_states(teacher, own["batch"]).cut(self._size)
        device, target = states.hidden.device, own["batch"]["layout"]["target"]
        matched = None if self._matched is None else (self._matched[0].to(device), self._matched[1].to(device))
        return Alignment((AlignedStates(states, target, own["group"], own["student_group"], matched),))


def _join(groups: Sequence[Sequence[int]]) -> Tensor:
    """Number the groups of several rows on."""
    joined: list[int] = []
    before = 0
    for row in groups:
        joined += [group if group == NO_GROUP else group + before for group in row]
        before += max(row, default=NO_GROUP) + 1
    return torch.tensor(joined, dtype=torch.long)
