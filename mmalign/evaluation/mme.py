"""MME's hallucination subset: existence, count, position, colour; two questions an image (arXiv:2306.13394)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.evaluation.answers import AnswerFormat, Question, read_records, read_text
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.yes_no import Mode, parse_strict, score_baselines

CATEGORIES = ("existence", "count", "position", "color")


@dataclass(frozen=True)
class MmeQuestion:
    """One of the two questions on an image; ids are "question_id/1" and "question_id/2", since both have the same question_id.

    Attributes:
        pair: What the two have in common.
    """

    id: str
    pair: str
    category: str
    image: str
    text: str
    is_yes: bool


def parse_official(answer: str) -> bool | None:
    """Return whether an answer is yes; None where it counts as neither.

    Lower case, stripped, without full stops: yes or no, one letter y or n, else "yes" and then "no" within the first four
    characters. So "not" and "none" are a no, and "the answer is yes" is neither.
    """
    text = answer.lower().strip().replace(".", "")
    if text in ("yes", "y"):
        return True
    if text in ("no", "n"):
        return False
    if len(text) == 1:
        return None
    start = text[:4]
    return True if "yes" in start else False if "no" in start else None


@dataclass(frozen=True)
class Mme(Benchmark):
    """The questions of the subset."""

    name: ClassVar[str] = "mme"
    items: Sequence[MmeQuestion]

    @property
    def form(self) -> AnswerFormat:
        """The original's result files (image, question, truth, response between tabs), or rows by question_id."""
        return AnswerFormat(text=("answer", "prediction"), read_rows=partial(read_answer_rows, items=self.items))

    def questions(self) -> list[Question]:
        """Each as it stands."""
        return [Question(item.id, item.image, item.text) for item in self.items]

    def required(self) -> list[str]:
        """All."""
        return [item.id for item in self.items]

    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Compute points: ``mme/<category>`` is accuracy + accuracy_plus (both right), at most 200; ``mme/total`` their sum."""
        score = partial(score_mme, self.items, mode=mode)
        metrics = score(answers)
        return metrics | score_baselines(score, answers, leave_out=("accuracy", "accuracy_plus", "unknown"))


def score_mme(items: Sequence[MmeQuestion], answers: Mapping[str, str], *, mode: Mode) -> dict[str, float]:
    """Score the images of which both questions are answered."""
    parse = parse_official if mode == "official" else parse_strict
    replies = {item.id: parse(answers[item.id]) for item in items if item.id in answers}
    right: dict[str, dict[str, list[bool]]] = {category: {} for category in CATEGORIES}
    for item in items:
        if item.id in replies:
            right[item.category].setdefault(item.pair, []).append(replies[item.id] is item.is_yes)
    metrics: dict[str, float] = {}
    total = 0.0
    for category, pairs in right.items():
        whole = [pair for pair in pairs.values() if len(pair) == 2]
        if whole:
            accuracy = sum(50.0 * sum(pair) for pair in whole) / len(whole)
            plus = sum(100.0 * all(pair) for pair in whole) / len(whole)
            metrics |= {
                f"mme/{category}": sum(50.0 * sum(pair) + 100.0 * all(pair) for pair in whole) / len(whole),
                f"mme/{category}/accuracy": accuracy,
                f"mme/{category}/accuracy_plus": plus,
            }
            total += metrics[f"mme/{category}"]
    unknown = float(sum(reply is None for reply in replies.values()))
    return metrics | ({"mme/total": total} if metrics else {}) | {"mme/unknown": unknown}


def load_mme(source: Path) -> Mme:
    """Read MME's rows (question_id, category, question, answer, image): JSON, JSON lines, Parquet, or a folder of such files.

    Other categories than the subset's are passed over.

    Raises:
        ValueError: If there are no rows of the subset, an answer is neither Yes nor No, or an image has not two questions.
    """
    files = [source] if source.is_file() else sorted(f for f in source.glob("*") if f.suffix in (".json", ".jsonl", ".parquet"))
    rows = [row for file in files for row in _read_rows(file) if row.get("category") in CATEGORIES]
    if not rows:
        raise ValueError(
            f"no MME questions at {source}: expected rows with question_id, question, answer and category {', '.join(CATEGORIES)}"
        )
    repeated = len({str(row["question_id"]) for row in rows}) < len(rows)
    pairs = [f"{row['category']}/{_image_name(row)}" if not repeated else str(row["question_id"]) for row in rows]
    sizes = Counter(pairs)
    odd = [pair for pair, size in sizes.items() if size != 2]
    if odd:
        raise ValueError(f"{len(odd)} images of {source} have not two questions: {', '.join(odd[:10])}")
    items = []
    place: Counter[str] = Counter()
    for row, pair in zip(rows, pairs, strict=True):
        place[pair] += 1
        identifier = f"{pair}/{place[pair]}" if repeated else str(row["question_id"])
        items.append(_read_question(row, identifier, pair, source))
    return Mme(files, items)


def _read_question(row: Mapping[str, Any], identifier: str, pair: str, source: Path) -> MmeQuestion:
    label = str(row["answer"]).strip().lower()
    if label not in ("yes", "no"):
        raise ValueError(f"{source}: the answer of {identifier} is {row['answer']!r}; expected Yes or No")
    return MmeQuestion(identifier, pair, row["category"], _image_name(row), row["question"], label == "yes")


def _image_name(row: Mapping[str, Any]) -> str:
    """The image's file: named by the row, or, where the row holds the picture itself, by the question_id."""
    image = row.get("image")
    return image if isinstance(image, str) else str(row["question_id"])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".parquet":
        return read_records(path)
    import pyarrow.parquet

    columns = ["question_id", "category", "question", "answer"]
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read as Parquet with columns {', '.join(columns)}: {error}") from error
    return rows


def read_answer_rows(path: Path, *, items: Sequence[MmeQuestion]) -> list[Any]:
    """Read answers; of the two on an image, which have one question_id, each gets the id of its question.

    The question is known by its text where the row has it, and by its place (first or second) where not.
    """
    if path.is_dir() or path.suffix == ".txt":
        rows = [row for file in ([path] if path.is_file() else sorted(path.glob("*.txt"))) for row in _read_result_file(file)]
    else:
        rows = read_records(path)
    known = {item.id for item in items}
    by_pair: dict[str, list[MmeQuestion]] = {}
    for item in items:
        by_pair.setdefault(item.pair, []).append(item)
        # The original's result files name the image alone.
        if (alias := f"{item.category}/{Path(item.image).name}") != item.pair:
            by_pair.setdefault(alias, []).append(item)
    seen: Counter[str] = Counter()
    return [_identify(row, known, by_pair, seen) if isinstance(row, Mapping) else row for row in rows]


def _identify(row: Mapping[str, Any], known: set[str], by_pair: Mapping[str, list[MmeQuestion]], seen: Counter[str]) -> Mapping[str, Any]:
    name = str(row.get("id", row.get("question_id", "")))
    if not name or name in known:
        return row if "id" in row or not name else {**row, "id": name}
    seen[name] += 1
    two = by_pair.get(name, [])
    text = _first_words(str(row.get("question", row.get("prompt", ""))))
    match = next((item for item in two if text and _first_words(item.text) == text), None)
    if match is None and seen[name] <= len(two):
        match = two[seen[name] - 1]
    return {**row, "id": name if match is None else match.id}


def _first_words(question: str) -> str:
    """A question without what was put behind it for the model."""
    return question.split("?")[0].strip()


def _read_result_file(path: Path) -> list[dict[str, str]]:
    """Read ``existence.txt`` of the original's results: image, question, truth, response, between tabs."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        cells = line.split("\t")
        if line.strip() and len(cells) != 4:
            raise ValueError(f"{path}, line {number} has {len(cells)} cells; expected image, question, truth and response between tabs")
        if line.strip():
            rows.append({"question_id": f"{path.stem}/{cells[0]}", "question": cells[1], "response": cells[3]})
    return rows
