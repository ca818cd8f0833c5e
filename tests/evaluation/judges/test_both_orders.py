"""Two orders: what they say together, the bias of the position, win rates; real judges that look, behind an endpoint and local."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.data.rejects import Rejects
from mmalign.evaluation.answers import Question
from mmalign.evaluation.judges.both_orders import Compared, RubricJudge, compare_orders, measure_position_bias, win_rates
from mmalign.evaluation.judges.endpoint import OpenAIJudge
from mmalign.evaluation.judges.image_questions import ImageQuestions
from mmalign.evaluation.judges.looking import LookingJudge
from mmalign.evaluation.judges.rubric import Rubric
from mmalign.evaluation.runner import generate_answers
from tests.evaluation.judges.chat_server import run_chat_server
from tests.tiny_models import build_tiny_llava, random_image, random_text

FIRST, SECOND, TIE = Rubric(0.4, 1, ()), Rubric(-0.2, -1, ()), Rubric(0.0, 0, ())
BROKEN = Rubric(0.4, -1, ("winner has not the most points",))


def said(winner: object, score: float) -> str:
    dims = [{"name": "d", "reason_1": "r", "reason_2": "r", "score_1": score, "score_2": 10 - score}]
    category = {"name": "Truth to the image", "dims": dims, "cat_reason": "r", "cat_winner": winner}
    return json.dumps({"categories": [category], "reason": "r", "winner": winner})


@pytest.mark.parametrize(
    ("forward", "backward", "winner", "margin", "first_wins"),
    [
        (FIRST, SECOND, 1, 0.3, 1.0),
        (SECOND, FIRST, -1, -0.3, 0.0),
        (FIRST, FIRST, 0, 0.0, 0.5),
        (FIRST, TIE, 0, 0.2, 0.5),
        (TIE, TIE, 0, 0.0, 0.5),
        (FIRST, BROKEN, None, None, 0.5),
    ],
)
def test_what_two_orders_say(forward: Rubric, backward: Rubric, winner: int | None, margin: float | None, first_wins: float) -> None:
    got = compare_orders(forward, backward)
    assert (got.winner, got.first_wins) == (winner, first_wins)
    assert got.margin == (None if margin is None else pytest.approx(margin))


def test_a_lenient_reading_takes_the_winner_that_is_named() -> None:
    """Shown second, the first response wins by name."""
    assert compare_orders(FIRST, BROKEN, reading="lenient").winner == 1


def test_position_bias_is_counted() -> None:
    """Three pairs: agreed, both for what stands first, and one that can't be used."""
    pairs = [compare_orders(FIRST, SECOND), compare_orders(FIRST, FIRST), compare_orders(FIRST, BROKEN)]
    got = measure_position_bias(pairs)
    assert (got.pairs, got.inconsistent, got.unknown, got.disagreements) == (3, 1, 1, 1)
    assert (got.first, got.second, got.ties, got.first_share) == (4, 1, 0, 0.8)
    assert measure_position_bias([Compared(TIE, TIE, 0, 0.0)]).first_share is None


def test_win_rates_by_hand() -> None:
    """Scores 3, 5, 5, 1: the first beats one of three others, the next two beat two and tie with each other."""
    scores = (3, 5, 5, 1)
    wins = [[(a > b) + 0.5 * (a == b) for b in scores] for a in scores]
    assert win_rates(wins) == pytest.approx([1 / 3, 5 / 6, 5 / 6, 0])
    assert win_rates([[0.5]]) == [0.0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(2):
        random_image(i).save(tmp_path / f"{i}.png")
    return tmp_path


class Strict:
    """Prefers the response that names more letters "a", whichever way it is shown; asked keys are kept."""

    name = "letters"
    decoding: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, prompts: Sequence[str]) -> list[str]:
        self.asked += prompts
        return [self._answer(json.loads(key)["text"]) for key in prompts]

    def _answer(self, text: str) -> str:
        first, second = (text.rpartition(f"Response {i}: ")[2].split("\n")[0].count("a") for i in (1, 2))
        return said(1, 8) if first > second else said(2, 2) if second > first else said("tie", 5)


def test_every_two_responses_are_compared_in_both_orders(images: Path) -> None:
    judge = Strict()
    rater = RubricJudge(judge, ImageQuestions(images))
    rates, compared = rater.rate([(Question("q", "0.png", "What?"), ["a", "aaa", "b", "a"]), (Question("r", "1.png", "Who?"), ["b"])])
    # Equal responses tie: 1 of 3 is beaten and 1 tied, all are beaten, none is.
    assert rates == [pytest.approx([0.5, 1.0, 0.0, 0.5]), [0.0]]
    assert (len(compared), len(judge.asked), len(set(judge.asked))) == (3, 6, 6)
    assert [one.margin for one in compared] == pytest.approx([-0.6, 0.6, 0.6])


def test_an_endpoint_sees_both_orders_and_the_image(images: Path) -> None:
    """A judge that always prefers what stands first: every pair ties, and the bias says so."""
    pytest.importorskip("openai", reason="the judge extra is not installed")
    questions = ImageQuestions(images)
    with run_chat_server() as server:
        server.answer = lambda prompt: f"```json\n{said(1, 9)}\n```"
        options: dict[str, Any] = {
            "url": server.url,
            "model": "m",
            "api_key_env": None,
            "decoding": {"temperature": 0},
            "cache": images / "cache.jsonl",
        }
        judge = OpenAIJudge(**options, request=questions.request)
        pairs = [(Question("q", "0.png", "What?"), "One.", "Two."), (Question("r", "1.png", "What?"), "One.", "Two.")]
        compared = RubricJudge(judge, questions).compare(pairs)
    assert [one.winner for one in compared] == [0, 0]
    bias = measure_position_bias(compared)
    assert (bias.disagreements, bias.first_share, bias.inconsistent) == (2, 1.0, 0)
    rows = [json.loads(line) for line in (images / "cache.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 4
    for body in server.requests:
        assert body["max_tokens"] == 2048
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]


def test_a_local_judge_answers_as_the_runner_does(images: Path) -> None:
    model, processor = build_tiny_llava()
    for part in (model, processor):
        part.save_pretrained(images / "model")
    asked = [Question(f"{i}", f"{i % 2}.png", random_text(i, 3 + i), 6) for i in range(5)]
    rejects = Rejects(images / "rejects.jsonl", max_share=0.0)
    expected = generate_answers(model.eval(), processor, asked, image_root=images, out=images / "answers.jsonl", rejects=rejects)
    questions = ImageQuestions(images)
    keys = [questions.add(question) for question in asked]
    judge = LookingJudge(images / "model", questions=questions, cache=images / "cache.jsonl", batch_size=2, dtype="float32")
    assert judge.ask([*keys, keys[0]]) == [answer.response for answer in [*expected, expected[0]]]
    assert len((images / "cache.jsonl").read_text().splitlines()) == 5
    # Another question in the same words about another picture is another one; the cache answers without the weights' being loaded.
    assert questions.add(asked[0]._replace(image="1.png")) != keys[0]
    again = LookingJudge(images / "model", questions=questions, cache=images / "cache.jsonl", dtype="float32")
    assert again.ask(keys[:2]) == [answer.response for answer in expected[:2]]
    assert again._loaded is None
