"""Is the chosen response the longer one? A model can learn that instead of what is true."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from scipy import stats


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
    """Compute the exact two-sided p-value of a sign test: how likely is so uneven a split, if both signs are equally likely?"""
    return float(stats.binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0
