"""How far two judges agree on the same answers: share of equal decisions, and Cohen's kappa (1960; weighted, 1968).

Shape legend: V = values of a decision, I = images, S = resamples of the images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmalign.errors import UserError
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.decisions import Decision
from mmalign.evaluation.intervals import Interval, interval_of, resample, unit_of
from mmalign.evaluation.items import Item, add_up
from mmalign.evaluation.metrics import Array, Sums
from mmalign.evaluation.verdicts import UnreadableError
from mmalign.options.evaluate import Mode


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree in one decision.

    Attributes:
        values: Of the decision.
        table: (V, V) counts of answers; a row for each value of the first judge, a column for each of the second.
        unreadable: Answers where the reply of the first could not be read, of the second, of both; they are in no other number.
        metrics: ``accuracy``, ``kappa``, and of ordered values ``weighted_kappa``; a kappa is left out where both judges always say one
            and the same.
    """

    values: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]
    unreadable: tuple[int, int, int]
    metrics: Mapping[str, Interval]


def judge_one_by_one(
    benchmark: Benchmark, answers: Mapping[str, str], judgements: Mapping[str, str], *, mode: Mode
) -> dict[str, Item | None]:
    """Score each judged answer on its own; None where the benchmark can't read the reply at all."""
    items: dict[str, Item | None] = {}
    for identifier in judgements:
        one = {identifier: answers[identifier]}
        try:
            (items[identifier],) = benchmark.items(one, mode=mode, judgements={identifier: judgements[identifier]})
        except UnreadableError:
            items[identifier] = None
    return items


def compute_agreement(
    decision: Decision,
    first: Mapping[str, Item | None],
    second: Mapping[str, Item | None],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare two judges in one decision, with percentile-bootstrap intervals over images.

    Args:
        decision: What is compared.
        first: Answers by id as one judge judged them; None is a reply that can't be read.
        second: The same answers by the other.
        level: Share of the resamples inside the interval.
        resamples: Number of resamples.
        seed: Of the resampling.

    Raises:
        ValueError: If the two judged different answers, or no answer was judged readably by both.
    """
    if first.keys() != second.keys():
        raise UserError(f"the judges judged different answers ({len(first)} and {len(second)}, {len(first.keys() & second.keys())} shared)")
    said = {i: (decision.find(first[i]), decision.find(second[i])) for i in first}
    unreadable = [sum(lacks) for lacks in zip(*((a is None, b is None, a is b is None) for a, b in said.values()), strict=True)]
    cells = [_cell(first[i], f"{a}|{b}") for i, (a, b) in said.items() if a is not None and b is not None]
    if not cells:
        raise UserError(f"no reply to {len(first)} answers can be read of both judges; look at the judgements, or set another mode")
    table = _tables(add_up(cells), decision.values)
    replicates = _tables(resample(add_up(cells, unit_of), resamples=resamples, seed=seed), decision.values)
    values, spread = _metrics(table, ordered=decision.ordered), _metrics(replicates, ordered=decision.ordered)
    metrics = {name: interval_of(float(value[0]), spread[name], level) for name, value in values.items() if not np.isnan(value[0])}
    counts = tuple(tuple(int(cell) for cell in row) for row in table[0])
    return Agreement(decision.values, counts, (unreadable[0], unreadable[1], unreadable[2]), metrics)


def _cell(item: Item | None, name: str) -> Item:
    """The answer, adding to one cell of the table alone."""
    assert item is not None
    return replace(item, group="", values={name: 1})


def _tables(sums: Sums, values: Sequence[str]) -> Array:
    """Return (S, V, V) counts."""
    none = np.zeros(len(sums.totals))
    cells = [[sums.get(f"{a}|{b}") for b in values] for a in values]
    return np.stack([np.stack([none if cell is None else cell for cell in row], axis=1) for row in cells], axis=1)


def _metrics(tables: Array, *, ordered: bool) -> dict[str, Array]:
    """Return (S,) values by name."""
    steps = np.arange(tables.shape[1])
    apart = np.abs(steps[:, None] - steps[None, :]).astype(np.float64)
    found = {
        "accuracy": np.einsum("svv->s", tables) / tables.sum(axis=(1, 2)),
        "kappa": compute_kappa(tables, (apart > 0).astype(np.float64)),
    }
    return found | ({"weighted_kappa": compute_kappa(tables, apart**2)} if ordered else {})


def compute_kappa(tables: Array, penalties: Array) -> Array:
    """Compute Cohen's kappa, 1 - observed disagreement / disagreement of independent judges.

    Args:
        tables: (S, V, V) counts.
        penalties: (V, V) how much each disagreement counts: 1 each for the plain kappa, squared distances for the quadratically weighted.

    Returns:
        (S,) kappas; NaN where independent judges could not disagree, since both always say the same.
    """
    shares = tables / tables.sum(axis=(1, 2), keepdims=True)
    observed = (shares * penalties).sum(axis=(1, 2))
    expected = np.einsum("sv,sw,vw->s", shares.sum(axis=2), shares.sum(axis=1), penalties)
    return 1 - np.divide(observed, expected, out=np.full_like(observed, np.nan), where=expected > 0)
