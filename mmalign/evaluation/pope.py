"""POPE: yes-or-no questions about the objects of an image (arXiv:2305.10355)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mmalign.evaluation.answers import Question, check_ids, read_jsonl

Split = Literal["random", "popular", "adversarial"]
Mode = Literal["official", "strict"]
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True)
class PopeQuestion:
    """One question with its label; ids are "split/question_id", since question_id starts again in each file."""

    id: str
    split: str
    image: str
    text: str
    is_yes: bool

    def as_question(self) -> Question:
        """What a model is asked."""
        return Question(self.id, self.image, self.text)


def load_pope(source: Path) -> tuple[list[PopeQuestion], list[Path]]:
    """Read POPE's files: one file, or a folder with one file a split. The split is the word in the file's name.

    Returns:
        The questions, and the files they came from.

    Raises:
        ValueError: If there is no file, a name has no split, or a label is neither yes nor no.
    """
    files = [source] if source.is_file() else sorted(path for path in source.glob("*pope*") if path.suffix in (".json", ".jsonl"))
    if not files:
        raise ValueError(f"no POPE questions at {source}: expected files such as coco_pope_random.json")
    questions = []
    for path in files:
        split = next((split for split in SPLITS if split in path.name), None)
        if split is None:
            raise ValueError(f"{path.name} names no split; expected one of {', '.join(SPLITS)} in the file's name")
        for row in read_jsonl(path):
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"{path}: label of question {row['question_id']} is {row['label']!r}; expected yes or no")
            questions.append(PopeQuestion(f"{split}/{row['question_id']}", split, row["image"], row["text"], row["label"] == "yes"))
    return questions, files


def parse_official(answer: str) -> bool:
    """Return whether an answer counts as yes, by the original script.

    Of the text before the first full stop, commas removed and split at spaces, exactly "No", "no" or "not" make a no.
    Everything else is a yes, an empty answer too.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def parse_strict(answer: str) -> bool | None:
    """Return the first whole word that is yes or no, in any case; None where there is neither."""
    found = re.search(r"\b(yes|no)\b", answer.lower())
    return None if found is None else found.group() == "yes"


def score_pope(
    questions: Sequence[PopeQuestion], answers: Mapping[str, str], *, mode: Mode = "official", allow_partial: bool = False
) -> dict[str, float]:
    """Compute POPE's metrics by split, and their mean over splits.

    Args:
        questions: All questions.
        answers: Responses by question id.
        mode: ``official`` counts an unreadable answer as yes; ``strict`` counts it as wrong and as unknown.
        allow_partial: Score what is answered.

    Returns:
        ``pope/<split>/<metric>`` and ``pope/<metric>`` (mean of the splits), with the always-yes and always-no baselines.
        Fractions, except ``unknown``, a count.

    Raises:
        ValueError: If ids don't match.
    """
    check_ids([question.id for question in questions], answers, allow_partial=allow_partial)
    metrics: dict[str, float] = {}
    present = [split for split in SPLITS if any(q.split == split and q.id in answers for q in questions)]
    for split in present:
        chosen = [question for question in questions if question.split == split and question.id in answers]
        labels = [question.is_yes for question in chosen]
        replies = [parse_official(answers[q.id]) if mode == "official" else parse_strict(answers[q.id]) for q in chosen]
        metrics |= {f"pope/{split}/{name}": value for name, value in binary_metrics(labels, replies).items()}
        for name, constant in (("always_yes", True), ("always_no", False)):
            baseline = binary_metrics(labels, [constant] * len(labels))
            metrics |= {f"pope/{split}/{name}_accuracy": baseline["accuracy"], f"pope/{split}/{name}_f1": baseline["f1"]}
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        metrics[f"pope/{name}"] = sum(metrics[f"pope/{split}/{name}"] for split in present) / len(present)
    metrics["pope/unknown"] = sum(metrics[f"pope/{split}/unknown"] for split in present)
    return metrics


def binary_metrics(labels: Sequence[bool], replies: Sequence[bool | None]) -> dict[str, float]:
    """Compute accuracy, precision, recall and F1 with yes as the positive class. 0 / 0 is 0.

    An unknown reply is wrong: it lowers accuracy, and recall where the label is yes.
    """
    pairs = list(zip(labels, replies, strict=True))
    true_positive = sum(label and reply is True for label, reply in pairs)
    false_positive = sum(not label and reply is True for label, reply in pairs)
    right = sum(label == reply for label, reply in pairs)
    precision = _ratio(true_positive, true_positive + false_positive)
    recall = _ratio(true_positive, sum(labels))
    return {
        "accuracy": _ratio(right, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(sum(reply is True for _, reply in pairs), len(pairs)),
        "unknown": float(sum(reply is None for _, reply in pairs)),
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
