"""POPE: yes-or-no questions about the objects of an image (arXiv:2305.10355)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, question_id, read_answer_file
from mmalign.evaluation.benchmark import QuestionBenchmark, find_question_files
from mmalign.evaluation.items import Item
from mmalign.evaluation.metrics import Formula, Metric, combine, harmonic_mean, mean, ratio, within
from mmalign.evaluation.rows import read_rows
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.yes_no import UNKNOWN, binary_item, parse_strict
from mmalign.files import list_files
from mmalign.options.evaluate import EvaluateOptions, Mode

SPLITS = ("random", "popular", "adversarial")
FIELDS = ("question_id", "image", "text", "label")
# What the released files and those of the hub call question, label and image.
HUB_FIELDS = (("text", "question"), ("label", "answer"), ("image_source", "image"))
PRECISION, RECALL = ratio("right_yes", "said_yes"), ratio("right_yes", "are_yes")


@dataclass(frozen=True)
class PopeQuestion:
    """One question with its label; ids are "split/question_id", since question_id starts again in each file."""

    id: str
    split: str
    image: str
    text: str
    is_yes: bool


def parse_official(answer: str) -> bool:
    """Return whether an answer counts as yes, by the original script.

    Of the text before the first full stop, commas removed and split at spaces, exactly "No", "no" or "not" make a no.
    Everything else is a yes, an empty answer too.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


@dataclass(frozen=True)
class Pope(QuestionBenchmark):
    """POPE's questions.

    Fractions, except ``unknown``, a count: ``official`` takes an unreadable answer for a yes, ``strict`` for wrong. Over the splits a
    metric is their plain mean, as in the paper; ``merged/`` takes all answers together, as VLMEvalKit does.
    """

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE: is there a ...?"
    source: ClassVar[str] = "coco_pope_{random,popular,adversarial}.json of github.com/RUCAIBox/POPE; images: COCO val2014"
    averages: ClassVar[Mapping[str, str]] = {
        "pope/f1": "plain mean of the splits, as in the paper",
        "pope/merged/f1": "all splits together, as VLMEvalKit",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("Accuracy", "higher", "share", drawn=True, formula=ratio("right", "answers"), constant=True),
        "precision": Metric("Precision", "higher", "share", formula=PRECISION),
        "recall": Metric("Recall", "higher", "share", formula=RECALL),
        "f1": Metric("F1", "higher", "share", drawn=True, formula=combine(harmonic_mean, PRECISION, RECALL), constant=True),
        # Half of the questions are rightly answered yes.
        "yes_ratio": Metric("Share of yes", "near_half", "share", drawn=True, formula=ratio("said_yes", "answers")),
        "unknown": UNKNOWN,
    }
    records: Sequence[PopeQuestion]

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Pope":
        return load_pope(options.data, answers=options.answers)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """Those of each split, their mean over splits, and of all answers together."""
        split = {f"{split}/{name}": within([split], metric.formula) for split in SPLITS for name, metric in cls.metrics.items()}
        averaged = {name: metric.formula for name, metric in cls.metrics.items() if metric.resampled}
        means = {name: mean([split[f"{one}/{name}"] for one in SPLITS]) for name in averaged}
        counts = {name: metric.formula for name, metric in cls.metrics.items() if name not in averaged}
        return split | means | {f"merged/{name}": formula for name, formula in averaged.items()} | counts

    @property
    def form(self) -> AnswerFormat:
        """The original's rows (question, answer) are in order; LLaVA's have question_id and text."""
        splits = {item.split for item in self.records}
        only = splits.pop() if len(splits) == 1 else None
        return AnswerFormat(
            text=(*MODEL_FIELDS, "answer", "text"),
            row_id=_row_id,
            normalise=lambda i: f"{only}/{i}" if only and "/" not in i else i,
            read_rows=read_answer_rows,
        )

    def parts(self) -> list[list[str]]:
        """The splits. LLaVA's one answer file counts its ids over all three."""
        return [[item.id for item in self.records if item.split == split] for split in dict.fromkeys(item.split for item in self.records)]

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per question; the splits are the groups."""
        parse = parse_official if mode == "official" else parse_strict
        return [
            binary_item(question, answers[one.id], is_yes=one.is_yes, reply=parse(answers[one.id]), group=one.split)
            for one, question in self.answered(answers)
        ]


def load_pope(source: Path, *, answers: Path | None = None) -> Pope:
    """Read POPE's files: one file, or a folder with one file a split, or with the Parquet files of the hub.

    The split is the row's ``category``, where it has one, or the word in the file's name.

    Args:
        source: File or folder.
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If there is no file, a row names no split, two files hold the same one, a row lacks a field, or a label is neither yes
            nor no.
    """
    patterns = ("*pope*.json", "*pope*.jsonl", "*.parquet", "data/*.parquet")
    files = find_question_files(source, patterns, is_question=_is_question, answers=answers)
    # RePOPE's labels of the same questions may lie beside them.
    files = [path for path in files if "repope" not in path.name] or files
    if not files:
        raise UserError(f"no POPE questions at {source}: expected files such as coco_pope_random.json, or the hub's Parquet")
    return read_pope(files, source)


def read_pope(files: Sequence[Path], source: Path) -> Pope:
    """Read question files; ``source`` is where they were looked for. Raises as ``load_pope``."""
    items: list[PopeQuestion] = []
    images: dict[Path, list[str]] = {}
    owners: dict[str, list[str]] = {}
    places: Counter[str] = Counter()
    for path in files:
        # The COCO files are JSON lines, those of A-OKVQA and GQA are arrays.
        read = [_read_question(row, places, path) for row in read_rows(path)]
        images[path] = [item.image for item in read]
        for split in dict.fromkeys(item.split for item in read):
            owners.setdefault(split, []).append(path.name)
        items += read
    # Parquet comes in shards; of other files two of a split are two sets.
    doubled = [split for split, names in owners.items() if len(names) > 1 and not all(name.endswith(".parquet") for name in names)]
    if doubled:
        named = ", ".join(name for split in doubled for name in owners[split])
        raise UserError(f"{source} has more than one file of split {', '.join(doubled)}: {named}; give each set its folder")
    counts = Counter(item.id for item in items)
    if repeated := [identifier for identifier, count in counts.items() if count > 1]:
        raise UserError(f"{source} holds {len(repeated)} questions twice (first: {repeated[0]}); expected each question_id once a split")
    return Pope(files, items, images=images)


def _is_question(row: Mapping[str, Any]) -> bool:
    if {"response", *MODEL_FIELDS} & set(row):
        return False
    return set(FIELDS) <= set(row) or ({"question", "answer"} <= set(row) and bool({"image", "image_source"} & set(row)))


def _read_question(row: Mapping[str, Any], places: Counter[str], path: Path) -> PopeQuestion:
    """Read a row of the release (text, label), or of the hub (question, answer, category, image_source); without an id, count it."""
    text, label, image = (next((row[name] for name in names if row.get(name) is not None), None) for names in HUB_FIELDS)
    if text is None or label is None or not ({"image", "image_source"} & set(row)):
        raise UserError(f"{path}: a row has keys {', '.join(row)}; expected {', '.join(FIELDS)}, or question, answer and image_source")
    split = row.get("category") or _split_of(path)
    if split not in SPLITS:
        where = f"{path.name} names no split" if split is None else f"{path}: a row's category is {split!r}"
        raise UserError(f"{where}; expected one of {', '.join(SPLITS)} in the file's name or in the rows' category")
    places[split] += 1
    identifier = row.get("question_id", places[split])
    answer = str(label).strip().lower()
    if answer not in ("yes", "no"):
        raise UserError(f"{path}: label of question {identifier} is {label!r}; expected yes or no")
    # The hub's rows name the image without its ending, or hold it without a name.
    name = f"{split}_{identifier}" if image is None else image
    named = name if not isinstance(name, str) or Path(name).suffix else f"{name}.jpg"
    return PopeQuestion(f"{split}/{identifier}", split, named, text, answer == "yes")


def read_answer_rows(path: Path) -> list[Any]:
    """Read a file of answers, or a folder with one a split, whose rows then carry their split."""
    if not path.is_dir():
        return read_answer_file(path)
    rows = []
    for file in list_files(path, "*.json*"):
        read = read_answer_file(file)
        if read and isinstance(read[0], Mapping) and _is_question(read[0]):
            continue
        split = _split_of(file)
        if split is None:
            raise UserError(f"{file.name} names no split; expected one of {', '.join(SPLITS)} in the file's name")
        for number, row in enumerate(read, start=1):
            rows.append(row if "id" in row else {**row, "split": split, "question_id": row.get("question_id", number)})
    return rows


def _split_of(path: Path) -> str | None:
    return next((split for split in SPLITS if split in path.name), None)


def _row_id(row: Mapping[str, Any]) -> str | None:
    identifier, split = question_id(row), row.get("split", row.get("category"))
    return f"{split}/{identifier}" if split and identifier is not None else identifier
