"""Whom a student mimics: one teacher, or several of which a column names each row's.

Shape legend: K = response tokens of a batch, R = rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.alignment import NO_GROUP
from mmalign.data.encode import EncodedPrompt
from mmalign.data.rows import ChatRow
from mmalign.engine.aligned import Alignment
from mmalign.engine.divergence import MixedStates, Prediction
from mmalign.errors import UserError
from mmalign.methods.aligned_teacher import AlignedTeacher
from mmalign.methods.teachers import CachedTeacher, LiveTeacher, TokenTeacher
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import MimicOptions


class TeacherPanel:
    """Several live teachers; a column names each row's. All share the tokens that each shares with the student."""

    def __init__(self, teachers: Mapping[str, LiveTeacher] | Mapping[str, AlignedTeacher], *, column: str) -> None:
        """Keep teachers by the names that the column holds."""
        self._teachers: Mapping[str, LiveTeacher | AlignedTeacher] = dict(teachers)
        self._column = column
        self.columns = (column,)
        self.vocabulary = min(one.vocabulary for one in teachers.values())
        self.barred = sorted({number for one in teachers.values() for number in one.barred})

    def check_dataset(self, dataset: Dataset) -> None:
        """Rows were checked one by one."""

    def encode(self, raw: Mapping[str, Any], row: ChatRow, student: EncodedPrompt) -> tuple[str, Any]:
        """Tokenise the conversation as the row's own teacher does.

        Raises:
            ValueError: If no teacher has the name that the row gives.
        """
        name = raw[self._column]
        if name not in self._teachers:
            raise UserError(f"{self._column} is {name!r}, and the teachers are {', '.join(self._teachers)}; give it one")
        return name, self._teachers[name].encode(raw, row, student) or student

    def answered(self, part: tuple[str, Any], ids: Sequence[int]) -> tuple[str, Any]:
        """The conversation with another last answer."""
        name, own = part
        return name, self._teachers[name].answered(own, ids)

    def check_inputs(self) -> Mapping[str, Any]:
        """How each reads conversations."""
        return {"column": self._column, **{f"teacher {name}": one.check_inputs() for name, one in self._teachers.items()}}

    def collate(self, parts: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """``owner`` (R,): the number of each row's teacher; under each name what it reads of its rows."""
        names = list(self._teachers)
        batch: dict[str, Any] = {"owner": torch.tensor([names.index(name) for name, _ in parts])}
        for name, teacher in self._teachers.items():
            own = [part for of, part in parts if of == name]
            if own:
                batch[f"teacher {name}"] = teacher.lay_out(own)
        return batch

    def num_compared(self, layout: Mapping[str, Tensor], own: Mapping[str, Any]) -> int:
        """Tokens."""
        return len(layout["target"])

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]], *, packed: bool = False) -> str:
        """Compare each teacher with its own forward on its own rows, which are never packed."""
        lines = []
        for name, teacher in self._teachers.items():
            own = [(read, part) for read, (of, part) in encoded if of == name]
            lines.append(f"{name}: {teacher.start(student, own)}" if own else f"{name}: none of the first rows is its own; not compared")
        return "\n".join(lines)

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> Prediction | Alignment:
        """Run each teacher on its rows."""
        owner = own["owner"][inputs["layout"]["response"]]
        present = [(number, name) for number, name in enumerate(self._teachers) if f"teacher {name}" in own]
        told = [self._teachers[name].ask(student, inputs, own[f"teacher {name}"], shift=shift) for _, name in present]
        return self._join(owner, torch.tensor([number for number, _ in present], device=owner.device), told)

    def _join(self, owner: Tensor, numbers: Tensor, told: Sequence[Any]) -> Prediction | Alignment:
        """Put together what these teachers say, each of the (K,) tokens that it owns."""
        return MixedStates(torch.searchsorted(numbers, owner), tuple(told))


class AlignedPanel(TeacherPanel):
    """Several teachers, each with a tokenizer of its own."""

    def num_compared(self, layout: Mapping[str, Tensor], own: Mapping[str, Any]) -> int:
        """The groups of all."""
        present = [name for name in self._teachers if f"teacher {name}" in own]
        return sum(self._teachers[name].num_compared(layout, own[f"teacher {name}"]) for name in present)

    def _join(self, owner: Tensor, numbers: Tensor, told: Sequence[Alignment]) -> Alignment:
        """See ``TeacherPanel``: each teacher's groups are spread over all of the student's tokens."""
        spread = []
        for number, ((states,),) in zip(numbers, told, strict=True):
            group = torch.full_like(owner, NO_GROUP).masked_scatter(owner == number, states.student_group)
            spread.append(states._replace(student_group=group))
        return Alignment(tuple(spread))


def build_teacher(options: MimicOptions, student: nn.Module, processor: Any) -> TokenTeacher:
    """Load whom the student mimics.

    Raises:
        ValueError: If the teacher doesn't share the student's tokens, and has to.
    """
    dtype, quantization = options.teacher_dtype, options.teacher_quantization
    if options.teacher == ["cached"]:
        named = options.teacher_model
        fingerprint = None if named is None else fingerprint_checkpoint(named, dtype=dtype, quantization=quantization)
        return CachedTeacher(student, fingerprint=fingerprint)
    live: dict[str, Any] = {}
    for name, source in options.teachers.items():
        model, own = load_mllm(source, dtype=dtype, quantization=quantization, attention=options.attention)
        reference = Reference(student, kind="copy", model=model)
        both = {"student": student, "student_processor": processor, "answer_end": options.answer_end}
        if options.aligned:
            live[name] = AlignedTeacher(reference, own, by_name=options.divergence == "uld-hybrid", **both)
        else:
            live[name] = LiveTeacher(reference, own, **both)
    panel = AlignedPanel if options.aligned else TeacherPanel
    return next(iter(live.values())) if len(live) == 1 else panel(live, column=options.teacher_column)
