"""What a benchmark is to the rest of the program: files, questions, how its answers are read, and a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError
from mmalign.evaluation.answers import OURS, AnswerFormat, Question
from mmalign.evaluation.rows import read_records
from mmalign.evaluation.yes_no import Mode


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark with its data read.

    Attributes:
        files: Where the data came from; their hashes stand in the result.
    """

    name: ClassVar[str]
    # Whether the strict mode reads anything differently.
    has_strict: ClassVar[bool] = True
    # What a judge is asked unless the user words it otherwise; None where no judge is asked.
    judge_wording: ClassVar[str | None] = None
    # Whether it can't be scored without one.
    needs_judge: ClassVar[bool] = False
    files: Sequence[Path]

    @property
    def form(self) -> AnswerFormat:
        """How its own answer files look."""
        return OURS

    @property
    def judgement_form(self) -> AnswerFormat:
        """How saved replies of a judge look."""
        raise UserError(f"{self.name} asks no judge")

    @abstractmethod
    def questions(self) -> list[Question]:
        """What a model is asked.

        Raises:
            ValueError: If the data hold no questions, as where only annotations were given.
        """

    @abstractmethod
    def required(self) -> Sequence[str]:
        """Ids that must be answered."""

    def known(self) -> Container[str]:
        """Ids that may be answered."""
        return set(self.required())

    def texts(self) -> Mapping[str, str]:
        """What the questions ask, by id, which answers that repeat their question are held to; empty where all ask the same."""
        return {}

    def parts(self) -> Sequence[Sequence[str]]:
        """Ids of the questions by file, in their order, where an answer file may hold one or several."""
        return [self.required()]

    def variant(self, *, judged: bool) -> str | None:
        """What else a score depends on, so that two can be told apart."""
        return None

    @abstractmethod
    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Score the questions that are answered.

        Args:
            answers: Responses by id; ``match_answers`` sees to it that they are whole.
            mode: ``official`` gives the original script's number, ``strict`` a careful reading.
            judgements: A judge's replies by id, where one was asked.

        Returns:
            ``benchmark/metric`` -> value; parts that no answer covers are left out.
        """

    def judge_prompts(self, answers: Mapping[str, str], *, template: str | None = None) -> dict[str, str]:
        """What the judge is asked, by id.

        Args:
            answers: Responses by id.
            template: Wording to use instead of ours; ``fill_prompt`` says how fields stand in it.

        Raises:
            ValueError: If the benchmark asks no judge.
        """
        raise UserError(f"{self.name} asks no judge")

    def images_in(self, folder: Path) -> Path:
        """Where the images lie in a folder of the data."""
        return folder / "images"

    @property
    def holds_images(self) -> bool:
        """Whether the question file itself holds the images."""
        return False

    def write_images(self, folder: Path) -> bool:
        """Write the images that the question file itself holds; False where it holds none."""
        return False


def find_question_files(
    source: Path, patterns: Sequence[str], *, is_question: Callable[[Mapping[str, Any]], bool], answers: Path | None = None
) -> list[Path]:
    """Find a benchmark's question files: the one given, or in the folder given, in which answers and results may lie beside them.

    Args:
        source: File or folder.
        patterns: What the files are called.
        is_question: Whether a row is a question, by its fields.
        answers: The answers that are scored: never taken for questions.

    Returns:
        The files whose first row is a question; all of them where that is true of none, so that their reader can say what is wrong.
    """
    if source.is_file():
        return [source]
    found = sorted({path for pattern in patterns for path in source.glob(pattern) if path.is_file()})
    others = _without(found, answers)
    questions = [path for path in others if len(others) > 1 and _begins_with(path, is_question)]
    return questions or others


def _without(files: list[Path], answers: Path | None) -> list[Path]:
    """Leave the answers out, unless they are all there is: some benchmarks' answers are their question file, filled in."""
    return [path for path in files if answers is None or path.resolve() != answers.resolve()] or files


def _begins_with(path: Path, is_question: Callable[[Mapping[str, Any]], bool]) -> bool:
    rows = read_records(path)
    return bool(rows) and isinstance(rows[0], Mapping) and is_question(rows[0])


def find_file(source: Path, *patterns: str, what: str, answers: Path | None = None) -> Path:
    """Find a file of a benchmark: the one given, or in the folder (or beside the file) given; ``answers`` is none of its files.

    Raises:
        ValueError: If there is none, more than one, or a Git LFS pointer in its place.
    """
    if not source.exists():
        raise UserError(f"no file or folder {source}; it is to hold {what}: {' or '.join(patterns)}")
    folder = source if source.is_dir() else source.parent
    found = _without(sorted({path for pattern in patterns for path in folder.glob(pattern)}), answers)
    if len(found) != 1:
        have = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise UserError(f"{folder} lacks {what}: expected one file {' or '.join(patterns)}, {have}")
    refuse_pointer(found[0])
    return found[0]
