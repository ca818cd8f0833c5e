"""A teacher's likeliest tokens from columns of the data, as ``mmalign cache-teacher`` writes them.

Shape legend: K = response tokens of a batch, N = tokens kept of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn

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
from mmalign.data.encode import EncodedPrompt
from mmalign.data.rows import ChatRow, check_columns
from mmalign.engine.distillation import TopTokens, head_size
from mmalign.errors import UserError


class CachedTeacher:
    """Reads what the teacher said; the divergence is over the tokens that it named and one bucket of all others."""

    columns = TEACHER_COLUMNS
    reads_each_row = True

    def __init__(self, student: nn.Module, *, fingerprint: str | None) -> None:
        """``fingerprint`` is what the columns must come from; None takes any one teacher's."""
        self.vocabulary = head_size(student)
        self.fingerprint = fingerprint

    def check_dataset(self, dataset: Dataset) -> None:
        """Check that the columns are one teacher's, and the expected one's.

        Raises:
            ValueError: If they aren't, with the fingerprints; if the student has too few tokens.
        """
        check_columns(dataset.column_names, TEACHER_COLUMNS, what="the data set, for teacher 'cached',")
        found = sorted(set(dataset[TEACHER_FINGERPRINT]))
        if len(found) > 1 or (self.fingerprint is not None and found[0] != self.fingerprint):
            raise UserError(
                f"the cached teacher is {' and '.join(found)}; expected {self.fingerprint or 'one teacher'}: cache it again, "
                "or name the teacher that the columns come from with --teacher-model"
            )
        theirs = max(dataset[VOCABULARY])
        if theirs > self.vocabulary:
            raise UserError(f"the teacher has {theirs:,} tokens and the student's head {self.vocabulary:,} rows; expected no fewer")
        self.vocabulary = theirs
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
        ids, logps = torch.tensor(raw[TOP_IDS], dtype=torch.long), torch.tensor(raw[TOP_LOGPS], dtype=torch.float32)
        return TopTokens(ids.view(count, -1), logps.view(count, -1))

    def collate(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Ids (K, N) and log-probabilities (K, N + 1)."""
        return {"ids": torch.cat([part.ids for part in parts]), "logps": torch.cat([part.logps for part in parts])}

    def start(self, student: nn.Module, encoded: Sequence[tuple[EncodedPrompt, Any]]) -> str:
        """Say whose columns they are."""
        return self._told

    def ask(self, student: nn.Module, inputs: dict[str, Any], own: dict[str, Any], *, shift: int) -> TopTokens:
        """Hand the columns over."""
        assert shift == 0, "a cached teacher is asked at the right places only"
        return TopTokens(own["ids"], own["logps"])
