"""Whom a student mimics: one teacher, or several of which a column names each row's.

Shape legend: K = response tokens of a batch, R = rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from mmalign.data.encode import EncodedPrompt
from mmalign.data.last_answer import with_answer
from mmalign.data.rows import ChatRow
from mmalign.engine.batch import collate_prompts
from mmalign.engine.divergence import MixedStates
from mmalign.errors import UserError
from mmalign.methods.teachers import CachedTeacher, LiveTeacher, TokenTeacher
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import MimicOptions


class TeacherPanel:
    """Several live teachers; a column names each row's. All share the tokens that each shares with the student."""

    def __init__(self, teachers: Mapping[str, LiveTeacher], *, column: str) -> None:
        """Keep teachers by the names that the column holds."""
        self._teachers, self._column = teachers, column
        self.columns = (column,)
        self.vocabulary = min(one.vocabulary for one in teachers.values())
        self.barred = sorted({number for one in teachers.values() for number in one.barred})

    def check_dataset(self, dataset: Dataset) -> None:
        """Rows were checked one by one."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> tuple[str, EncodedPrompt]:
        """Tokenise the conversation as the row's own teacher does.

        Raises:
            ValueError: If no teacher has the name that the row gives.
        """
        name = raw[self._column]
        if name not in self._teachers:
            raise UserError(f"{self._column} is {name!r}, and the teachers are {', '.join(self._teachers)}; give it one")
        return name, self._teachers[name].encode(raw, row, student) or student

    def answered(self, part: tuple[str, EncodedPrompt], ids: Sequence[int]) -> tuple[str, EncodedPrompt]:
        """The conversation with another last answer."""
        name, encoded = part
        return name, with_answer(encoded, ids)

    def check_inputs(self) -> Mapping[str, Any]:
        """How each reads conversations."""
        return {"column": self._column, **{f"teacher {name}": one.check_inputs() for name, one in self._teachers.items()}}

    def collate(self, parts: Sequence[tuple[str, EncodedPrompt]]) -> dict[str, Any]:
        """``owner`` (R,): the number of each row's teacher; under each name the batch of its rows."""
        names = list(self._teachers)
        batch: dict[str, Any] = {"owner": torch.tensor([names.index(name) for name, _ in parts])}
        for name, teacher in self._teachers.items():
            own = [encoded for of, encoded in parts if of == name]
            if own:
                batch[f"teacher {name}"] = collate_prompts(own, pad_token_id=teacher.processor.tokenizer.pad_token_id)
        return batch

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]]) -> str:
        """Compare each teacher with its own forward on its own rows."""
        lines = []
        for name, teacher in self._teachers.items():
            own = [(read, part) for read, (of, part) in encoded if of == name]
            lines.append(f"{name}: {teacher.start(student, own)}" if own else f"{name}: none of the first rows is its own; not compared")
        return "\n".join(lines)

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> MixedStates:
        """Run each teacher on its rows."""
        owner = own["owner"][inputs["layout"]["response"]]
        present = [(number, name) for number, name in enumerate(self._teachers) if f"teacher {name}" in own]
        states = [self._teachers[name].ask(student, inputs, own[f"teacher {name}"], shift=shift) for _, name in present]
        numbers = torch.tensor([number for number, _ in present], device=owner.device)
        return MixedStates(torch.searchsorted(numbers, owner), tuple(states))


def build_teacher(options: MimicOptions, student: nn.Module, processor: Any) -> TokenTeacher:
    """Load whom the student mimics.

    Raises:
        ValueError: If the teacher doesn't share the student's tokens.
    """
    dtype, quantization = options.teacher_dtype, options.teacher_quantization
    if options.teacher == ["cached"]:
        named = options.teacher_model
        fingerprint = None if named is None else fingerprint_checkpoint(named, dtype=dtype, quantization=quantization)
        return CachedTeacher(student, fingerprint=fingerprint)
    live = {}
    for name, source in options.teachers.items():
        model, teacher_processor = load_mllm(source, dtype=dtype, quantization=quantization, attention=options.attention)
        reference = Reference(student, kind="copy", model=model)
        live[name] = LiveTeacher(reference, teacher_processor, student=student, student_processor=processor, answer_end=options.answer_end)
    return next(iter(live.values())) if len(live) == 1 else TeacherPanel(live, column=options.teacher_column)
