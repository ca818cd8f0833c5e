"""Rubrics: the margin by hand, what is inconsistent, and replies of any shape."""

import json
import random
from typing import Any

import pytest

from mmalign.evaluation.judges.rubric import PROMPT, Rubric, fill_rubric_prompt, parse_rubric


def category(*scores: tuple[float, float], winner: Any = 1, **changed: Any) -> dict[str, Any]:
    dims = [{"name": "d", "reason_1": "r", "reason_2": "r", "score_1": a, "score_2": b} for a, b in scores]
    return {"name": "c", "dims": dims, "cat_reason": "r", "cat_winner": winner, **changed}


def reply(*categories: Any, winner: Any = 1, **changed: Any) -> dict[str, Any]:
    return {"categories": list(categories), "reason": "r", "winner": winner, **changed}


GOOD = reply(category((8, 2), (6, 4)), category((5, 5), winner="tie"), category((7, 3)))


def test_margin_by_hand() -> None:
    """Dimensions .6 and .2; 0; .4: categories .4, 0 and .4."""
    got = parse_rubric(json.dumps(GOOD))
    assert (got.winner, got.problems) == (1, ())
    assert got.margin == pytest.approx(0.266666666667, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD, indent=2),
        f"```json\n{json.dumps(GOOD)}\n```",
        f"Here is my rubric.\n```\n{json.dumps(GOOD)}\n```\nDone.",
        f'<think>{{"categories": []}} or so?</think>{json.dumps(GOOD)}',
        f"{json.dumps(reply(category((0, 10), winner=2), winner=2))}\nOn a second look:\n{json.dumps(GOOD)}",
        repr(GOOD),
    ],
    ids=["indented", "fenced", "with words", "reasoning", "the last", "python"],
)
def test_dresses(text: str) -> None:
    assert parse_rubric(text) == parse_rubric(json.dumps(GOOD))


@pytest.mark.parametrize(
    ("value", "winner", "problem"),
    [
        ("The first is better.", None, "no JSON object"),
        ([1, 2], None, "no JSON object"),
        (reply(winner=2), -1, "categories is missing, or no list of any"),
        (reply("c"), 1, "category 1 is no object"),
        (reply(category((8, 2), dims=[])), 1, "category 1: dims is missing"),
        (reply(category((8, 2), dims=["d"])), 1, "category 1, dimension 1 is no object"),
        (reply(category((8, 2), name=None)), 1, "category 1 has no name"),
        (reply(category((8, 2), cat_winner="first")), 1, "category 1: cat_winner is not 1, 2 or tie"),
        (reply(category((8, 2), (7, 4))), 1, "category 1, dimension 2: 7 and 4 are not 10 together"),
        (reply(category((11, -1))), 1, "category 1, dimension 1: the scores are not two numbers from 0 to 10"),
        (reply(category((True, 9))), 1, "the scores are not two numbers"),
        (reply(category((float("nan"), 5))), 1, "the scores are not two numbers"),
        (reply(category((8, 2), winner=2)), 1, "category 1: cat_winner has not the most points"),
        (reply(category((8, 2)), winner="Response 2"), -1, "winner has not the most points"),
        (reply(category((8, 2)), winner="tie"), 0, "winner has not the most points"),
        (reply(category((8, 2)), winner=3), None, "winner is not 1, 2 or tie"),
        (reply(category((8, 2)), reason=5), 1, "the reply has no reason"),
    ],
)
def test_what_is_inconsistent(value: Any, winner: int | None, problem: str) -> None:
    """Strict knows no winner then; lenient takes the one that the reply names."""
    got = parse_rubric(value if isinstance(value, str) else json.dumps(value))
    assert any(problem in found for found in got.problems), got.problems
    assert (got.choose("strict"), got.choose("lenient")) == (None, winner)


def test_level_points_let_any_win() -> None:
    got = parse_rubric(json.dumps(reply(category((5, 5), winner=2), winner=" TIE ")))
    assert got == Rubric(0.0, 0, ())
    # .1 + .2 + 9.7 is no exact sum of ten in floating point.
    assert parse_rubric(json.dumps(reply(category((0.1 + 0.2, 9.7), winner=2), winner="2"))).problems == ()


def test_no_reply_breaks_the_parser() -> None:
    """A damaged reply is inconsistent, or a rubric with its margin in range and the winner on the side of the points."""
    rng = random.Random(0)
    whole = json.dumps(GOOD)
    odd = ["{", "}", "[", "]", '"', "\\", ":", ",", "null", "1e999", "NaN", "-1", "```", "\u2028", "<think>", "{}", "9" * 5000]
    for _ in range(1500):
        text = whole
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(text) + 1)
            text = text[:start] + rng.choice(["", rng.choice(odd)]) + text[start + rng.choice([0, 1, rng.randrange(40)]) :]
        got = parse_rubric(text)
        assert got.winner in (1, 0, -1, None)
        assert got.margin is None or -1 <= got.margin <= 1
        if got.problems or got.winner is None:
            assert got.choose("strict") is None
        else:
            assert got.margin is not None
            assert got.margin * got.winner >= 0
            assert got.winner or abs(got.margin) < 1e-9


def test_deep_and_long_replies_end() -> None:
    for text in ("[" * 5000, '{"a":' * 5000, "{" * 3000, '{"categories": ' + "[" * 3000, ""):
        assert parse_rubric(text).problems


def test_the_prompt_takes_texts_as_they_are() -> None:
    text = fill_rubric_prompt("What is {first}?", "{second}", "{question} {}")
    assert text.endswith("Question: What is {first}?\n\nResponse 1: {second}\n\nResponse 2: {question} {}\n")
    assert parse_rubric(PROMPT).problems
    with pytest.raises(ValueError, match="has no field; expected {question}, {first}, {second}"):
        fill_rubric_prompt("?", "a", "b", template="Which is better?")
