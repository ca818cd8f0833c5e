"""Which pairs are trained on, in which order, and what is done with labels that the proxies speak against.

Shape legend: N = pairs of the data set.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from mmalign.data.datasets import add_columns
from mmalign.errors import UserError
from mmalign.options.methods import SelectionOptions
from mmalign.training.method import Selection

GAP = "gap_fused"
FLIPPED = "pair_flipped"
LABEL_FLIP = "pair_label_flip"


def select_pairs(dataset: Dataset, options: SelectionOptions) -> Selection:
    """Treat noisy labels, filter by difficulty, and sort, in this order.

    Args:
        dataset: Checked rows; what is asked for decides which columns of ``scored.parquet`` are needed.
        options: What is asked for; ``check_selection`` has seen to it that the columns are there.

    Returns:
        The pairs. Flipped ones have True in column ``pair_flipped`` and keep their texts as they are; smoothed ones have their share of
        the swapped pair's loss in ``pair_label_flip``. A curriculum's rows stand in its order, ties in the order of the data.

    Raises:
        ValueError: If a value is no number or nothing is left.
    """
    counts: dict[str, Any] = {}
    notes = []
    if options.noisy_gap != "keep":
        dataset, found, note = _treat_noisy(dataset, options)
        counts |= found
        notes.append(note)
    if options.difficulty_range:
        low, high = options.difficulty_range
        difficulty = _read_column(dataset, "difficulty")
        inside = np.flatnonzero((difficulty >= low) & (difficulty <= high))
        counts["outside_difficulty_range"] = len(dataset) - len(inside)
        notes.append(f"difficulty from {low:g} to {high:g}: {len(inside):,} of {len(dataset):,} pairs remain")
        if not len(inside):
            raise UserError(
                f"no pair of {len(dataset):,} has a difficulty from {low:g} to {high:g}: they are from {difficulty.min():.3f} to "
                f"{difficulty.max():.3f}; widen --difficulty-range"
            )
        dataset = dataset.select(inside)
    if options.curriculum != "none":
        difficulty = _read_column(dataset, "difficulty")
        dataset = dataset.select(np.argsort(difficulty if options.curriculum == "easy-to-hard" else -difficulty, kind="stable"))
        notes.append(f"curriculum {options.curriculum}: difficulty from {difficulty.min():.3f} to {difficulty.max():.3f}")
    return Selection(dataset, {**counts, "trained_on": len(dataset)} if notes else {}, tuple(notes))


def check_selection(dataset: Dataset, options: SelectionOptions) -> None:
    """Check that the columns are there that ``select_pairs`` will read.

    Raises:
        ValueError: If one is missing.
    """
    reads = {
        "noisy-gap": (options.noisy_gap != "keep", GAP),
        "difficulty-range": (bool(options.difficulty_range), "difficulty"),
        "curriculum": (options.curriculum != "none", "difficulty"),
    }
    for option, (asked, name) in reads.items():
        if asked and name not in dataset.column_names:
            raise UserError(
                f"--{option} reads the column {name}, and the data set has none: run mmalign score-difficulty, or mmalign fuse-difficulty "
                "again where it was scored by an earlier version, and train on scored.parquet"
            )


def noise_threshold(gaps: NDArray[np.float64], options: SelectionOptions) -> float:
    """Return the fused gap at or below which a pair is noisy; never above 0, where the proxies agree with the label.

    Args:
        gaps: (N,) sum of weight x gap / std over the proxies: in standard deviations, and negative where they prefer the rejected one.
        options: Standard deviations or a quantile.
    """
    if options.noisy_gap_quantile is None:
        return 0.0 - options.noisy_gap_std
    return min(0.0, float(np.quantile(gaps, options.noisy_gap_quantile, method="lower")))


def _treat_noisy(dataset: Dataset, options: SelectionOptions) -> tuple[Dataset, dict[str, Any], str]:
    gaps = _read_column(dataset, GAP)
    threshold = noise_threshold(gaps, options)
    noisy = (gaps <= threshold) & (gaps < 0)
    done = {"drop": "dropped", "flip": "flipped", "smooth": "smoothed"}[options.noisy_gap]
    note = f"noisy gaps: {noisy.sum():,} of {len(dataset):,} pairs, fused gap at or below {threshold:.3f} standard deviations, {done}"
    counts = {"noisy_gap": options.noisy_gap, "noisy_gap_threshold": threshold, "noisy_pairs": int(noisy.sum())}
    if options.noisy_gap == "drop":
        if noisy.all():
            raise UserError(f"all {len(dataset):,} pairs have a fused gap at or below {threshold:.3f}; raise --noisy-gap-std, or flip them")
        dataset = dataset.select(np.flatnonzero(~noisy))
    elif options.noisy_gap == "flip":
        dataset = add_columns(dataset, {FLIPPED: noisy})
    else:
        dataset = add_columns(dataset, {LABEL_FLIP: np.where(noisy, options.noisy_gap_label_flip, 0.0)})
    return dataset, counts, note


def _read_column(dataset: Dataset, name: str) -> NDArray[np.float64]:
    values = np.array([np.nan if value is None else value for value in dataset[name][:]], dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise UserError(f"{name} of row {broken[0]} is {dataset[name][int(broken[0])]!r}; expected a finite number: score the pairs again")
    return values


def swap_sides(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with all that is said of its chosen response said of the rejected one, and the other way round."""
    return {_other_side(name): value for name, value in row.items()}


def _other_side(name: str) -> str:
    for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if name == one or name.endswith(f"_{one}"):
            return name.removesuffix(one) + other
    return name
