"""What a scorer of sampled responses is, and what it is built from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.sample_options import SCORERS, SampleOptions
from mmalign.evaluation.answers import Question


@dataclass(frozen=True)
class Sampled:
    """A question about an image, with what is known of the image, and the responses sampled to it."""

    question: Question
    truth: frozenset[str] | None
    reference: str | None
    responses: list[str]
    answers: tuple[str, ...] = ()
    """Right answers, where they are known."""
    gold: str | None = None
    """A teacher's answer, which joins the responses."""


class Chosen(NamedTuple):
    """The pair of a question: two texts and their scores."""

    chosen: str
    rejected: str
    scores: tuple[float, float]


class Scorer(ABC):
    """Scores responses; None is a response that can't be scored."""

    @abstractmethod
    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Score the responses of each item; ``folder`` is the chunk's own, for work in progress."""

    def lines(self, items: Sequence[Sampled], *, folder: Path) -> list[dict[str, Any]]:
        """Return what is kept of each item: its ``scores``, and whatever else ``choose`` looks at."""
        return [{"scores": scores} for scores in self(items, folder=folder)]

    def fault(self, lines: Iterable[Mapping[str, Any]]) -> str | None:
        """Return why the lines of all items show that their scores say nothing; None where they may say something."""
        return None

    def tell(self, lines: Iterable[Mapping[str, Any]]) -> str | None:
        """Return what the user should know of the lines of all items; None where there is nothing."""
        return None

    def choose(self, line: Mapping[str, Any]) -> Chosen | None:
        """Return the pair of a line, of ``responses`` and of what was kept; None where no two responses differ in worth."""
        return best_and_worst(line["responses"], line["scores"])


@dataclass(frozen=True)
class Parts:
    """What a scorer can be built from."""

    options: SampleOptions
    root: Path
    """Folder of the images."""
    words: Mapping[str, str] | None
    """Word -> object, where SOURCE has such a table."""
    judge: Any
    """Has ``name`` and ``ask(prompts) -> list[str]``; None where there is none."""
    load: Callable[[str], tuple[Any, Any]]
    """Loads a model and its processor, each only once."""


def place_scores(items: Sequence[Sampled], scores: Iterable[float]) -> list[list[float | None]]:
    """Give each response with words the next score, item by item; the others have none."""
    found = iter(scores)
    return [[next(found) if text.strip() else None for text in item.responses] for item in items]


def build_scorer(parts: Parts) -> Scorer:
    """Build the scorer that the options name."""
    module, _, function = SCORERS[parts.options.scorer].partition(":")
    built: Scorer = getattr(import_module(f"data_tools.{module}"), function)(parts)
    return built


def best_and_worst(responses: Sequence[str], scores: Sequence[float | None]) -> Chosen | None:
    """Choose the pair of a question: the responses of the highest and of the lowest score, the first of equals.

    Returns:
        The pair, or None where no two responses have unequal scores.
    """
    scored = [(score, text) for score, text in zip(scores, responses, strict=True) if score is not None and text.strip()]
    if not scored:
        return None
    best, worst = max(scored, key=lambda item: item[0]), min(scored, key=lambda item: item[0])
    return None if best[0] == worst[0] else Chosen(best[1], worst[1], (best[0], worst[0]))
