"""Is the chosen response the longer one? A model can learn that instead of what is true."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LengthBias:
    """Sums over pairs: lengths in words and characters, and which response has more words."""

    words: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    longer: Counter[str] = field(default_factory=Counter)

    def add(self, chosen: str, rejected: str) -> None:
        """Count one pair."""
        lengths = {"chosen": len(chosen.split()), "rejected": len(rejected.split())}
        self.words.update(lengths)
        self.characters.update({"chosen": len(chosen), "rejected": len(rejected)})
        equal = lengths["chosen"] == lengths["rejected"]
        self.longer["equal" if equal else max(lengths, key=lambda name: lengths[name])] += 1

    def summary(self) -> dict[str, Any]:
        """Means, shares, and the sign test of "as often longer as shorter" on the pairs of unequal length."""
        pairs = self.longer.total()
        names = ("chosen", "rejected")
        return {
            "pairs": pairs,
            **{f"mean_words_{name}": self.words[name] / pairs for name in names},
            **{f"mean_characters_{name}": self.characters[name] / pairs for name in names},
            **{f"share_{name}_longer": self.longer[name] / pairs for name in names},
            "share_equal": self.longer["equal"] / pairs,
            "sign_test_p": sign_test(self.longer["chosen"], self.longer["rejected"]),
        }


def sign_test(positive: int, negative: int) -> float:
    """Compute the exact two-sided p-value of a sign test: how likely is a split as uneven, if both signs are equally likely?

    Returns:
        Twice the binomial tail, at most 1. Values below the smallest float come out as 0.
    """
    n, k = positive + negative, min(positive, negative)
    # In logarithms, because C(n, i) of a large set is no float.
    logs = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1))
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
