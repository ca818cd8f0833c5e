"""The base of all benchmarks: files, questions, how its answers are read, and the metrics of scored answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError
from mmalign.evaluation.answers import OURS, SHORT_ANSWER, Answer, AnswerFormat, Question, check_texts, read_answers
from mmalign.evaluation.decisions import RIGHT_OR_WRONG, Decision
from mmalign.evaluation.items import Item, add_up
from mmalign.evaluation.metrics import Array, Formula, Metric, Sums
from mmalign.evaluation.parquet import has_pictures, write_pictures
from mmalign.evaluation.rows import read_records
from mmalign.evaluation.wording import fill_prompt
from mmalign.evaluation.yes_no import BASELINES
from mmalign.files import list_files
from mmalign.options.evaluate import EvaluateOptions, Mode


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark with its data read.

    Attributes:
        files: Where the data came from; their hashes stand in the result.
        images: What the rows of each file call their image, where the files hold the images too.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # Where its files come from.
    source: ClassVar[str] = ""
    # By the last part of their keys; ``formulas`` says which there are of the groups.
    metrics: ClassVar[Mapping[str, Metric]]
    # Which average a metric is, by its key: papers and harnesses take others, and no number says which.
    averages: ClassVar[Mapping[str, str]] = {}
    # Whether the strict mode reads anything differently.
    has_strict: ClassVar[bool] = True
    # What a judge is asked unless the user words it otherwise; None where no judge is asked.
    judge_wording: ClassVar[str | None] = None
    # What the judge decides, by name.
    decisions: ClassVar[Mapping[str, Decision]] = {"answer": RIGHT_OR_WRONG}
    # Whether it can't be scored without one.
    needs_judge: ClassVar[bool] = False
    files: Sequence[Path]
    images: Mapping[Path, Sequence[str]] = field(default_factory=dict, kw_only=True)

    @classmethod
    @abstractmethod
    def load(cls, options: EvaluateOptions) -> Self:
        """Read the data.

        Raises:
            ValueError: If files are missing, damaged, or not of the benchmark's form.
        """

    @classmethod
    def prefix(cls) -> str:
        """First part of its metrics' keys."""
        return cls.name.replace("-", "_")

    @classmethod
    def folder_in(cls, root: Path) -> Path:
        """Where its files lie below a root of several benchmarks: in the folder of its name, ``dash-b`` or ``dash_b``."""
        other = root / cls.prefix()
        return other if other.is_dir() else root / cls.name

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """Return the formula of every metric by its key behind the benchmark's, in the order in which they are shown.

        Args:
            groups: Of the answers, as they first appear.
        """
        return {name: metric.formula for name, metric in cls.metrics.items()}

    def check_texts(self, source: Path) -> None:
        """Check that what the files name as texts (ids, images, questions) are texts.

        Raises:
            ValueError: With the first that is none.
        """
        check_texts(getattr(self, "records", ()), what=source)
        check_texts(getattr(self, "asked", ()), what=source)

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

    def required(self) -> Sequence[str]:
        """Ids that must be answered."""
        return [question.id for question in self.questions()]

    def known(self) -> Container[str]:
        """Ids that may be answered."""
        return set(self.required())

    def texts(self) -> Mapping[str, str]:
        """What the questions ask, by id, which answers that repeat their question are held to; empty where all ask the same."""
        return {question.id: question.prompt for question in self.questions()}

    def read_answers(self, path: Path) -> list[Answer]:
        """Read a file of answers, its rows held to the questions and images that they repeat. Raises as ``answers.read_answers``."""
        texts = self.texts()
        images = {question.id: question.image for question in self.questions()} if texts else {}
        return read_answers(path, self.form, order=self.required(), texts=texts, parts=self.parts(), images=images)

    def parts(self) -> Sequence[Sequence[str]]:
        """Ids of the questions by file, in their order, where an answer file may hold one or several."""
        return [self.required()]

    def variant(self, *, judged: bool) -> str | None:
        """What else a score depends on, so that two can be told apart."""
        return None

    @abstractmethod
    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """Score the questions that are answered, one by one.

        Args:
            answers: Responses by id; ``match_answers`` sees to it that they are whole.
            mode: ``official`` reads them as the original script does, ``strict`` as a careful reader.
            judgements: A judge's replies by id, where one was asked.
        """

    def yes_no_ids(self) -> Iterable[str]:
        """Questions that constant answers are given to: all, where a metric is given for these."""
        return self.required() if any(metric.constant for metric in self.metrics.values()) else ()

    def constants(self) -> Mapping[str, Mapping[str, str]]:
        """Return constant answers by a name that begins with ``always_``, each by id."""
        return {name: dict.fromkeys(self.yes_no_ids(), text) for name, text in BASELINES.items()}

    def baselines(self, answers: Mapping[str, str], *, mode: Mode) -> dict[str, float]:
        """Score constant answers to the answered questions: ``pope/always_no/f1`` stands beside ``pope/f1``."""
        found: dict[str, float] = {}
        for name, texts in self.constants().items():
            constant = {i: texts[i] for i in answers if i in texts}
            metrics = compute_metrics(type(self), self.items(constant, mode=mode)) if constant else {}
            kept = [key for key in metrics if self.metrics[key.split("/")[-1]].constant]
            found |= {key.replace("/", f"/{name}/", 1): metrics[key] for key in kept}
        return found

    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Return ``benchmark/metric`` -> value, with the baselines; parts that no answer covers are left out. Arguments as of ``items``."""
        return compute_metrics(type(self), self.items(answers, mode=mode, judgements=judgements)) | self.baselines(answers, mode=mode)

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
        """Whether the question files themselves hold the images, as the hub's Parquet does."""
        return any(has_pictures(path) for path in self.images)

    def write_images(self, folder: Path) -> bool:
        """Write the images that the question files hold, under the names that the questions have; False where they hold none."""
        return write_pictures(self.images, folder)


@dataclass(frozen=True)
class QuestionBenchmark(Benchmark):
    """A benchmark whose questions are its records.

    Attributes:
        records: Each with its ``id``, ``image`` and ``text``.
    """

    answer_length: ClassVar[int] = SHORT_ANSWER
    records: Sequence[Any]

    def questions(self) -> list[Question]:
        return [Question(record.id, record.image, record.text, self.answer_length) for record in self.records]

    def answered(self, answers: Mapping[str, str]) -> list[tuple[Any, Question]]:
        """Return the records that are answered, with their questions."""
        return [(record, question) for record, question in zip(self.records, self.questions(), strict=True) if record.id in answers]

    def judge_fields(self, record: Any) -> Mapping[str, str]:
        """Return what a judge is told of a question beside the response."""
        raise UserError(f"{self.name} asks no judge")

    def judge_prompts(self, answers: Mapping[str, str], *, template: str | None = None) -> dict[str, str]:
        """Fill in each answered question."""
        wording = template or self.judge_wording or ""
        told = {record.id: self.judge_fields(record) for record, _ in self.answered(answers)}
        return {i: fill_prompt(wording, {**fields, "response": answers[i]}) for i, fields in told.items()}


def evaluate_formulas(benchmark: type[Benchmark], sums: Sums) -> dict[str, Array]:
    """Return (S,) values by metric key, of the metrics whose parts are there."""
    formulas = benchmark.formulas(list(dict.fromkeys(group for group, _ in sums.columns)))
    values = {key: formula(sums) for key, formula in formulas.items()}
    return {f"{benchmark.prefix()}/{key}": value for key, value in values.items() if value is not None}


def compute_metrics(benchmark: type[Benchmark], items: Sequence[Item]) -> dict[str, float]:
    """Compute every metric of scored answers by its key."""
    return {key: float(value[0]) for key, value in evaluate_formulas(benchmark, add_up(items)).items()}


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
    found = list_files(source, *patterns)
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
    found = _without(list_files(folder, *patterns), answers)
    if len(found) != 1:
        have = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise UserError(f"{folder} lacks {what}: expected one file {' or '.join(patterns)}, {have}")
    refuse_pointer(found[0])
    return found[0]
