"""Cached log-probabilities as the reference: columns that ``score-difficulty`` and ``cache-logps`` write.

Shape legend: K = scored tokens, R = responses, two per pair and any number per list.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from mmalign.data.caches import LIST_LOGPS, LOGPS, REFERENCE_FINGERPRINT, REFERENCE_IMAGES, REFERENCE_TEXT, TOKEN_LOGPS, digest_text
from mmalign.data.encode import EncodedPrompt
from mmalign.data.rows import check_columns
from mmalign.errors import UserError
from mmalign.losses.scores import Logps, ScoredTokens


class CachedReference:
    """Reads the reference's log-probabilities from rows: sums of responses, or tokens where an objective weights them."""

    def __init__(self, fingerprint: str | None, *, by_token: bool, lists: bool = False) -> None:
        """Choose the columns; ``fingerprint`` is what they must come from. Those of ``lists`` are sums."""
        assert not (by_token and lists)
        self.fingerprint = fingerprint
        self.by_token = by_token
        self.lists = lists
        self.columns: tuple[str, ...] = (LIST_LOGPS,) if lists else TOKEN_LOGPS if by_token else LOGPS

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
        assert self.fingerprint is not None, "a cached reference has a fingerprint"
        for found in sorted(set(dataset[REFERENCE_FINGERPRINT]) - {self.fingerprint}):
            raise UserError(
                f"the cached log-probabilities are stale: they come from {found}, the reference is {self.fingerprint}; "
                "run mmalign cache-logps with the reference, or name the model they come from with --reference-model"
            )

    def check(self, raw: Mapping[str, Any]) -> None:
        """Check a row's numbers.

        Raises:
            ValueError: If one is not finite.
        """
        for name in self.columns:
            values = raw.get(name, [])
            for value in values if isinstance(values, list) else [values]:
                if not (isinstance(value, (int, float)) and math.isfinite(value)):
                    raise UserError(f"{name} is {value!r}; expected a finite log-probability: score the pairs again")

    def check_text(self, raw: Mapping[str, Any], encoded: EncodedPrompt) -> None:
        """Check that a row's log-probabilities are those of its text and images, one for each token.

        Raises:
            ValueError: If they are not.
        """
        text, images = digest_text(encoded), encoded.image_digest
        for what, held, found in (("text is", raw[REFERENCE_TEXT], text), ("images are", raw[REFERENCE_IMAGES], images)):
            if held != found:
                raise UserError(
                    f"the cached log-probabilities of row {raw.get('id')} are stale: they are of the {what.split()[0]} {held or 'none'}, "
                    f"the row's {what} {found or 'none'}; run mmalign cache-logps again on these rows"
                )
        for name, scored in zip(self.columns, encoded.scored, strict=True) if self.by_token else ():
            if len(raw[name]) != sum(scored):
                raise UserError(f"{name} has {len(raw[name])} values for {sum(scored)} tokens; run mmalign cache-logps again on these rows")

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """(K,) or (R,) values, responses in the order chosen, rejected, chosen, ..."""
        values = [row[name] for row in rows for name in self.columns]
        return torch.tensor([token for response in values for token in response] if self.by_token or self.lists else values)

    def logps(self, values: Tensor, tokens: ScoredTokens) -> Logps:
        """Read what ``collate`` made."""
        return Logps(tokens.sums(values), values) if self.by_token else Logps(values)
