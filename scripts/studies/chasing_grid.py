"""What the study of chasing adapters compares: models by what they were trained on in which order, and the arms that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scripts.studies.study import slug

Domain = Literal["captions", "questions"]
How = Literal["dpo", "ofs", "cofs", "joint"]
"""DPO of one adapter; two that chase each other; the sum of the domains' leading adapters; DPO of one adapter on all domains at once."""

DOMAINS: tuple[Domain, Domain] = ("captions", "questions")
ROUNDS = ((1,), (2, 3), (4, 5))
STEPS, QUICK_STEPS, SMOKE_STEPS = 150, 60, 3


@dataclass(frozen=True)
class Cell:
    """One model of a seed: how it was trained, and on which domains, in their order where that matters."""

    how: How
    domains: tuple[Domain, ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return slug("-".join((self.how, *self.domains)))

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / str(self.seed) / f"{self.name}.json"


@dataclass(frozen=True)
class Arm:
    """What is compared: the model after the first domain, and after both."""

    name: str
    how_first: How | None
    """None where there is no model of the first domain alone."""
    how: How
    in_order: bool = True
    """Whether the second model was trained on the first one's weights, so that the order matters."""

    def models(self, order: Sequence[Domain]) -> tuple[str | None, str]:
        """The names of both models' files."""
        first = None if self.how_first is None else Cell(self.how_first, tuple(order[:1]), 0).name
        return first, Cell(self.how, tuple(order) if self.in_order else DOMAINS, 0).name


SEQUENTIAL = Arm("sequential DPO", "dpo", "dpo")
ARMS = (
    SEQUENTIAL,
    Arm("OFS-DPO", "ofs", "ofs"),
    Arm("COFS-DPO", "ofs", "cofs", in_order=False),
    Arm("joint DPO", None, "joint", in_order=False),
)
ORDERS: tuple[tuple[Domain, Domain], ...] = (DOMAINS, (DOMAINS[1], DOMAINS[0]))


def count_steps(*, quick: bool, smoke: bool) -> int:
    """Count the steps of training on one domain."""
    return SMOKE_STEPS if smoke else QUICK_STEPS if quick else STEPS


def list_cells(seed: int) -> list[Cell]:
    """List a seed's models; each stands behind those that it is made from."""
    single = [Cell(how, (domain,), seed) for domain in DOMAINS for how in ("dpo", "ofs")]
    double = [Cell(how, order, seed) for order in ORDERS for how in ("dpo", "ofs")]
    return [*single, *double, Cell("cofs", DOMAINS, seed), Cell("joint", DOMAINS, seed)]  # type: ignore[list-item]


def list_rounds(*, quick: bool = False, smoke: bool = False) -> Sequence[Sequence[int]]:
    """List the seeds by what is made first."""
    return ROUNDS[:1] if quick or smoke else ROUNDS
