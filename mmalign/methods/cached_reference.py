"""Cached log-probabilities as the reference: columns that ``score-difficulty`` and ``cache-logps`` write.

Shape legend: K = scored tokens, R = responses, two per pair and any number per list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from mmalign.data.caches import (
    LIST_LOGPS,
    LIST_TOKEN_LOGPS,
    LOGPS,
    REFERENCE_FINGERPRINT,
    REFERENCE_IMAGES,
    REFERENCE_TEXT,
    REFERENCE_VIEWS,
    TOKEN_LOGPS,
    cell_logps,
    digest_text,
    digest_views,
)
from mmalign.data.encode import EncodedPrompt
from mmalign.data.numbers import is_finite
from mmalign.data.rows import check_columns
from mmalign.engine.views import Views
from mmalign.errors import UserError
from mmalign.losses.image_terms import CHOSEN, REJECTED, Cell, CellLogps, cells_of
from mmalign.losses.pair_kernel import PairObjective
from mmalign.losses.scores import Logps, ScoredTokens


class CachedReference:
    """Reads the reference's log-probabilities from rows: sums of responses, or tokens where an objective weights them."""

    def __init__(self, fingerprint: str | None, *, by_token: bool, lists: bool = False) -> None:
        """Choose the columns; ``fingerprint`` is what they must come from. Those of ``lists`` hold all responses."""
        self.fingerprint = fingerprint
        self.by_token = by_token
        self.lists = lists
        own, by_tokens = ((LIST_LOGPS,), (LIST_TOKEN_LOGPS,)) if lists else (LOGPS, TOKEN_LOGPS)
        self.columns: tuple[str, ...] = by_tokens if by_token else own
        self.cells: tuple[Cell, ...] = ()
        """Those of other images or answers that are read too."""

    def read_cells(self, views: Views, objectives: Sequence[PairObjective]) -> None:
        """Read cells too: the sums of those that an objective compares with the reference."""
        compared = {
            cell for one in objectives if one.uses_reference for cell in (*cells_of(one.terms), *(one.reads if one.compares_cells else ()))
        }
        self.cells = tuple(cell for cell in views.cells if cell in compared - {CHOSEN, REJECTED})

    def check_dataset(self, dataset: Dataset) -> None:
        """Check that the columns are there and come from the reference.

        Raises:
            ValueError: If they don't; the message names both fingerprints.
        """
        if REFERENCE_TEXT in dataset.column_names and REFERENCE_IMAGES not in dataset.column_names:
            raise UserError(
                f"the cached log-probabilities have no column {REFERENCE_IMAGES}: an earlier version wrote them, and they may be of other "
                "images; run mmalign cache-logps or score-difficulty again on these rows"
            )
        wanted = (*self.columns, REFERENCE_TEXT, REFERENCE_IMAGES, REFERENCE_FINGERPRINT)
        check_columns(dataset.column_names, wanted, what="the data set, for reference 'cached',")
        missing = [
            name for name in (*map(cell_logps, self.cells), *((REFERENCE_VIEWS,) if self.cells else ())) if name not in dataset.column_names
        ]
        if missing:
            raise UserError(
                f"the cached log-probabilities have no {', '.join(missing)}, of the images that the objectives compare; "
                "run mmalign cache-logps with the same --objective, --weaken and --weaken-seed"
            )
        assert self.fingerprint is not None, "a cached reference has a fingerprint"
        for found in sorted(set(dataset[REFERENCE_FINGERPRINT][:]) - {self.fingerprint, None}):
            raise UserError(
                f"the cached log-probabilities are stale: they come from {found}, the reference is {self.fingerprint}; "
                "run mmalign cache-logps with the reference, in its --dtype and --quantization, or name the model they come from with "
                "--reference-model"
            )

    def check(self, raw: Mapping[str, Any]) -> None:
        """Check a row's numbers.

        Raises:
            ValueError: If one is not finite, or is of no reference.
        """
        if REFERENCE_FINGERPRINT in raw and raw[REFERENCE_FINGERPRINT] is None:
            raise UserError(f"{REFERENCE_FINGERPRINT} is empty; expected what the log-probabilities come from: score the pairs again")
        for name in (*self.columns, *map(cell_logps, self.cells)):
            for value in _numbers(raw.get(name, [])):
                if not is_finite(value):
                    raise UserError(f"{name} is {value!r}; expected a finite log-probability: score the pairs again")

    def check_text(self, raw: Mapping[str, Any], prompts: Sequence[EncodedPrompt]) -> None:
        """Check that a row's log-probabilities are those of its text and images, one for each token.

        Raises:
            ValueError: If they are not.
        """
        if self.cells:
            found = digest_views(prompts)
            if raw[REFERENCE_VIEWS] != found:
                raise UserError(
                    f"the cached log-probabilities of row {raw.get('id')} are stale: they are of other texts or images, weakened ones "
                    f"among them ({raw[REFERENCE_VIEWS]}; the row's are {found}); run mmalign cache-logps again with the same --objective, "
                    "--weaken and --weaken-seed"
                )
            return
        encoded = prompts[0]
        text, images = digest_text(encoded), encoded.image_digest
        for what, held, found in (("text is", raw[REFERENCE_TEXT], text), ("images are", raw[REFERENCE_IMAGES], images)):
            if held != found:
                raise UserError(
                    f"the cached log-probabilities of row {raw.get('id')} are stale: they are of the {what.split()[0]} {held or 'none'}, "
                    f"the row's {what} {found or 'none'}; run mmalign cache-logps again on these rows"
                )
        for name, values, scored in zip(*self._by_response(raw), encoded.scored, strict=True) if self.by_token else ():
            if len(values) != sum(scored):
                raise UserError(f"{name} has {len(values)} values for {sum(scored)} tokens; run mmalign cache-logps again on these rows")

    def _by_response(self, raw: Mapping[str, Any]) -> tuple[list[str], list[list[float]]]:
        """The column of each response, and its tokens' values."""
        found = [(name, values) for name in self.columns for values in (raw[name] if self.lists else [raw[name]])]
        return [name for name, _ in found], [values for _, values in found]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """(K,) or (R,) values, responses in the order chosen, rejected, chosen, ..."""
        return torch.tensor([value for row in rows for name in self.columns for value in _numbers(row[name])])

    def collate_cells(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """(B, C) sums of the cells."""
        return torch.tensor([[row[cell_logps(cell)] for cell in self.cells] for row in rows])

    def add_cells(self, cells: Mapping[Cell, CellLogps], pair: Logps, values: Tensor | None) -> dict[Cell, CellLogps]:
        """Put what the reference says into cells: the pair's own, and what ``collate_cells`` made."""
        sums = dict(zip((CHOSEN, REJECTED), pair.sums.view(-1, 2).unbind(1), strict=True))
        if values is not None:
            sums |= dict(zip(self.cells, values.unbind(1), strict=True))
        return {cell: replace(one, reference=Logps(sums[cell]) if cell in sums else None) for cell, one in cells.items()}

    def logps(self, values: Tensor, tokens: ScoredTokens) -> Logps:
        """Read what ``collate`` made."""
        return Logps(tokens.sums(values), values) if self.by_token else Logps(values)


def _numbers(value: Any) -> list[Any]:
    """A column's values in one list, however deep it is."""
    return [one for part in value for one in _numbers(part)] if isinstance(value, list) else [value]
