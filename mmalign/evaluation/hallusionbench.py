"""HallusionBench: yes-or-no questions in groups that only a model that looks answers all (arXiv:2310.14566)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, question_id, read_answer_file
from mmalign.evaluation.benchmark import QuestionBenchmark, find_question_files
from mmalign.evaluation.decisions import Decision, read_correct
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Metric, count, ratio
from mmalign.evaluation.rows import read_rows
from mmalign.evaluation.saved_rows import MODEL_FIELDS
from mmalign.evaluation.verdicts import find_verdict
from mmalign.evaluation.yes_no import parse_strict
from mmalign.options.evaluate import EvaluateOptions, HallusionQuestions, Mode

NAME_FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id")
PROMPT = """You are a careful teacher. Compare a prediction with the reference answer to a question. Reply with one word: "correct" if \
the prediction does not contradict the reference, "incorrect" if it contradicts it, "unclear" if it does not say.

Question: {question}
Reference answer: {reference}
Prediction: {response}
Reply:"""
RIGHT, WRONG, UNCLEAR = 1, 0, 2


@dataclass(frozen=True)
class HallusionQuestion:
    """One question.

    Attributes:
        id: category_subcategory_set_figure_question.
        pair: Questions on different figures with one text.
        figure: Questions on one figure; None for a question without one.
        is_hard: About a figure that was changed.
    """

    id: str
    pair: str
    figure: str | None
    is_hard: bool
    image: str | None
    text: str
    reference: str
    is_yes: bool


# Metrics of groups that are right where every answer in them is; a question without a figure is in none of ``facc``.
GROUPS: dict[str, Callable[[HallusionQuestion], str | None]] = {
    "qacc": lambda question: question.pair,
    "facc": lambda question: question.figure,
    "easy": lambda question: None if question.is_hard else question.pair,
    "hard": lambda question: question.pair if question.is_hard else None,
}


def _share(label: str, name: str, *, drawn: bool = False, constant: bool = False, pairs: bool = False) -> Metric:
    formula = ratio(f"{name}_right", name, scale=100, digits=4)
    return Metric(label, "higher", "percent", drawn, formula=formula, constant=constant, resampled="cluster" if pairs else "image")


@dataclass(frozen=True)
class HallusionBench(QuestionBenchmark):
    """The questions, all 1,129 or the 951 with an image. Metrics are percentages with four decimals.

    All questions on a figure are about one image; a pair joins several, which are then resampled by set.

    Attributes:
        records: Those that are scored.
        ids: Of all 1,129: answers to them serve for both forms.
    """

    name: ClassVar[str] = "hallusionbench"
    title: ClassVar[str] = "HallusionBench"
    source: ClassVar[str] = "HallusionBench.json of github.com/tianyi-lab/HallusionBench, and its archive of figures"
    averages: ClassVar[Mapping[str, str]] = {
        "hallusionbench/aacc": "share of questions",
        "hallusionbench/qacc": "share of pairs",
        "hallusionbench/facc": "share of figures",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "aacc": _share("Questions right (aAcc)", "aacc", drawn=True, constant=True),
        "qacc": _share("Question pairs all right (qAcc)", "qacc", drawn=True, constant=True, pairs=True),
        "facc": _share("Figures all right (fAcc)", "facc", drawn=True, constant=True),
        "easy": _share("Pairs on the image as it is, all right", "easy", pairs=True),
        "hard": _share("Pairs on an edited image, all right", "hard", pairs=True),
        "unclear": Metric("Answers that are unclear", "lower", formula=count("unclear"), resampled=None),
    }
    judge_wording: ClassVar[str] = PROMPT
    decisions: ClassVar[Mapping[str, Decision]] = {
        "answer": Decision(("right", "wrong", "unclear"), lambda item: "unclear" if item.values["unclear"] else read_correct(item))
    }
    records: Sequence[HallusionQuestion]
    ids: frozenset[str]
    which: HallusionQuestions

    @classmethod
    def load(cls, options: EvaluateOptions) -> "HallusionBench":
        return load_hallusionbench(options.data, which=options.questions, answers=options.answers)

    @property
    def form(self) -> AnswerFormat:
        """The original's records with ``model_prediction``."""
        return AnswerFormat(text=(*MODEL_FIELDS, "answer", "text"), row_id=_record_name, normalise=_normalise)

    @property
    def judgement_form(self) -> AnswerFormat:
        """The original's records with a code, the endpoint's responses in order, or ours."""
        return AnswerFormat(text=("judgement",), row_id=_record_name, normalise=_normalise, read_rows=read_codes)

    def known(self) -> frozenset[str]:
        return self.ids

    def variant(self, *, judged: bool) -> str:
        """Judge or rule, and which questions."""
        return f"{'judge' if judged else 'rule'}, {self.which} questions"

    def judge_fields(self, record: HallusionQuestion) -> dict[str, str]:
        return {"question": record.text, "reference": record.reference}

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per question; a group counts with its first question. With judgements these are read, else the answers by rule."""
        answered = self.answered(answers)
        if judgements is None:
            codes = {record.id: code_by_rule(answers[record.id], is_yes=record.is_yes, mode=mode) for record, _ in answered}
        else:
            codes = {record.id: parse_judgement(judgements[record.id], mode=mode) for record, _ in answered}
        # Without a figure it is right not to know.
        right = {one.id: codes[one.id] == RIGHT or (one.figure is None and codes[one.id] == UNCLEAR) for one, _ in answered}
        whole: dict[tuple[str, str | None], bool] = {}
        for record, _ in answered:
            for name, group in GROUPS.items():
                whole[name, group(record)] = whole.get((name, group(record)), True) and right[record.id]
        items = []
        for record, question in answered:
            values: dict[str, float] = {"aacc": 1, "aacc_right": int(right[record.id]), "unclear": int(codes[record.id] == UNCLEAR)}
            for name, group in GROUPS.items():
                key = (name, group(record))
                if key[1] is not None and key in whole:
                    values |= {name: 1, f"{name}_right": int(whole.pop(key))}
            label, cluster = f"{'yes' if record.is_yes else 'no'}: {record.reference}", record.pair.rpartition("_")[0]
            correct = right[record.id]
            items.append(make_item(question, answers[record.id], label=label, correct=correct, values=values, cluster=cluster))
        return items


def code_by_rule(answer: str, *, is_yes: bool, mode: Mode) -> int:
    """Say whether an answer is right: ``official`` takes any "yes" in it for a yes and all else for a no; ``strict`` knows neither."""
    reply = "yes" in answer.lower() if mode == "official" else parse_strict(answer)
    return UNCLEAR if reply is None else RIGHT if reply is is_yes else WRONG


def parse_judgement(reply: str, *, mode: Mode) -> int:
    """Return the code of a judge's reply; what is neither is unclear.

    ``official`` looks for "incorrect" and then for "correct" anywhere, so that "not correct" is correct; ``strict`` reads the verdict.
    """
    if mode == "strict":
        verdict = find_verdict(reply)
        return UNCLEAR if verdict is None else RIGHT if verdict else WRONG
    text = reply.lower()
    return WRONG if "incorrect" in text else RIGHT if "correct" in text else UNCLEAR


def load_hallusionbench(source: Path, *, which: HallusionQuestions = "all", answers: Path | None = None) -> HallusionBench:
    """Read ``HallusionBench.json``, or the folder that holds it.

    Args:
        source: The file or its folder.
        which: "all" 1,129 questions, as the paper does, or the 951 with an "image", as evaluation harnesses do.
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If the file is missing, or a record lacks a field or stands twice.
    """
    files = find_question_files(source, ["HallusionBench*.json", "HallusionBench*.jsonl"], is_question=_is_question, answers=answers)
    if len(files) != 1:
        raise UserError(f"HallusionBench's questions are missing at {source}: expected one file, HallusionBench.json")
    items = [_read_question(row, number, files[0]) for number, row in enumerate(read_rows(files[0]), start=1)]
    ids = frozenset(item.id for item in items)
    if len(ids) != len(items):
        raise UserError(f"{files[0]} holds {len(items)} records of {len(ids)} questions; expected each once")
    return HallusionBench(files, [item for item in items if which == "all" or item.image is not None], ids, which)


def _is_question(row: Mapping[str, Any]) -> bool:
    return {*NAME_FIELDS, "question", "gt_answer"} <= set(row) and not {"model_prediction", "prediction", "response"} & set(row)


def _read_question(row: Mapping[str, Any], number: int, path: Path) -> HallusionQuestion:
    missing = [key for key in (*NAME_FIELDS, "visual_input", "question", "gt_answer", "gt_answer_details") if key not in row]
    if missing or str(row["gt_answer"]) not in ("0", "1"):
        raise UserError(
            f"{path}, record {number}: expected {', '.join(missing)}"
            if missing
            else f"{path}, record {number}: gt_answer is {row['gt_answer']!r}; expected 0 or 1"
        )
    category, subcategory, in_set, figure, question = (str(row[field]) for field in NAME_FIELDS)
    without_figure = category == "VS" and figure == "0"
    image = row.get("filename") if str(row["visual_input"]) != "0" else None
    return HallusionQuestion(
        id="_".join((category, subcategory, in_set, figure, question)),
        pair="_".join((category, subcategory, in_set, question)),
        figure=None if without_figure else "_".join((category, subcategory, in_set, figure)),
        is_hard=str(row["visual_input"]) == "2",
        image=image.removeprefix("./") if image else None,
        text=row["question"],
        reference=row["gt_answer_details"],
        is_yes=str(row["gt_answer"]) == "1",
    )


def read_codes(path: Path) -> list[Any]:
    """Read judgements; the original saves a code (0, 1, 2) in a field that its users name, such as gpt4v_output_gpt_check."""
    return [_spell_code(row) for row in read_answer_file(path)]


def _spell_code(row: Any) -> Any:
    if not isinstance(row, Mapping) or "judgement" in row or "response" in row:
        return row
    field = next((key for key in row if key.endswith(("_gpt_check", "correctness"))), None)
    words = {"0": "incorrect", "1": "correct", "2": "unclear"}
    return row if field is None else {**row, "judgement": words.get(str(row[field]), str(row[field]))}


def _record_name(row: Mapping[str, Any]) -> str | None:
    whole = all(field in row for field in NAME_FIELDS)
    return "_".join(str(row[field]) for field in NAME_FIELDS) if whole else question_id(row)


def _normalise(identifier: str) -> str:
    return identifier.replace("/", "_")
