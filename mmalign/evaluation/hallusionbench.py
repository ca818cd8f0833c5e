"""HallusionBench: yes-or-no questions in groups that only a model that looks answers all (arXiv:2310.14566)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, Question, question_id, read_answer_file
from mmalign.evaluation.benchmark import Benchmark, find_question_files
from mmalign.evaluation.judging import fill_prompt
from mmalign.evaluation.rows import read_records
from mmalign.evaluation.verdicts import find_verdict
from mmalign.evaluation.yes_no import Mode, parse_strict, score_baselines

Form = Literal["all", "image"]
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
    question: str
    reference: str
    is_yes: bool


@dataclass(frozen=True)
class HallusionBench(Benchmark):
    """The questions, all 1,129 or the 951 with an image.

    Attributes:
        items: Those that are scored.
        ids: Of all 1,129: answers to them serve for both forms.
    """

    name: ClassVar[str] = "hallusionbench"
    judge_wording: ClassVar[str] = PROMPT
    items: Sequence[HallusionQuestion]
    ids: frozenset[str]
    which: Form

    @property
    def form(self) -> AnswerFormat:
        """The original's records with ``model_prediction``."""
        return AnswerFormat(text=("model_prediction", "prediction", "answer", "text"), row_id=_record_name, normalise=_normalise)

    @property
    def judgement_form(self) -> AnswerFormat:
        """The original's records with a code, the endpoint's responses in order, or ours."""
        return AnswerFormat(text=("judgement",), row_id=_record_name, normalise=_normalise, read_rows=read_codes)

    def questions(self) -> list[Question]:
        """Each as it stands."""
        return [Question(item.id, item.image, item.question) for item in self.items]

    def required(self) -> list[str]:
        """All of the form."""
        return [item.id for item in self.items]

    def known(self) -> frozenset[str]:
        """Those of both forms."""
        return self.ids

    def texts(self) -> dict[str, str]:
        """The original's records repeat them."""
        return {item.id: item.question for item in self.items}

    def variant(self, *, judged: bool) -> str:
        """Judge or rule, and which questions."""
        return f"{'judge' if judged else 'rule'}, {self.which} questions"

    def judge_prompts(self, answers: Mapping[str, str], *, template: str | None = None) -> dict[str, str]:
        """Question, reference and prediction."""
        return {item.id: _fill(template or PROMPT, item, answers[item.id]) for item in self.items if item.id in answers}

    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Compute percentages with four decimals: ``aacc`` of questions, ``qacc`` of pairs, ``facc`` of figures.

        With judgements these are read, without, the answers are read by rule.
        """
        items = [item for item in self.items if item.id in answers]
        codes = find_codes(items, answers, mode=mode, judgements=judgements)
        by_rule = partial(_score_by_rule, items, mode=mode)
        return score_codes(items, codes) | score_baselines(by_rule, answers, leave_out=("unclear", "easy", "hard"))


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


def find_codes(
    items: Sequence[HallusionQuestion], answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None
) -> dict[str, int]:
    """Return the code of each answer: by the judge's reply where there is a judge, else by rule."""
    if judgements is None:
        return {item.id: code_by_rule(answers[item.id], is_yes=item.is_yes, mode=mode) for item in items}
    return {item.id: parse_judgement(judgements[item.id], mode=mode) for item in items}


def find_right(items: Sequence[HallusionQuestion], codes: Mapping[str, int]) -> dict[str, bool]:
    """Say which answers are right. Without a figure it is right not to know."""
    return {item.id: codes[item.id] == RIGHT or (item.figure is None and codes[item.id] == UNCLEAR) for item in items}


def score_codes(items: Sequence[HallusionQuestion], codes: Mapping[str, int]) -> dict[str, float]:
    """Score codes by question, pair and figure."""
    right = find_right(items, codes)
    figures = [item for item in items if item.figure is not None]
    shares = {
        "aacc": _share_of_groups(items, right, lambda item: item.id),
        "qacc": _share_of_groups(items, right, lambda item: item.pair),
        "facc": _share_of_groups(figures, right, lambda item: str(item.figure)),
        "easy": _share_of_groups([item for item in items if not item.is_hard], right, lambda item: item.pair),
        "hard": _share_of_groups([item for item in items if item.is_hard], right, lambda item: item.pair),
    }
    metrics = {f"hallusionbench/{name}": round(100 * share, 4) for name, share in shares.items() if share is not None}
    return metrics | {"hallusionbench/unclear": float(sum(codes[item.id] == UNCLEAR for item in items))}


def _score_by_rule(items: Sequence[HallusionQuestion], answers: Mapping[str, str], *, mode: Mode) -> dict[str, float]:
    return score_codes(items, {item.id: code_by_rule(answers[item.id], is_yes=item.is_yes, mode=mode) for item in items})


def _share_of_groups(
    items: Sequence[HallusionQuestion], right: Mapping[str, bool], group: Callable[[HallusionQuestion], str]
) -> float | None:
    """Share of the groups with every answer right; None without a group."""
    groups: dict[str, bool] = {}
    for item in items:
        groups[group(item)] = groups.get(group(item), True) and right[item.id]
    return sum(groups.values()) / len(groups) if groups else None


def load_hallusionbench(source: Path, *, which: Form = "all", answers: Path | None = None) -> HallusionBench:
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
    items = [_read_question(row, number, files[0]) for number, row in enumerate(read_records(files[0]), start=1)]
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
        question=row["question"],
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


def _fill(template: str, item: HallusionQuestion, response: str) -> str:
    return fill_prompt(template, {"question": item.question, "reference": item.reference, "response": response})
