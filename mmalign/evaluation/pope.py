"""POPE: yes-or-no questions about the objects of an image (arXiv:2305.10355)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.evaluation.answers import AnswerFormat, Question, read_jsonl, read_records
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.yes_no import Mode, binary_metrics, parse_strict, score_baselines

SPLITS = ("random", "popular", "adversarial")
MEANS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


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
class Pope(Benchmark):
    """POPE's questions."""

    name: ClassVar[str] = "pope"
    items: Sequence[PopeQuestion]

    @property
    def form(self) -> AnswerFormat:
        """The original's rows (question, answer) are in order; LLaVA's have question_id and text."""
        splits = {item.split for item in self.items}
        only = splits.pop() if len(splits) == 1 else None
        return AnswerFormat(
            text=("answer", "text"),
            row_id=_row_id,
            normalise=lambda i: f"{only}/{i}" if only and "/" not in i else i,
            read_rows=read_answer_rows,
        )

    def questions(self) -> list[Question]:
        """Each as it stands."""
        return [Question(item.id, item.image, item.text) for item in self.items]

    def required(self) -> list[str]:
        """All."""
        return [item.id for item in self.items]

    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Compute ``pope/<split>/<metric>`` and their plain mean over splits, ``pope/<metric>``.

        Fractions, except ``unknown``, a count: ``official`` takes an unreadable answer for a yes, ``strict`` for wrong.
        """
        score = partial(score_pope, self.items, mode=mode)
        return score(answers) | score_baselines(score, answers, leave_out=("precision", "recall", "yes_ratio", "unknown"))


def score_pope(items: Sequence[PopeQuestion], answers: Mapping[str, str], *, mode: Mode) -> dict[str, float]:
    """Compute POPE's metrics of the answered questions by split, and their mean over splits."""
    parse = parse_official if mode == "official" else parse_strict
    metrics: dict[str, float] = {}
    chosen = {split: [item for item in items if item.split == split and item.id in answers] for split in SPLITS}
    present = [split for split in SPLITS if chosen[split]]
    for split in present:
        scores = binary_metrics([item.is_yes for item in chosen[split]], [parse(answers[item.id]) for item in chosen[split]])
        metrics |= {f"pope/{split}/{name}": value for name, value in scores.items()}
    for name in MEANS:
        metrics[f"pope/{name}"] = sum(metrics[f"pope/{split}/{name}"] for split in present) / len(present)
    metrics["pope/unknown"] = sum(metrics[f"pope/{split}/unknown"] for split in present)
    return metrics


def load_pope(source: Path) -> Pope:
    """Read POPE's files: one file, or a folder with one file a split. The split is the word in the file's name.

    Raises:
        ValueError: If there is no file, a name has no split, or a label is neither yes nor no.
    """
    files = [source] if source.is_file() else sorted(path for path in source.glob("*pope*") if path.suffix in (".json", ".jsonl"))
    if not files:
        raise ValueError(f"no POPE questions at {source}: expected files such as coco_pope_random.json")
    items = []
    for path in files:
        split = _split_of(path)
        if split is None:
            raise ValueError(f"{path.name} names no split; expected one of {', '.join(SPLITS)} in the file's name")
        # The COCO files are JSON lines, those of A-OKVQA and GQA are arrays.
        items += [_read_question(row, split, path) for row in read_records(path)]
    return Pope(files, items)


def _read_question(row: Mapping[str, Any], split: str, path: Path) -> PopeQuestion:
    if row["label"] not in ("yes", "no"):
        raise ValueError(f"{path}: label of question {row['question_id']} is {row['label']!r}; expected yes or no")
    return PopeQuestion(f"{split}/{row['question_id']}", split, row["image"], row["text"], row["label"] == "yes")


def read_answer_rows(path: Path) -> list[Any]:
    """Read a file of answers, or a folder with one a split, whose rows then carry their split."""
    if not path.is_dir():
        return read_records(path)
    rows = []
    for file in sorted(path.glob("*.json*")):
        split = _split_of(file)
        if split is None:
            raise ValueError(f"{file.name} names no split; expected one of {', '.join(SPLITS)} in the file's name")
        for number, row in enumerate(read_jsonl(file), start=1):
            rows.append(row if "id" in row else {**row, "split": split, "question_id": row.get("question_id", number)})
    return rows


def _split_of(path: Path) -> str | None:
    return next((split for split in SPLITS if split in path.name), None)


def _row_id(row: Mapping[str, Any]) -> str | None:
    if "question_id" not in row:
        return None
    split = row.get("split", row.get("category"))
    return f"{split}/{row['question_id']}" if split else str(row["question_id"])
