"""MME's hallucination subset: existence, count, position, colour; two questions per image (arXiv:2306.13394)."""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, read_answer_file
from mmalign.evaluation.benchmark import QuestionBenchmark, find_question_files
from mmalign.evaluation.items import Item
from mmalign.evaluation.metrics import Formula, Metric, ratio, total, within
from mmalign.evaluation.question_texts import core_of, normalise
from mmalign.evaluation.rows import Row, read_rows, read_text
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.yes_no import UNKNOWN, binary_item, parse_strict
from mmalign.files import list_files
from mmalign.options.evaluate import EvaluateOptions, Mode

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CATEGORIES = ("existence", "count", "position", "color")
# Of a category: accuracy + accuracy_plus (both questions of an image right), at most 200.
POINTS = {category: within([category], ratio("points", "images")) for category in CATEGORIES}


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
class Mme(QuestionBenchmark):
    """The questions of the subset.

    Attributes:
        folders: Whether the images lie beside the questions, in the release's folders.
    """

    name: ClassVar[str] = "mme"
    title: ClassVar[str] = "MME: existence, count, position, colour"
    source: ClassVar[str] = "MME_Benchmark of github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, or the hub's lmms-lab/MME"
    averages: ClassVar[Mapping[str, str]] = {
        "mme/total": "sum of the four subtasks, each accuracy plus accuracy of pairs",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        **{name: Metric(name.capitalize(), "higher", formula=points, constant=True) for name, points in POINTS.items()},
        "accuracy": Metric("Accuracy", "higher", "percent", formula=ratio("single", "images")),
        "accuracy_plus": Metric("Both questions of an image right", "higher", "percent", formula=ratio("both", "images")),
        "total": Metric("Total", "higher", drawn=True, formula=total(list(POINTS.values())), constant=True),
        "unknown": UNKNOWN,
    }
    records: Sequence[MmeQuestion]
    folders: bool = False

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Mme":
        return load_mme(options.data, answers=options.answers)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """The points of each category with their two parts, and the total."""
        found: dict[str, Formula] = {}
        for category, points in POINTS.items():
            parts = {f"{category}/{name}": within([category], cls.metrics[name].formula) for name in ("accuracy", "accuracy_plus")}
            found |= {category: points, **parts}
        return found | {name: cls.metrics[name].formula for name in ("total", "unknown")}

    @property
    def form(self) -> AnswerFormat:
        """The original's result files (image, question, truth, response between tabs), or rows by question_id (LLaVA's: text)."""
        return AnswerFormat(text=(*MODEL_FIELDS, "answer", "text"), read_rows=partial(read_answer_rows, records=self.records))

    def parts(self) -> list[list[str]]:
        """The categories: harnesses ask about fourteen."""
        return [
            [one.id for one in self.records if one.category == category] for category in dict.fromkeys(one.category for one in self.records)
        ]

    def images_in(self, folder: Path) -> Path:
        """The release's own folders hold both."""
        return folder if self.folders else super().images_in(folder)

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per question; an image counts with the first of its two, where both are answered."""
        parse = parse_official if mode == "official" else parse_strict
        answered = self.answered(answers)
        replies = {one.id: parse(answers[one.id]) for one, _ in answered}
        right: dict[tuple[str, str], list[bool]] = {}
        for one, _ in answered:
            right.setdefault((one.category, one.pair), []).append(replies[one.id] is one.is_yes)
        items = []
        for one, question in answered:
            values: dict[str, float] = {"unknown": int(replies[one.id] is None)}
            pair = right.pop((one.category, one.pair), [])
            if len(pair) == 2:
                single, both = 50 * sum(pair), 100 * all(pair)
                values |= {"single": single, "both": both, "points": single + both, "images": 1}
            reply = replies[one.id]
            items.append(binary_item(question, answers[one.id], is_yes=one.is_yes, reply=reply, group=one.category, values=values))
        return items


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
    read = {file: read_rows(file) for file in files}
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
    return Mme(files, items, folders, images=images)


def _is_question(row: Mapping[str, Any]) -> bool:
    whole = {"question_id", "question", "answer"} <= set(row) and not {"response", "text", *MODEL_FIELDS} & set(row)
    return whole and row.get("category") in CATEGORIES


def _read_release(source: Path) -> tuple[list[Row], list[Path]]:
    """Read the release's folders as rows, whose question_id is "category/image", as the hub's are."""
    places = [source / category / place for category in CATEGORIES for place in ("", "questions_answers_YN")]
    files = [file for place in places for file in list_files(place, "*.txt")]
    rows: list[Row] = []
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
            rows.append(Row({"question_id": name, "image": str(image.relative_to(source)), **asked}, f"{file}, line {number}"))
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


def read_answer_rows(path: Path, *, records: Sequence[MmeQuestion]) -> list[Any]:
    """Read answers; of the two on an image, which have one question_id, each gets the id of its question.

    The question is known by its text where the row has it, and by its place (first or second) where not.
    """
    if path.is_dir() or path.suffix == ".txt":
        rows = [row for file in ([path] if path.is_file() else list_files(path, "*.txt")) for row in _read_result_file(file)]
    else:
        rows = read_answer_file(path)
    known = {item.id for item in records}
    by_pair: dict[str, list[MmeQuestion]] = {}
    for item in records:
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
