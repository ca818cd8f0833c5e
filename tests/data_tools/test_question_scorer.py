"""Pairs by questions that the model answers itself: the rules by hand, runs over HTTP and with a local model, the guard, resume."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.asking import LocalAsker
from data_tools.question_checks import Check, Minimax, choose_minimax, one_way_share, pass_matrix, score_response
from data_tools.question_sources import Writer, object_question, read_questions
from data_tools.sample_pairs import main
from data_tools.sampling import ResponseSampler
from data_tools.scoring import Sampled
from mmalign.data.datasets import load_rows
from mmalign.engine.choosing import Sampling
from mmalign.evaluation.answers import Question
from tests.data_tools.sets import save_images
from tests.evaluation.judges.chat_server import ChatServer, run_chat_server, text_of
from tests.tiny_models import build_tiny_llava, random_image

RESPONSES = ("A dog.", "A cat and a dog.", "A cat.", "Nothing at all.")


def test_minimax_by_hand() -> None:
    # Passes 3, 3, 1; the questions are passed by 3, 1, 1, 2.
    assert choose_minimax([[1, 1, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0]]) == Minimax(chosen=0, question=1, rejected=2)
    assert choose_minimax([[0, 1], [1, 1], [0, 0]]) == Minimax(chosen=1, question=0, rejected=2)
    # All pass what the chosen one passes; nothing is passed; there are no questions; no responses.
    assert [choose_minimax(m) for m in ([[1, 1], [1, 1]], [[0], [0]], [[], []], [])] == [None] * 4


CHECKS = [Check("a?", [True, False, None], 0.9), Check("b?", [True, True, False], 0.2), Check("c?", [True, True, True], None)]


def test_passes_and_scores_by_hand() -> None:
    assert pass_matrix(CHECKS) == [[True, False, False], [False, False, False], [False, True, False]]
    assert [score_response(CHECKS, i, named_only=True) for i in range(3)] == pytest.approx([(0.8 - 0.6) / 2, -0.6, None])
    assert [score_response(CHECKS, i, named_only=False) for i in range(3)] == pytest.approx([0.1, (-0.8 - 0.6) / 2, 0.6])
    assert one_way_share([0.9, 0.6, 0.2, 0.7]) == 0.75
    assert one_way_share([0.1, 0.2, 0.3, 0.9]) == 0.75
    assert one_way_share([]) == 0


def test_questions_are_read_and_made() -> None:
    written = "1. Is it red?\n- Is it big?\nHere they are:\n  2) Is it red?\n* A dog."
    assert read_questions(written) == ["Is it red?", "Is it big?"]
    assert object_question("apple") == "Is there an apple in the image?"
    assert object_question("dog") == "Is there a dog in the image?"


def answer(request: dict[str, Any]) -> str:
    """A policy that describes by the seed, sees a dog and no cat, and can read."""
    text = text_of(request["messages"][0]["content"])
    if text.startswith("A description of this image:"):
        return "1. Is there a dog?\n2. Is there a cat?\n3. Is it day?"
    if text.startswith("Description of an image: "):
        description, question = text.split("\n\nQuestion: ")
        assert len(request["messages"][0]["content"]) == 1, "by the text alone"
        return next(("Yes" if word in description else "No" for word in ("dog", "cat") if f"a {word}" in question), "Hm")
    if text.endswith("? Answer yes or no."):
        return "Yes, a dog." if "a dog" in text else "No."
    return RESPONSES[request["seed"] % 4]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        random_image(i).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "words.txt").write_text("dog, puppy\ncat\n")
    source = [str(tmp_path / "photos"), "--prompts", "Describe.", "--scorer", "questions", "--model", "m", "--out", str(tmp_path / "out")]
    return [*source, "--synonyms", str(tmp_path / "words.txt")]


def run(server: ChatServer, words: list[str], *more: str, status: int = 0) -> list[dict[str, Any]]:
    assert main([*words, "--endpoint", server.url, *more]) == status
    out = Path(words[words.index("--out") + 1])
    return [json.loads(line) for line in (out / "chunks" / "000000000.jsonl").read_text().splitlines()]


def texts_of(out: Path) -> set[tuple[str, str]]:
    return {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in load_rows(out / "pairs")}


def test_objects_that_the_model_does_not_see_cost_a_response(words: list[str], tmp_path: Path) -> None:
    with run_chat_server() as server:
        server.answer_request = answer
        lines = run(server, words)
        asked = len(server.requests)
        # Two images: four samples and two questions each.
        assert asked == 2 * (4 + 2)
        for line in lines:
            expected = {"A dog.": 1.0, "A cat and a dog.": 0.0, "A cat.": -1.0, "Nothing at all.": None}
            assert line["scores"] == [expected[text] for text in line["responses"]]
        assert texts_of(tmp_path / "out") == {("A dog.", "A cat.")}
        # Another choice of pairs asks nothing more.
        run(server, words, "--select", "minimax", "--append-test")
        assert len(server.requests) == asked
    # Passes: 2; 1 (dog); 0; 1 (no cat). Cat and dog are passed by two responses each, and cat comes first.
    cat = " Is there a cat in the image? No."
    assert texts_of(tmp_path / "out") == {("A dog." + cat, "A cat." + cat)}
    assert {(row["score_chosen"], row["score_rejected"]) for row in load_rows(tmp_path / "out" / "pairs")} == {(2.0, 0.0)}


def test_the_question_is_asked_as_one_likes(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def look(request: dict[str, Any]) -> str:
        text = text_of(request["messages"][0]["content"])
        return ("Yes." if "a dog" in text else "No.") if text.startswith("Look! Is there") else answer(request)

    with run_chat_server() as server:
        server.answer_request = look
        lines = run(server, words, "--ask", "Look! {question}")
        found = {check["question"]: check["yes"] for check in lines[0]["checks"]}
        assert found == {"Is there a dog in the image?": 1.0, "Is there a cat in the image?": 0.0}
        assert run(server, words, "--ask", "Look!", status=2) == lines
    assert "ask is 'Look!'; expected a text with {question} in it" in capsys.readouterr().err


def test_questions_that_the_model_writes(words: list[str], tmp_path: Path) -> None:
    with run_chat_server() as server:
        server.answer_request = answer
        lines = run(server, words, "--questions", "written", "--num-questions", "2")
    for line in lines:
        assert [check["question"] for check in line["checks"]] == ["Is there a dog?", "Is there a cat?"]
        assert [check["yes"] for check in line["checks"]] == [1.0, 0.0]
        # By dog and by the absence of cat.
        expected = {"A dog.": 1.0, "A cat and a dog.": 0.0, "A cat.": -1.0, "Nothing at all.": 0.0}
        assert line["scores"] == [expected[text] for text in line["responses"]]
    assert texts_of(tmp_path / "out") == {("A dog.", "A cat.")}


def test_what_a_local_model_can_not_read_is_not_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Words that its processor takes for an image, in a response and in a question: the others are asked."""
    model, processor = build_tiny_llava()
    save_images(tmp_path, "a.jpg")
    items = [
        Sampled(Question("q", "a.jpg", "What?"), None, None, ["A dog.", "An <image>."]),
        Sampled(Question("r", "a.jpg", "?"), None, None, []),
    ]
    sampler = ResponseSampler(model, processor, sampling=Sampling(), max_new_tokens=4)
    assert Writer(sampler, number=2, image_root=tmp_path)(items) == [[], []]
    assert "no questions about a response to q: the text of the user holds <image>" in caplog.text
    asked = [Question(name, "a.jpg", text) for name, text in {"good": "Is there a dog?", "bad": "Is there an <image>?"}.items()]
    found = LocalAsker(model, processor, image_root=tmp_path, batch_size=2)(asked, file=tmp_path / "asked" / "by_image.jsonl")
    assert list(found) == ["good"]
    assert "1 questions can't be asked, such as row bad: the text of the user holds <image>" in caplog.text


def test_questions_of_a_file(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "checks.jsonl"
    file.write_text('{"question": "Is there a dog?"}\n{"question": "Is there a cat?", "image": "1.png"}')
    with run_chat_server() as server:
        server.answer_request = answer
        lines = run(server, words, "--questions", str(file))
        assert [len(line["checks"]) for line in lines] == [1, 2]
        file.write_text('{"text": "Is there a dog?"}')
        run(server, words, "--questions", str(file), status=2)
    assert "row 1 has keys text; expected question" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["Yes.", "No."])
def test_answers_that_are_all_alike_give_no_pairs(words: list[str], tmp_path: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with run_chat_server() as server:
        server.answer_request = lambda request: answer(request) if "seed" in request else said
        run(server, words, status=2)
        told = capsys.readouterr().err
        assert "100.0% of 4 answers to the questions are alike, expected at most 95%" in told
        assert not (tmp_path / "out" / "pairs").exists()
        # By the score all named objects are alike; only --select minimax would make pairs, of noise.
        run(server, words, "--most-one-way", "1", status=2)
        assert "no pair from 2 rows" in capsys.readouterr().err
        run(server, words, "--most-one-way", "1", "--select", "minimax")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--append-test"], "--append-test appends the question of --select minimax"),
        (["--scorer", "answers", "--select", "minimax"], "--synonyms is of --scorer questions"),
    ],
)
def test_what_does_not_fit_together(words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if more[0] == "--scorer":
        at = words.index("--scorer")
        words = words[:at] + words[at + 2 :]
    assert main([*words, "--endpoint", "http://127.0.0.1:9/v1", *more]) == 2
    assert message in capsys.readouterr().err


def test_a_local_model_resumes_to_the_same_bytes(
    words: list[str], tmp_path: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model can't say yes or no; what its answers are read as is replaced, the asking is real."""
    words[words.index("m")] = str(tiny_llava_dir)
    (tmp_path / "words.txt").write_text("circle\nsquare\ntriangle\nstar\nheart\ncross\nmoon\nring\ndog\ncat\n")
    words += ["--questions", "written", "--max-new-tokens", "8", "--temperature", "3", "--batch-size", "1"]
    assert main(words) == 2
    assert "no question has an answer" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("data_tools.question_sources.read_questions", lambda text: [text[:9] + "?", text[-9:] + "?"])

    def run_anew() -> None:
        verdicts = itertools.cycle([True, False, None, True, False, False, True])
        monkeypatch.setattr("data_tools.asking.parse_strict", lambda said: next(verdicts))
        assert main(words) == 0

    run_anew()
    whole = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "out" / "pairs")
    (tmp_path / "out" / "chunks" / "000000000.jsonl").unlink()
    run_anew()
    assert {name: (tmp_path / "out" / name).read_bytes() for name in whole} == whole
