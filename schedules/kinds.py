"""What differs between rounds of words, of pictures as tokens, and of pipelines of diffusers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from schedules.iterate_options import IterateOptions


class Held(NamedTuple):
    """Groups with what they are held to."""

    data: Path
    """What training reads."""
    words: list[str]
    """What else it is told."""
    facts: dict[str, float]
    """For the round's record."""


@dataclass(frozen=True)
class Lists:
    """A round's lists. Their scores are in memory; what else they hold, pictures and paths, is read when it is asked for."""

    read: Callable[[int], Mapping[str, Any]]
    """Gives a list by its number."""
    scores: list[list[float]]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.read(number), "scores": self.scores[number]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def with_scores(self, change: Callable[[dict[str, Any]], list[float]]) -> "Lists":
        """The same lists with other scores."""
        return replace(self, scores=[change(row) for row in self])

    def differing(self) -> Iterator[dict[str, Any]]:
        """Those that have two different scores."""
        return (self[number] for number, scores in enumerate(self.scores) if len(set(scores)) > 1)


class Kind(ABC):
    """What is sampled, scored and trained on. A list has ``id``, ``responses`` and ``scores``, as many, and what its kind adds."""

    methods: ClassVar[Mapping[str, str]] = {"preference": "preference", "listwise": "listwise"}
    """What ``mmalign train`` calls training on pairs and on groups."""
    own_words: Sequence[str] = ()
    """What every training is told, beside the options in ``--train``."""

    def __init__(self, options: IterateOptions) -> None:
        """Keep the options."""
        self.options = options

    def source(self, number: int) -> Path:
        """What a round samples on."""
        return self.options.sources[0 if len(self.options.sources) == 1 else number - 1]

    @abstractmethod
    def sample(self, number: int, policy: str, out: Path) -> Lists:
        """Sample a round's lists with a policy, and score them; what is there already is read."""

    @abstractmethod
    def write_lists(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write lists as ``train listwise`` reads them."""

    @abstractmethod
    def read_lists(self, path: Path) -> Lists:
        """Read what ``write_lists`` wrote."""

    @abstractmethod
    def pair(self, row: Mapping[str, Any], chosen: Any, rejected: Any, scores: tuple[float, float], *, name: str) -> dict[str, Any]:
        """Make a pair of two of a list's responses."""

    @abstractmethod
    def write_pairs(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write pairs as ``train preference`` reads them."""

    @abstractmethod
    def hold_groups(self, folder: Path, groups: Lists, *, policy: str, words: Sequence[str]) -> Held:
        """Write groups into a round's folder, with what holds their training to the policy that sampled them."""

    @abstractmethod
    def measure(self, folder: Path) -> dict[str, float]:
        """Score a round's model, where there is something to score it on."""
