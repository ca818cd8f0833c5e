"""POPE questions about held-out scenes, by POPE's three ways to choose absent objects (arXiv:2305.10355)."""

from collections.abc import Sequence

import numpy as np

from mmalign.worlds.text import EXISTENCE, Speaker

POPE_SPLITS = ("random", "popular", "adversarial")
QUESTIONS_A_SIDE = 3


def count_objects(scenes: Sequence[frozenset[int]], num_kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Count how often each kind occurs, (kinds,), and each two kinds together, (kinds, kinds)."""
    present = np.zeros((len(scenes), num_kinds), dtype=np.int64)
    for row, kinds in zip(present, scenes, strict=True):
        row[sorted(kinds)] = 1
    together = present.T @ present
    np.fill_diagonal(together, 0)
    return present.sum(0), together


def absent_kinds(split: str, kinds: frozenset[int], *, frequency: np.ndarray, together: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Order the absent kinds by how a split prefers them: at random, by frequency, or by co-occurrence with what is present."""
    absent = [kind for kind in range(len(frequency)) if kind not in kinds]
    if split == "random":
        return [absent[i] for i in rng.permutation(len(absent))]
    score = frequency if split == "popular" else together[sorted(kinds)].sum(0)
    return sorted(absent, key=lambda kind: (-score[kind], kind))


def pope_questions(
    split: str, images: Sequence[tuple[str, frozenset[int]]], speaker: Speaker, *, frequency: np.ndarray, together: np.ndarray, seed: int
) -> list[dict[str, object]]:
    """Make one split's questions in POPE's own format, yes and no in turn, as many of each on every image.

    Args:
        split: random, popular or adversarial.
        images: File names with the kinds present; a scene with fewer than three kinds present or absent
            gets as many questions of each side as it has.
        speaker: Words of the world.
        frequency: Count of each kind over the training scenes.
        together: Co-occurrence counts over the training scenes.
        seed: Of the random choices.
    """
    rng = np.random.default_rng([seed, POPE_SPLITS.index(split)])
    rows: list[dict[str, object]] = []
    for name, kinds in images:
        present = [sorted(kinds)[i] for i in rng.permutation(len(kinds))]
        absent = absent_kinds(split, kinds, frequency=frequency, together=together, rng=rng)
        number = min(QUESTIONS_A_SIDE, len(present), len(absent))
        for yes, no in zip(present[:number], absent[:number], strict=True):
            for kind, label in ((yes, "yes"), (no, "no")):
                text = EXISTENCE.format(speaker.noun(kind))
                rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": label})
    return rows
