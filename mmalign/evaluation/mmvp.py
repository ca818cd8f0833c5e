"""MMVP and pairs of contrast images: one question on two images, whose answers differ (arXiv:2401.06209)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, question_id, spell_id
from mmalign.evaluation.benchmark import QuestionBenchmark, find_question_files
from mmalign.evaluation.choice import LETTERS, parse_official, parse_strict
from mmalign.evaluation.decisions import RIGHT_OR_WRONG, Decision, read_correct
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Formula, Metric, count, ratio, within
from mmalign.evaluation.rows import Row, read_csv, read_rows
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.yes_no import parse_strict as parse_yes_no
from mmalign.options.evaluate import EvaluateOptions, Mode

FIELDS = ("Index", "Question", "Options", "Correct Answer")
PROMPT = """Does the response to a question about an image agree with the right answer? Reply with one word, yes or no.

Question: {question}
Right answer: {reference}
Response: {response}
Reply:"""
# The release's labels of two pairs are swapped (tsb0601/MMVP#30, lmms-eval#1018): question -> ids and published labels.
SWAPPED = {
    "Does the elephant have long or short tusks?": {"99": 0, "100": 1},
    "Is the elderly person standing or sitting in the picture?": {"279": 0, "280": 1},
}


@dataclass(frozen=True)
class MmvpQuestion:
    """One of the two questions of a pair.

    Attributes:
        pair: What the two have in common.
        text: What is asked.
        question: The same without the options.
        options: Answers to choose from.
        answer: Place of the right one, as published.
        corrected: The same with the published mistakes corrected; None where no such correction is known of the data.
        lettered: Whether the options are named with letters where it is asked; else it is answered in their words.
        group: What else metrics are given for; empty where nothing.
    """

    id: str
    pair: str
    image: str
    text: str
    question: str
    options: tuple[str, str]
    answer: int
    corrected: int | None
    lettered: bool
    group: str


@dataclass(frozen=True)
class Mmvp(QuestionBenchmark):
    """The questions of both images of each pair.

    Fractions, except ``unknown``, a count. A pair is right where both of its answers are: answers that don't depend on the image get none.
    """

    name: ClassVar[str] = "mmvp"
    title: ClassVar[str] = "MMVP: one question, two images"
    source: ClassVar[str] = "the hub's MMVP/MMVP: Questions.csv and MMVP Images"
    averages: ClassVar[Mapping[str, str]] = {
        "mmvp/pair": "share of pairs, labels as published",
        "mmvp/corrected/pair": "share of pairs, labels corrected",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "pair": Metric(
            "Pairs with both right", "higher", "share", drawn=True, formula=ratio("pair_right", "pairs"), constant=True, resampled="cluster"
        ),
        "accuracy": Metric(
            "Accuracy", "higher", "share", drawn=True, formula=ratio("right", "answers"), constant=True, resampled="cluster"
        ),
        "alike": Metric("Pairs answered alike", "lower", "share", formula=ratio("alike", "pairs"), resampled="cluster"),
        "unknown": Metric("Answers that name neither option", "lower", formula=count("unknown"), resampled=None),
    }
    judge_wording: ClassVar[str] = PROMPT
    decisions: ClassVar[Mapping[str, Decision]] = {
        "answer": replace(RIGHT_OR_WRONG, read=lambda item: None if item.values["unknown"] else read_correct(item))
    }
    records: Sequence[MmvpQuestion]

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Mmvp":
        return load_mmvp(options.data, answers=options.answers)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """Those of all questions, with the labels as published and corrected, and the pairs of each group."""
        corrected = {"pair": ratio("corrected_pair_right", "pairs"), "accuracy": ratio("corrected_right", "answers")}
        found = super().formulas(groups) | {f"corrected/{name}": formula for name, formula in corrected.items()}
        return found | {f"{group}/pair": within([group], cls.metrics["pair"].formula) for group in groups if group}

    @property
    def form(self) -> AnswerFormat:
        """The original's rows: question_id, prompt, response, and the right answer as ``answer``; LLaVA's have ``text``; or its table."""
        return AnswerFormat(text=(*MODEL_FIELDS, "text"), row_id=lambda row: spell_id(row.get("Index")) or question_id(row))

    @property
    def judgement_form(self) -> AnswerFormat:
        """Rows by question_id, or ours."""
        return AnswerFormat(text=("judgement",), row_id=question_id)

    def variant(self, *, judged: bool) -> str:
        """Judge or rule."""
        return "judge" if judged else "rule"

    def judge_fields(self, record: MmvpQuestion) -> dict[str, str]:
        """The published script tells the letter alone; with the words of the option a small judge need not look it up."""
        label = record.options[record.answer]
        return {"question": record.text, "reference": f"{LETTERS[record.answer]} {label}" if record.lettered else label}

    def texts(self) -> dict[str, str]:
        """The questions without the options, which harnesses word in their own ways."""
        return {record.id: record.question for record in self.records}

    def images_in(self, folder: Path) -> Path:
        """The release's folder, where it is there."""
        return release if (release := folder / "MMVP Images").is_dir() else super().images_in(folder)

    def constants(self) -> dict[str, dict[str, str]]:
        """Always the first option, always the second."""
        return {
            name: {one.id: LETTERS[place] if one.lettered else one.options[place] for one in self.records}
            for place, name in enumerate(("always_first", "always_second"))
        }

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per question; a pair counts with the first of its two, where both are answered.

        With judgements these are read, else the answers by rule. A judge is told the published answer, so that nothing follows for the
        corrected ones, nor for whether answers are alike.
        """
        answered = self.answered(answers)
        verdicts = {
            one.id: _judged(judgements[one.id], mode) if judgements is not None else _by_rule(one, answers[one.id], mode)
            for one, _ in answered
        }
        pairs: dict[str, list[_Verdict]] = {}
        for one, _ in answered:
            pairs.setdefault(one.pair, []).append(verdicts[one.id])
        items = []
        for one, question in answered:
            verdict = verdicts[one.id]
            values = {"answers": 1, "unknown": int(verdict.unknown), **_count("right", [verdict.right])}
            values |= _count("corrected_right", [verdict.corrected])
            two = pairs.pop(one.pair, [])
            if len(two) == 2:
                values |= {"pairs": 1, **_count("pair_right", [each.right for each in two])}
                values |= _count("corrected_pair_right", [each.corrected for each in two])
                if judgements is None:
                    values["alike"] = int(two[0].option is not None and two[0].option == two[1].option)
            shown = {"label": one.options[one.answer], "correct": verdict.right, "group": one.group, "cluster": one.pair}
            items.append(make_item(question, answers[one.id], values=values, **shown))
        return items


class _Verdict(NamedTuple):
    """Whether an answer is right, by the published and the corrected label, and the option that it names; None where that is not known."""

    right: bool
    corrected: bool | None
    option: str | None
    unknown: bool


def _judged(judgement: str, mode: Mode) -> _Verdict:
    """Read a judge's reply: the original script takes yes or no alone and nothing around it."""
    reply = {"yes": True, "no": False}.get(judgement.strip().lower()) if mode == "official" else parse_yes_no(judgement)
    return _Verdict(reply is True, None, None, reply is None)


def _by_rule(question: MmvpQuestion, answer: str, mode: Mode) -> _Verdict:
    official = mode == "official" and question.lettered
    reply = parse_official(answer) if official else parse_strict(answer, question.options, lettered=question.lettered)
    corrected = None if question.corrected is None else reply == question.corrected
    return _Verdict(reply == question.answer, corrected, None if reply is None else question.options[reply], reply is None)


def _count(name: str, right: Sequence[bool | None]) -> dict[str, float]:
    """One where all are right; nothing where that is not known."""
    return {} if None in right else {name: int(all(right))}


def load_mmvp(source: Path, *, answers: Path | None = None) -> Mmvp:
    """Read ``Questions.csv`` of the release, the same columns as Parquet, or ``questions.jsonl`` of contrast images.

    Rows of the latter have id, image, pair, question, options (two texts), answer (one of them), and may have a kind.

    Args:
        source: The file, or the folder that holds it.
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If there is no such file, a row is not of its form, an id stands twice, or a pair has not two questions.
    """
    files = _find_files(source, answers)
    read = {file: read_csv(file) if file.suffix == ".csv" else read_rows(file) for file in files}
    by_file = {file: [_read_release(row) if "Question" in row else _read_contrast(row) for row in rows] for file, rows in read.items()}
    records = [record for found in by_file.values() for record in found]
    if repeated := [i for i, number in Counter(one.id for one in records).items() if number > 1]:
        raise UserError(f"{source} holds {len(repeated)} questions twice (first: {repeated[0]}); expected each id once")
    if odd := [pair for pair, number in Counter(one.pair for one in records).items() if number != 2]:
        raise UserError(f"{len(odd)} pairs of {source} have not two questions: {', '.join(odd[:10])}")
    return Mmvp(files, records, images={file: [record.image for record in found] for file, found in by_file.items()})


def _find_files(source: Path, answers: Path | None) -> list[Path]:
    found = [source / name for name in ("Questions.csv", "questions.jsonl") if (source / name).is_file()][:1]
    if not found:
        found = find_question_files(
            source, ["*.parquet", "data/*.parquet"], is_question=lambda row: set(FIELDS) <= set(row), answers=answers
        )
    if not found:
        raise UserError(f"no questions at {source}: expected MMVP's Questions.csv, or questions.jsonl of contrast images")
    return found


def _read_release(row: Row) -> MmvpQuestion:
    index, question, options, label = (str(row[name]) for name in FIELDS)
    found = re.fullmatch(r"\s*\(a\)(.+?)\(b\)(.+)", options)
    if found is None or label.strip() not in LETTERS or not index.isdecimal():
        given = f"Index, Options and Correct Answer are {index}, {options!r} and {label!r}"
        raise UserError(f"{row.place}: {given}; expected a number, (a) ... (b) ..., and (a) or (b)")
    answer = LETTERS.index(label.strip())
    published = SWAPPED.get(question.strip(), {}).get(index)
    return MmvpQuestion(
        id=index,
        pair=str((int(index) + 1) // 2),
        image=f"{index}.jpg",
        text=f"{question} {options}",
        question=question,
        options=(found[1].strip(), found[2].strip()),
        answer=answer if published is None else published,
        corrected=answer if published is None else 1 - published,
        lettered=True,
        group="",
    )


def _read_contrast(row: Row) -> MmvpQuestion:
    options = row["options"]
    if not isinstance(options, list) or len({str(one).lower() for one in options}) != 2 or row["answer"] not in options:
        raise UserError(f"{row.place}: options and answer are {options!r} and {row['answer']!r}; expected two texts and one of them")
    identifier, pair, image, question = (row[name] for name in ("id", "pair", "image", "question"))
    return MmvpQuestion(
        id=identifier,
        pair=str(pair),
        image=image,
        text=question,
        question=question,
        options=(str(options[0]), str(options[1])),
        answer=options.index(row["answer"]),
        corrected=None,
        lettered=False,
        group=str(row.get("kind", "")),
    )
