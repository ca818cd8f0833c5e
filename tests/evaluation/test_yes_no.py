"""The strict reading and binary metrics."""

from collections.abc import Sequence

import pytest

from mmalign.evaluation.answers import Question
from mmalign.evaluation.benchmark import compute_metrics
from mmalign.evaluation.pope import Pope
from mmalign.evaluation.yes_no import binary_item, parse_lmms_eval, parse_strict, parse_vlmevalkit


def binary_metrics(labels: Sequence[bool], replies: Sequence[bool | None]) -> dict[str, float]:
    """POPE's metrics of one split."""
    items = [
        binary_item(Question(str(i), None, ""), "", is_yes=y, reply=r, group="random")
        for i, (y, r) in enumerate(zip(labels, replies, strict=True))
    ]
    return {key.removeprefix("pope/random/"): value for key, value in compute_metrics(Pope, items).items() if "random" in key}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("NO", False),
        ("**No**", False),
        ("yes, no doubt", True),
        ("", None),
        ("None", None),
        ("1. No, it", False),
        ("Nobody says yes", True),
        ("\nYes.", True),
        # Markdown's underscores, and a request that is repeated.
        ("_No_", False),
        ("__Yes__, it is", True),
        ("no_one", False),
        ("(yes or no) No.", False),
        ("The question asks yes/no: no", False),
        ("yes or no", None),
        # A no that denies nothing.
        ("No doubt, yes.", True),
        ("There is no question that it has one: Yes", True),
        ("No doubt. No.", False),
        # Reasons without marks of their own before the answer.
        ("Reasoning: yes, there may be a dog. Answer: No", False),
        ("I see no dog at first. The answer is **yes**.", True),
        ("Answer: yes? Final answer:\n_No_", False),
        ("I can't answer. Yes, no dog", True),
        # Another question, of a model that does not stop; and the question repeated before the answer.
        ("Yes.\n\nQuestion: Is there a cat?\nAnswer: No", True),
        ("Yes\nUSER: Is there a cat?\nASSISTANT: The answer is no.", True),
        ("There is no text.\nQuestion: Is there a cat?\nAnswer: Yes", True),
    ],
)
def test_strict(answer: str, expected: bool | None) -> None:
    assert parse_strict(answer) is expected


@pytest.mark.parametrize(
    ("answer", "vlmevalkit", "lmms_eval"),
    [
        ("Yes", True, True),
        (" no\n", False, False),
        ("Yes.", True, None),
        ("Yes, it is", True, None),
        # Nowhere beside a space: the comma becomes one. Beside one: it goes, and two words run together.
        ("Yes,it is", True, None),
        ("Well,yes, it is", None, None),
        ("no!", False, None),
        ("Yes, no doubt", None, None),
        ("yes.no", None, None),
        ("**Yes**", None, None),
        ("Nothing", None, None),
        # A number with a comma takes all punctuation away.
        ("1,000? yes/sure", None, None),
        ("yes/sure", True, None),
        ("", None, None),
    ],
)
def test_how_harnesses_read(answer: str, vlmevalkit: bool | None, lmms_eval: bool | None) -> None:
    assert (parse_vlmevalkit(answer), parse_lmms_eval(answer)) == (vlmevalkit, lmms_eval)


def test_metrics_by_hand() -> None:
    # 3 true positives, 1 false positive, 1 miss, 1 right no, 1 unknown with label yes.
    labels = [True, True, True, False, True, False, True]
    replies = [True, True, True, True, False, False, None]
    got = binary_metrics(labels, replies)
    assert got == pytest.approx({"accuracy": 4 / 7, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 4 / 7, "unknown": 1.0})


def test_published_counts_of_llava() -> None:
    """LLaVA-1.5-7B on POPE's older random file of 2,910 rows: TP 1183, FP 31, TN 1379, FN 317."""
    labels = [True] * 1183 + [False] * 31 + [False] * 1379 + [True] * 317
    replies = [True] * 1183 + [True] * 31 + [False] * 1379 + [False] * 317
    got = binary_metrics(labels, replies)
    assert [round(got[name], 4) for name in ("accuracy", "precision", "recall", "f1")] == [0.8804, 0.9745, 0.7887, 0.8718]


def test_constant_answers_are_defined() -> None:
    labels = [True, False, True, False]
    assert binary_metrics(labels, [False] * 4)["f1"] == 0
    assert binary_metrics(labels, [True] * 4) == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_ratio": 1.0, "unknown": 0.0}
    )
