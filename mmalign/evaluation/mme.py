"""MME's hallucination subset: existence, count, position, colour; two questions an image (arXiv:2306.13394)."""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, Question, read_answer_file
from mmalign.evaluation.benchmark import Benchmark, find_question_files
from mmalign.evaluation.pictures import write_pictures
from mmalign.evaluation.question_texts import core_of, normalise
from mmalign.evaluation.rows import has_pictures, read_records, read_text
from mmalign.evaluation.yes_no import Mode, parse_strict, score_baselines

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
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
    """The questions of the subset.

    Attributes:
        images: What each file's rows call their image; empty for those of other categories.
        folders: Whether the images lie beside the questions, in the release's folders.
    """

    name: ClassVar[str] = "mme"
    items: Sequence[MmeQuestion]
    images: Mapping[Path, Sequence[str]] = field(default_factory=dict)
    folders: bool = False

    @property
    def form(self) -> AnswerFormat:
        """The original's result files (image, question, truth, response between tabs), or rows by question_id (LLaVA's: text)."""
        return AnswerFormat(text=("answer", "prediction", "text"), read_rows=partial(read_answer_rows, items=self.items))

    def questions(self) -> list[Question]:
        """Each as it stands."""
        return [Question(item.id, item.image, item.text) for item in self.items]

    def required(self) -> list[str]:
        """All."""
        return [item.id for item in self.items]

    def texts(self) -> dict[str, str]:
        """The two questions on an image have one question_id."""
        return {item.id: item.text for item in self.items}

    def images_in(self, folder: Path) -> Path:
        """The release's own folders hold both."""
        return folder if self.folders else super().images_in(folder)

    @property
    def holds_images(self) -> bool:
        """Where the files are the hub's Parquet."""
        return any(has_pictures(path) for path in self.files)

    def write_images(self, folder: Path) -> bool:
        """Write them under the names that the questions have."""
        return write_pictures(self.files, self.images, folder)

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


def load_mme(source: Path, *, answers: Path | None = None) -> Mme:
    """Read MME's rows (question_id, category, question, answer, image): JSON, JSON lines, Parquet, or a folder of such files.

    Or the release's own folders: ``existence/NAME.txt`` with ``question<TAB>Yes`` on its two lines, or
    ``color/questions_answers_YN/NAME.txt``, and the image beside it or in ``color/images``. Other categories than the subset's are passed
    over.

    Args:
        source: File or folder.
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If there are no rows of the subset, an answer is neither Yes nor No, or an image has not two questions.
    """
    patterns = ("*.json", "*.jsonl", "*.parquet", "data/*.parquet")
    files = find_question_files(source, patterns, is_question=_is_question, answers=answers)
    read = {file: [row for row in read_records(file) if isinstance(row, Mapping)] for file in files}
    rows = [row for file in files for row in read[file] if _is_question(row)]
    images = {file: [_image_name(row) if _is_question(row) else "" for row in read[file]] for file in files}
    folders = not rows and source.is_dir()
    if folders:
        rows, files = _read_release(source)
    if not rows:
        raise UserError(
            f"no MME questions at {source}: expected rows with question_id, question, answer and category {', '.join(CATEGORIES)}, "
            "or the release's folders of these names"
        )
    repeated = len({str(row["question_id"]) for row in rows}) < len(rows)
    pairs = [f"{row['category']}/{_image_name(row)}" if not repeated else str(row["question_id"]) for row in rows]
    sizes = Counter(pairs)
    odd = [pair for pair, size in sizes.items() if size != 2]
    if odd:
        raise UserError(f"{len(odd)} images of {source} have not two questions: {', '.join(odd[:10])}")
    items = []
    place: Counter[str] = Counter()
    for row, pair in zip(rows, pairs, strict=True):
        place[pair] += 1
        identifier = f"{pair}/{place[pair]}" if repeated else str(row["question_id"])
        items.append(_read_question(row, identifier, pair, source))
    return Mme(files, items, images, folders)


def _is_question(row: Mapping[str, Any]) -> bool:
    whole = {"question_id", "question", "answer"} <= set(row) and not {"response", "prediction", "text"} & set(row)
    return whole and row.get("category") in CATEGORIES


def _read_release(source: Path) -> tuple[list[Mapping[str, Any]], list[Path]]:
    """Read the release's folders as rows, whose question_id is "category/image", as the hub's are."""
    places = [source / category / place for category in CATEGORIES for place in ("", "questions_answers_YN")]
    files = [file for place in places for file in sorted(place.glob("*.txt"))]
    rows: list[Mapping[str, Any]] = []
    for file in files:
        category = file.relative_to(source).parts[0]
        image = _find_image(file, source / category)
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) != 2:
                raise UserError(f"{file}, line {number} has {len(cells)} cells; expected question and answer with a tab between them")
            name = f"{category}/{image.name}"
            asked = {"category": category, "question": cells[0], "answer": cells[1]}
            rows.append({"question_id": name, "image": str(image.relative_to(source)), **asked})
    return rows, files


def _find_image(questions: Path, category: Path) -> Path:
    """The image of a question file: beside it or in the folder images; where there is none, as the release names it."""
    places = [questions.parent, category / "images"]
    found = [path for place in places for path in sorted(place.glob(f"{glob.escape(questions.stem)}.*")) if path.suffix.lower() in IMAGES]
    return found[0] if found else places[-1 if questions.parent != category else 0] / f"{questions.stem}.jpg"


def _read_question(row: Mapping[str, Any], identifier: str, pair: str, source: Path) -> MmeQuestion:
    label = str(row["answer"]).strip().lower()
    if label not in ("yes", "no"):
        raise UserError(f"{source}: the answer of {identifier} is {row['answer']!r}; expected Yes or No")
    return MmeQuestion(identifier, pair, row["category"], _image_name(row), row["question"], label == "yes")


def _image_name(row: Mapping[str, Any]) -> str:
    """The image's file: named by the row, or, where the row holds the picture itself, by the question_id."""
    image = row.get("image")
    return image if isinstance(image, str) else str(row["question_id"])


def read_answer_rows(path: Path, *, items: Sequence[MmeQuestion]) -> list[Any]:
    """Read answers; of the two on an image, which have one question_id, each gets the id of its question.

    The question is known by its text where the row has it, and by its place (first or second) where not.
    """
    if path.is_dir() or path.suffix == ".txt":
        rows = [row for file in ([path] if path.is_file() else sorted(path.glob("*.txt"))) for row in _read_result_file(file)]
    else:
        rows = read_answer_file(path)
    known = {item.id for item in items}
    by_pair: dict[str, list[MmeQuestion]] = {}
    for item in items:
        by_pair.setdefault(item.pair, []).append(item)
        # The original's result files name the image alone, and not every release has the same ending.
        file = Path(item.image)
        for alias in dict.fromkeys((f"{item.category}/{file.name}", f"{item.category}/{file.stem}")):
            if alias != item.pair:
                by_pair.setdefault(alias, []).append(item)
    seen: Counter[str] = Counter()
    return [_identify(row, known, by_pair, seen) if isinstance(row, Mapping) else row for row in rows]


def _identify(row: Mapping[str, Any], known: set[str], by_pair: Mapping[str, list[MmeQuestion]], seen: Counter[str]) -> Mapping[str, Any]:
    name = str(row.get("id", row.get("question_id", "")))
    if not name or name in known:
        return row if "id" in row or not name else {**row, "id": name}
    seen[name] += 1
    two = by_pair.get(name) or by_pair.get(str(Path(name).with_suffix(""))) or []
    text = normalise(str(row.get("question", row.get("prompt", ""))))
    match = next((item for item in two if core_of(item.text) in text), None)
    if match is None and seen[name] <= len(two):
        match = two[seen[name] - 1]
    return {**row, "id": name if match is None else match.id}


def _read_result_file(path: Path) -> list[dict[str, str]]:
    """Read ``existence.txt`` of the original's results: image, question, truth, response, between tabs."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        cells = line.split("\t")
        if line.strip() and len(cells) != 4:
            raise UserError(f"{path}, line {number} has {len(cells)} cells; expected image, question, truth and response between tabs")
        if line.strip():
            rows.append({"question_id": f"{path.stem}/{cells[0]}", "question": cells[1], "response": cells[3]})
    return rows
