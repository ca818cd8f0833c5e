"""Cached log-probabilities as the reference: columns of the data that ``score-difficulty`` writes.

Shape legend: B = pairs, K = scored tokens, R = 2 B responses.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt
from mmalign.losses.scores import Logps, ScoredTokens

SUM_COLUMNS = ("reference_logps_chosen", "reference_logps_rejected")
TOKEN_COLUMNS = ("reference_token_logps_chosen", "reference_token_logps_rejected")


class CachedReference:
    """Reads the reference's log-probabilities from rows: sums of responses, or tokens where an objective weights them."""

    def __init__(self, *, by_token: bool) -> None:
        """Choose the columns."""
        self.by_token = by_token
        self.columns = TOKEN_COLUMNS if by_token else SUM_COLUMNS

    def check(self, raw: Mapping[str, Any]) -> None:
        """Check a row's numbers.

        Raises:
            ValueError: If one is not finite.
        """
        for name in self.columns:
            values = raw.get(name, [])
            for value in values if isinstance(values, list) else [values]:
                if not (isinstance(value, (int, float)) and math.isfinite(value)):
                    raise ValueError(f"{name} is {value!r}; expected a finite log-probability: score the pairs again")

    def check_lengths(self, raw: Mapping[str, Any], encoded: EncodedPrompt) -> None:
        """Check that there is a number for each token.

        Raises:
            ValueError: If they come from another tokenizer or text.
        """
        for name, scored in zip(self.columns, encoded.scored, strict=True):
            if self.by_token and name in raw and len(raw[name]) != sum(scored):
                raise ValueError(f"{name} has {len(raw[name])} values for {sum(scored)} tokens: score the pairs again with this processor")

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """(K,) or (R,) values, responses in the order chosen, rejected, chosen, ..."""
        values = [row[name] for row in rows for name in self.columns]
        return torch.tensor([token for response in values for token in response] if self.by_token else values)

    def logps(self, values: Tensor, tokens: ScoredTokens) -> Logps:
        """Read what ``collate`` made."""
        return Logps(tokens.sums(values), values) if self.by_token else Logps(values)
