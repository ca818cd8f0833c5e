"""Every pair objective at some hyper-parameters: its value on the worked pair, and its formula in plain Python floats, pair by pair."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mmalign.losses.pair_kernel import PairBatch
from tests.losses.pair_example import split


class Sides(NamedTuple):
    """One pair in plain Python: token log-probabilities, token ids, columns."""

    policy: tuple[list[float], list[float]]
    reference: tuple[list[float], list[float]]
    ids: tuple[list[int], list[int]]
    columns: dict[str, float]

    def h(self, side: int) -> float:
        return sum(self.policy[side]) - sum(self.reference[side])

    def mean_h(self, side: int) -> float:
        return self.h(side) / len(self.policy[side])

    def mean(self, side: int) -> float:
        return sum(self.policy[side]) / len(self.policy[side])

    def gap(self) -> float:
        return self.columns["score_chosen"] - self.columns["score_rejected"]

    def z(self, beta: float = 0.1) -> float:
        return beta * (self.h(0) - self.h(1))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def soft(z: float, probability: float) -> float:
    return probability * softplus(-z) + (1 - probability) * softplus(z)


def odds(q: float) -> float:
    return math.log(math.exp(q) / (1 - math.exp(q)))


def tail_weighted(pair: Sides, alpha: float) -> float:
    shared = min(map(len, pair.policy))
    ratios = [[p - r for p, r in zip(pair.policy[k], pair.reference[k], strict=True)] for k in (0, 1)]
    chosen, rejected = (sum(values[:shared]) + alpha * sum(values[shared:]) for values in ratios)
    return chosen - rejected


def behind_shared_prefix(pair: Sides) -> float:
    first = 0
    while first < min(map(len, pair.ids)) and pair.ids[0][first] == pair.ids[1][first]:
        first += 1
    chosen, rejected = (sum(pair.policy[k][first:]) - sum(pair.reference[k][first:]) for k in (0, 1))
    return chosen - rejected


def changed(pair: Sides, weight: float, *, mean: bool = False) -> float:
    """By the longest common run, then the same on both sides of it, down to runs of three."""
    counted = ([weight] * len(pair.ids[0]), [weight] * len(pair.ids[1]))

    def share(a0: int, a1: int, b0: int, b1: int) -> None:
        best = (0, a0, b0)
        for i in range(a0, a1):
            for j in range(b0, b1):
                k = 0
                while i + k < a1 and j + k < b1 and pair.ids[0][i + k] == pair.ids[1][j + k]:
                    k += 1
                best = (k, i, j) if k > best[0] else best
        size, i, j = best
        if size == 0:
            return
        if size >= 3:
            counted[0][i : i + size] = counted[1][j : j + size] = [1.0] * size
        share(a0, i, b0, j)
        share(i + size, a1, j + size, b1)

    share(0, len(pair.ids[0]), 0, len(pair.ids[1]))
    sums = [
        sum(w * (p - r) for w, p, r in zip(counted[k], pair.policy[k], pair.reference[k], strict=True)) / (sum(counted[k]) if mean else 1)
        for k in (0, 1)
    ]
    return sums[0] - sums[1]


def madpo_weight(gap: float) -> float:
    if gap <= -math.log(999):
        return 1.0
    strength = 0.5 + 1.5 / (1 + 2 * math.exp(abs(gap) - math.log(999)))
    return sigmoid(strength * gap) / sigmoid(gap)


def step_flip(pair: Sides) -> float:
    chosen, rejected = pair.columns["visits_chosen"], pair.columns["visits_rejected"]
    return 0.5 if chosen + rejected == 0 else min(rejected / (chosen + rejected), 0.5)


def clip(h: float) -> float:
    return math.log(min(max(math.exp(h), 0.9), 1.1))


def phi(name: str, h: float) -> float:
    half, third = ((1 - math.exp(-a * h)) / a for a in (0.5, 0.3))
    js = math.log(2 * math.exp(h) / (1 + math.exp(h)))
    return {"forward-kl": -math.exp(-h), "js": js, "alpha": half, "alpha_0.3": third}[name]


def fdpo(pair: Sides, name: str) -> float:
    return softplus(-0.1 * (phi(name, pair.h(0)) - phi(name, pair.h(1))))


class Case(NamedTuple):
    """An objective at some hyper-parameters, with its value on the worked pair and its formula."""

    name: str
    parameters: dict[str, Any]
    value: float
    formula: Callable[[Sides], float]
    columns: dict[str, float] = {}  # noqa: RUF012


GAP = {"score_chosen": 0.9, "score_rejected": 0.3}
HALF = {"score_chosen": 0.5, "score_rejected": 0.0}
SURE = {"score_chosen": math.log(4), "score_rejected": 0.0}
VISITED = {"visits_chosen": 12.0, "visits_rejected": 4.0}
JS, FKL, ALPHA = ({"divergence": name} for name in ("js", "forward-kl", "alpha"))

CASES = [
    Case("dpo", {}, 0.598138869382, lambda p: softplus(-p.z())),
    Case("dpo", {"score": "mean"}, 0.684895792412, lambda p: softplus(-0.1 * (p.mean_h(0) - p.mean_h(1)))),
    Case("cdpo", {}, 0.618138869382, lambda p: soft(p.z(), 0.9)),
    Case("rdpo", {}, 0.573138869382, lambda p: (0.9 * softplus(-p.z()) - 0.1 * softplus(p.z())) / 0.8),
    Case("ipo", {}, 23.370318367347, lambda p: (p.mean_h(0) - p.mean_h(1) - 5) ** 2),
    Case("ipo", {"score": "sum"}, 9.0, lambda p: (p.h(0) - p.h(1) - 5) ** 2),
    Case("hinge", {}, 0.8, lambda p: max(0, 1 - p.z())),
    Case("fdpo", FKL, 0.559874379611, lambda p: fdpo(p, "forward-kl")),
    Case("fdpo", JS, 0.640028426335, lambda p: fdpo(p, "js")),
    # margin 2.303597508710; log(1 + e^-0.2303597508710)
    Case("fdpo", ALPHA, 0.584585892199, lambda p: fdpo(p, "alpha")),
    Case("fdpo", {**ALPHA, "divergence_coefficient": 0.3}, 0.591161027599, lambda p: fdpo(p, "alpha_0.3")),
    Case("clipped_dpo", {"score": "sum"}, 0.683163980852, lambda p: softplus(-0.1 * (clip(p.h(0)) - clip(p.h(1))))),
    # Both means of the worked pair lie inside the clip: the value is that of mean DPO.
    Case("clipped_dpo", {}, 0.684895792412, lambda p: softplus(-0.1 * (clip(p.mean_h(0)) - clip(p.mean_h(1))))),
    Case("flex_dpo", {}, 0.625595182337, lambda p: softplus(-(0.1 * p.h(0) - 0.05 * p.h(1)))),
    Case("flex_dpo", {"beta_rejected": 0.02}, 0.642498571698, lambda p: softplus(-(0.1 * p.h(0) - 0.02 * p.h(1)))),
    Case("madpo", {}, 0.702028539929, lambda p: madpo_weight(p.gap()) * softplus(-p.z()), HALF),
    Case("ld_dpo", {}, 0.607191724841, lambda p: softplus(-0.1 * tail_weighted(p, 0.5))),
    # 0.8 - [(-11 - 0.3 * 4.2) - (-10.2 - 0.3 * 3.8)] = 1.72
    Case("ld_dpo", {"tail_weight": 0.3}, 0.610840631129, lambda p: softplus(-0.1 * tail_weighted(p, 0.3))),
    Case("ld_dpo", {"tail_weight": 0.0}, 0.616343773041, lambda p: softplus(-0.1 * tail_weighted(p, 0.0))),
    Case("asft", {}, 2.871977035240, lambda p: -p.mean(0) + softplus(-odds(p.mean(0))) + softplus(odds(p.mean(1)))),
    Case(
        "asft",
        {"align_weight": 0.25},
        1.640494258810,
        lambda p: -p.mean(0) + 0.25 * (softplus(-odds(p.mean(0))) + softplus(odds(p.mean(1)))),
    ),
    Case(
        "asft",
        {"temperature": 10.0, "sft_weight": 0.0},
        1.398365678491,
        lambda p: softplus(-0.1 * odds(p.mean(0))) + softplus(0.1 * odds(p.mean(1))),
    ),
    Case("orpo", {"odds_weight": 1.0}, 2.033946887465, lambda p: -p.mean(0) + softplus(odds(p.mean(1)) - odds(p.mean(0)))),
    # margin 2 * (-1.23 + 15.2 / 14) - 1 = -1.288571428571; log(1 + e^1.288571428571)
    Case("simpo", {}, 1.532038497446, lambda p: softplus(-(2 * (p.mean(0) - p.mean(1)) - 1))),
    # 0.1 * (-12.3 + 15.2) = 0.29; log(1 + e^-0.29) = 0.558623048234; NLL 12.3 / 10
    Case("cpo", {}, 1.788623048234, lambda p: softplus(-0.1 * (sum(p.policy[0]) - sum(p.policy[1]))) - p.mean(0)),
    Case(
        "cpo",
        {"beta": 1.0, "sft_weight": 0.5},
        0.668562776218,
        lambda p: softplus(sum(p.policy[1]) - sum(p.policy[0])) - 0.5 * p.mean(0),
    ),
    # One pair: K_chosen = 0.8, K_rejected = max(0, -1.2) = 0: half of sigmoid(-0.08) + sigmoid(-(0.08 + 0.12))
    Case(
        "kto_pair",
        {"detach_baseline": False},
        0.465088331266,
        lambda p: (sigmoid(-0.1 * (p.h(0) - max(0, p.h(1)))) + sigmoid(-0.1 * (max(0, p.h(0)) - p.h(1)))) / 2,
    ),
    Case("dno", {}, 0.669007608136, lambda p: soft(p.z(), sigmoid(p.gap())), GAP),
    Case("dno", {}, 0.651927153656, lambda p: soft(p.z(), sigmoid(p.gap())), {"score_chosen": 1.0, "score_rejected": 0.0}),
    # sigmoid(log 4) = 0.8
    Case("smpo", {}, 0.634946101596, lambda p: softplus(-(2 * sigmoid(p.gap()) - 1) * p.z()), SURE),
    Case("step_dpo", {}, 0.648138869382, lambda p: soft(0.1 * behind_shared_prefix(p), 1 - step_flip(p)), VISITED),
    Case(
        "step_dpo",
        {},
        0.692875711487,
        lambda p: soft(0.1 * behind_shared_prefix(p), 1 - step_flip(p)),
        {"visits_chosen": 10.0, "visits_rejected": 9.0},
    ),
    Case("adpo_pair", {"labels": "hard"}, 0.598138869382, lambda p: softplus(-p.z())),
    Case("adpo_pair", {"labels": "hard", "temperature": 0.8}, 0.078889734293, lambda p: softplus(-p.z(1 / 0.8))),
    Case("adpo_pair", {"labels": "hard", "temperature": 1.0}, 0.126928011043, lambda p: softplus(-p.z(1.0))),
    Case(
        "adpo_pair",
        {"temperature": 1.0},
        0.664810853783,
        lambda p: soft(p.z(1.0), sigmoid(p.gap())),
        {"score_chosen": 1.0, "score_rejected": 0.0},
    ),
    Case("ddo", {}, 1.288893068913, lambda p: softplus(-0.1 * p.h(0)) + softplus(0.1 * p.h(1))),
    # 0.1 * (0.8 + 2 * 1.2) = 0.32
    Case("hsa_dpo", {}, 0.545892937180, lambda p: softplus(-0.1 * (p.h(0) - p.columns["severity"] * p.h(1))), {"severity": 2.0}),
    # 0.1 * (1 + 0.1 * 0.5) * 2 = 0.21
    Case("mm_dpo", {}, 0.593649581022, lambda p: softplus(-(1 + 0.1 * p.columns["ls_factor"]) * p.z()), {"ls_factor": 0.5}),
    # No three tokens in a row are shared: each counts five times, and 0.1 * 5 * 2 = 1.
    Case("ddpo", {}, 0.313261687518, lambda p: softplus(-0.1 * changed(p, 5.0))),
    Case("ddpo", {"score": "mean", "changed_weight": 2.0}, 0.684895792412, lambda p: softplus(-0.1 * changed(p, 2.0, mean=True))),
    Case("nll", {}, 1.23, lambda p: -p.mean(0)),
    Case("ddo", {"rejected_weight": 4.0}, 0.798432843425, lambda p: (softplus(-0.1 * p.h(0)) + 4 * softplus(0.1 * p.h(1))) / 4),
]
IDS = [f"{case.name}-{i}" for i, case in enumerate(CASES)]


def as_sides(batch: PairBatch) -> list[Sides]:
    """Each pair of a batch in plain Python."""
    policy, reference, ids = ([values.tolist() for values in part] for part in split(batch))
    return [
        Sides(
            (policy[2 * i], policy[2 * i + 1]),
            (reference[2 * i], reference[2 * i + 1]),
            (ids[2 * i], ids[2 * i + 1]),
            {name: values[i].item() for name, values in batch.columns.items()},
        )
        for i in range(len(policy) // 2)
    ]
