"""How a rejected response is drawn, likelier the less a target prefers it (DID, arXiv:2505.23761)."""

import math
from collections.abc import Sequence

from mmalign.errors import UserError


def read_rejected(text: str) -> float | None:
    """Read --rejected: None for worst, else the beta of did.

    Raises:
        ValueError: If it is neither.
    """
    name, _, value = text.partition(":beta=")
    if text == "worst":
        return None
    try:
        beta = float(value)
    except ValueError:
        beta = math.nan
    if name != "did" or not 0 <= beta < math.inf:
        raise UserError(f"rejected is {text!r}; expected worst, or did:beta=0.5 with a beta of 0 (uniform) or more")
    return beta


def did_weights(scores: Sequence[float], *, beta: float, scale: float) -> list[float]:
    """Weights that rejected samples are drawn with: softmax(-beta score / scale) (DID, arXiv:2505.23761, Theorem 3.3)."""
    lowest = min(scores)
    weights = [math.exp(-beta * (score - lowest) / scale) for score in scores]
    return [weight / sum(weights) for weight in weights]
