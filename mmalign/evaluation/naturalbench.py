"""NaturalBench: two questions on two images, whose four answers alternate (arXiv:2410.14669)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, question_id
from mmalign.evaluation.benchmark import QuestionBenchmark, find_question_files
from mmalign.evaluation.choice import parse_strict as parse_letter
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Formula, Metric, count, ratio, within
from mmalign.evaluation.parquet import has_pictures, write_pictures
from mmalign.evaluation.rows import Row, read_records
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.yes_no import parse_strict
from mmalign.options.evaluate import EvaluateOptions, Mode

YES_NO, CHOICE = "yes_no", "multiple_choice"
# What the split for fine-tuning calls a kind.
KINDS = {YES_NO: YES_NO, CHOICE: CHOICE, "mcq": CHOICE}
SUFFIX = {YES_NO: "Please answer Yes or No.", CHOICE: "Please output the letter corresponding to the correct option."}
# The two answers of a kind: the first is the right one of question and image that belong together.
LABELS = {YES_NO: ("Yes", "No"), CHOICE: ("A", "B")}
# What the four answers of a sample are: question 0 on image 0 and 1, question 1 on image 0 and 1.
ORDER = (0, 1, 1, 0)
# Places in a sample that are right together: each question on both images, each image under both questions, all.
QUESTIONS, IMAGES, WHOLE = ((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 1, 2, 3),)
HUB_FIELDS = ("Question_0", "Question_1", "Image_0_Question_0", "Image_1_Question_0", "Image_0_Question_1", "Image_1_Question_1")


@dataclass(frozen=True)
class NaturalQuestion:
    """One of the four questions of a sample.

    Attributes:
        id: Its number in the release's order, from 0.
        sample: Number of the sample.
        kind: Whether it asks for yes or no, or for a letter.
        options: What it offers: two words, or the texts of A and B.
        answer: Place of the right one.
    """

    id: str
    sample: str
    image: str
    text: str
    kind: str
    options: tuple[str, str]
    answer: int


def parse_official(answer: str, kind: str) -> int | None:
    """Return 0 for yes or A, 1 for no or B, whichever comes first as a whole word; the article is an A."""
    places = [re.search(rf"\b{word}\b", answer, re.IGNORECASE) for word in LABELS[kind]]
    found = [(match.start(), place) for place, match in enumerate(places) if match is not None]
    return min(found)[1] if found else None


def parse_careful(question: NaturalQuestion, answer: str) -> int | None:
    """Return the same, where a letter stands for an answer and not as the article, else by the words of one option alone."""
    if question.kind == CHOICE:
        return parse_letter(answer, question.options)
    is_yes = parse_strict(answer)
    return None if is_yes is None else 0 if is_yes else 1


def _share(label: str, name: str) -> Metric:
    formula = ratio(f"{name}_right", name)
    return Metric(label, "higher", "share", drawn=True, formula=formula, constant=True, resampled="cluster")


@dataclass(frozen=True)
class NaturalBench(QuestionBenchmark):
    """The four questions of each sample. Fractions, except ``unknown``, a count; blind answers have half of them right and nothing else."""

    name: ClassVar[str] = "naturalbench"
    title: ClassVar[str] = "NaturalBench: two questions, two images"
    source: ClassVar[str] = "the hub's BaiqiL/NaturalBench: Parquet, which holds the images"
    averages: ClassVar[Mapping[str, str]] = {
        "naturalbench/accuracy": "share of questions",
        "naturalbench/g_accuracy": "share of samples of four questions",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": _share("Accuracy", "answers"),
        "q_accuracy": _share("Questions right on both images", "questions"),
        "i_accuracy": _share("Images right under both questions", "images"),
        "g_accuracy": _share("Samples with all four right", "samples"),
        "unknown": Metric("Answers that name neither option", "lower", formula=count("unknown"), resampled=None),
    }
    records: Sequence[NaturalQuestion]
    # Columns of the hub's Parquet that hold pictures -> what the questions call them.
    pictures: Mapping[Path, Mapping[str, Sequence[str]]]

    @classmethod
    def load(cls, options: EvaluateOptions) -> "NaturalBench":
        return load_naturalbench(options.data, answers=options.answers)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """Those of all samples, and of each kind of question."""
        shares = {name: metric.formula for name, metric in cls.metrics.items() if metric.resampled}
        of_kind = {f"{group}/{name}": within([group], formula) for group in groups for name, formula in shares.items()}
        return super().formulas(groups) | of_kind

    @property
    def form(self) -> AnswerFormat:
        """Outputs in the release's order, one per row, or rows by question_id."""
        return AnswerFormat(text=(*MODEL_FIELDS, "answer", "text"), row_id=question_id)

    def constants(self) -> dict[str, dict[str, str]]:
        """Always yes or A, always no or B."""
        return {f"always_{word.lower()}": {one.id: LABELS[one.kind][i] for one in self.records} for i, word in enumerate(LABELS[YES_NO])}

    @property
    def holds_images(self) -> bool:
        return any(has_pictures(path, column) for path, columns in self.pictures.items() for column in columns)

    def write_images(self, folder: Path) -> bool:
        # A list, so that the second column is written too.
        written = [write_pictures({path: names}, folder, column) for path, by in self.pictures.items() for column, names in by.items()]
        return any(written)

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per question; what several are right in together counts with the first of a sample that is answered whole."""
        answered = self.answered(answers)
        replies = {one.id: _read(one, answers[one.id], mode) for one, _ in answered}
        right: dict[str, list[bool]] = {}
        for one, _ in answered:
            right.setdefault(one.sample, []).append(replies[one.id] == one.answer)
        items = []
        for one, question in answered:
            reply = replies[one.id]
            values: dict[str, float] = {"answers": 1, "answers_right": int(reply == one.answer), "unknown": int(reply is None)}
            four = right.pop(one.sample, [])
            if len(four) == len(ORDER):
                for name, groups in (("questions", QUESTIONS), ("images", IMAGES), ("samples", WHOLE)):
                    values |= {name: len(groups), f"{name}_right": sum(all(four[i] for i in places) for places in groups)}
            shown = {"label": LABELS[one.kind][one.answer], "correct": reply == one.answer, "group": one.kind, "cluster": one.sample}
            items.append(make_item(question, answers[one.id], values=values, **shown))
        return items


def _read(question: NaturalQuestion, answer: str, mode: Mode) -> int | None:
    return parse_official(answer, question.kind) if mode == "official" else parse_careful(question, answer)


def load_naturalbench(source: Path, *, answers: Path | None = None) -> NaturalBench:
    """Read the hub's Parquet, or ``test_set.json`` of the split for fine-tuning: [question, image, answer, kind], four per sample.

    Args:
        source: The file, or the folder that holds it (Parquet also in ``data``).
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If there is no such file, or four rows are no sample: two questions on two images, whose answers alternate.
    """
    listed = source / "test_set.json"
    patterns = ["*.parquet", "data/*.parquet"]
    whole = [listed] if listed.is_file() else find_question_files(source, patterns, is_question=_is_sample, answers=answers)
    if not whole:
        raise UserError(f"no questions of NaturalBench at {source}: expected the hub's Parquet, or test_set.json")
    records: list[NaturalQuestion] = []
    pictures: dict[Path, Mapping[str, Sequence[str]]] = {}
    for path in whole:
        rows = read_records(path)
        found = _read_hub(rows, path, len(records)) if path.suffix == ".parquet" else _read_list(rows, path)
        records += found
        images = [one.image for one in found]
        if path.suffix == ".parquet":
            pictures[path] = {"Image_0": images[::4], "Image_1": images[1::4]}
    if not records:
        raise UserError(f"{source} holds no questions of NaturalBench")
    return NaturalBench(whole, records, pictures)


def _is_sample(row: Mapping[str, Any]) -> bool:
    return set(HUB_FIELDS) <= set(row)


def _read_hub(rows: Sequence[Any], path: Path, start: int) -> list[NaturalQuestion]:
    found = []
    for number, fields in enumerate(rows, start=1):
        row = Row(fields, f"{path}, row {number}")
        kind = row["Question Type"] if "Question Type" in row else row["Question_Type"]
        sample = start // 4 + number - 1
        # The hub's names of pictures need not differ from sample to sample.
        names = [f"{sample}_{i}.jpg" for i in (0, 1)]
        four = [
            [row[f"Question_{q}"] + SUFFIX.get(kind, ""), names[i], row[f"Image_{i}_Question_{q}"], kind] for q in (0, 1) for i in (0, 1)
        ]
        found += _read_sample(four, sample, row.place)
    return found


def _read_list(rows: Sequence[Any], path: Path) -> list[NaturalQuestion]:
    if not rows or len(rows) % 4:
        raise UserError(f"{path} holds {len(rows)} rows; expected four per sample: [question, image, answer, kind]")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) != 4 or not all(isinstance(part, str) for part in row):
            raise UserError(f"{path}, record {number} is {str(row)[:60]}; expected four texts: [question, image, answer, kind]")
    return [one for i in range(0, len(rows), 4) for one in _read_sample(rows[i : i + 4], i // 4, f"{path}, records {i + 1} to {i + 4}")]


def _read_sample(rows: Sequence[Sequence[str]], sample: int, place: str) -> list[NaturalQuestion]:
    texts, images, labels, kinds = zip(*rows, strict=True)
    kind = KINDS.get(kinds[0])
    if kind is None or len(set(kinds)) > 1:
        raise UserError(f"{place}: the kind of question is {kinds[0]!r}; expected {YES_NO} or {CHOICE}, the same four times")
    pairs = texts[0] == texts[1] and texts[2] == texts[3] and images[0] == images[2] and images[1] == images[3]
    expected = [LABELS[kind][answer] for answer in ORDER]
    if not pairs or list(labels) != expected:
        raise UserError(f"{place} are no sample: answers {labels}; expected question 0 on two images, question 1 on them, {expected}")
    return [
        NaturalQuestion(str(4 * sample + i), str(sample), images[i], texts[i], kind, _options(texts[i], kind), ORDER[i]) for i in range(4)
    ]


def _options(text: str, kind: str) -> tuple[str, str]:
    """Yes and no, or the texts behind A: and B:."""
    found = re.search(rf"\bA:(.+?)\bB:(.+?)(?:{SUFFIX[CHOICE]}|$)", text, re.DOTALL) if kind == CHOICE else None
    return LABELS[kind] if found is None else (found[1].strip(" ;.\n"), found[2].strip(" ;.\n"))
