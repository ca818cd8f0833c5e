"""Responses from an endpoint: one request each with its own seed, resume, refusals; and a real server's samples."""

import base64
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.endpoint_sampling import request_seed
from data_tools.sample_pairs import main
from mmalign.data.datasets import load_rows
from tests.evaluation.judges.chat_server import ChatServer, completion, cut_connection, fault, run_chat_server
from tests.serving import serve_model
from tests.tiny_models import build_tiny_llava, random_image

COLOURS = ("red", "blue", "green", "grey")


def write_questions(folder: Path, count: int = 3) -> list[str]:
    """Questions with one right colour; the words that ask them of a program."""
    for i in range(count):
        random_image(i).save(folder / f"{i}.png")
    rows = [{"id": f"q{i}", "image": f"{i}.png", "prompt": f"Which colour, {i}?", "answer": "red"} for i in range(count)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [str(folder / "questions.jsonl"), "--image-root", str(folder), "--scorer", "answers"]


def reply_by_seed(server: ChatServer) -> None:
    """Another colour for each seed."""
    server.answer_request = lambda request: COLOURS[request["seed"] % 4]


def read_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((out / "chunks").glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_each_response_is_a_request_with_its_own_seed(tmp_path: Path) -> None:
    words = write_questions(tmp_path)
    with run_chat_server() as server:
        reply_by_seed(server)
        words += ["--endpoint", server.url, "--model", "served", "--temperature", "0.7", "--top-p", "0.9", "--max-new-tokens", "5"]
        assert main([*words, "--out", str(tmp_path / "out"), "--endpoint-decoding", "{top_k: 20}"]) == 0
        requests = server.requests
    assert len(requests) == 12
    # Four seeds in a row for each question, and so all four colours.
    assert len({request["seed"] for request in requests}) == 12
    settings = {(r["model"], r["temperature"], r["top_p"], r["top_k"], r["max_tokens"]) for r in requests}
    assert settings == {("served", 0.7, 0.9, 20, 5)}
    for line in read_lines(tmp_path / "out"):
        assert set(line["responses"]) == set(COLOURS)
        assert line["scores"] == [float(text == "red") for text in line["responses"]]
    for request in requests:
        image, text = request["messages"][0]["content"]
        sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))))
        number = int(text["text"][-2])
        assert sent.tobytes() == random_image(number).tobytes()
    pairs = load_rows(tmp_path / "out" / "pairs")
    assert [row["chosen"][0]["content"] for row in pairs] == ["red"] * 3


def test_seeds_are_of_question_and_number_alone() -> None:
    # Each number its own, and another question's seed elsewhere.
    assert [(request_seed(5, n) - request_seed(5, 0)) % 2**31 for n in range(3)] == [0, 1, 2]
    assert len({request_seed(seed, 0) for seed in range(100)}) == 100
    assert all(0 <= request_seed(seed, 7) < 2**31 for seed in range(100))


def test_an_endpoint_that_dies_is_asked_for_the_rest_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second chunk dies midway; the same command then asks for what is missing, and ends as if nothing had been."""
    words = write_questions(tmp_path)
    more = ["--model", "m", "--batch-size", "1", "--endpoint-concurrency", "1", "--endpoint-retries", "0"]
    with run_chat_server() as server:
        reply_by_seed(server)
        assert main([*words, *more, "--endpoint", server.url, "--out", str(tmp_path / "whole")]) == 0
        server.requests.clear()
        server.scripts["Which colour, 1?"] = [completion("blue"), *[cut_connection] * 3]
        assert main([*words, *more, "--endpoint", server.url, "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert "m left 3 of 4 prompts unanswered; 1 are answered and cached" in told
        assert str(tmp_path / "out" / "sampled.jsonl") in told
        assert not (tmp_path / "out" / "pairs").exists()
        before = len(server.requests)
        assert before == 8
        assert main([*words, *more, "--endpoint", server.url, "--out", str(tmp_path / "out")]) == 0
        assert len(server.requests) == before + 3 + 4
        assert server.asked() == {"Which colour, 0?": 4, "Which colour, 1?": 7, "Which colour, 2?": 4}
    first, second = read_lines(tmp_path / "out"), read_lines(tmp_path / "whole")
    assert [first[0], first[2]] == [second[0], second[2]]
    assert first[1]["responses"][0] == "blue"
    assert first[1]["responses"][1:] == second[1]["responses"][1:]


def test_a_seed_that_a_server_refuses_can_be_left_out(tmp_path: Path) -> None:
    words = write_questions(tmp_path, 1)
    with run_chat_server() as server:
        replies = iter(["red", "blue", "red", "grey"])
        server.answer_request = lambda request: next(replies)
        words += ["--endpoint", server.url, "--model", "m", "--endpoint-concurrency", "1", "--out", str(tmp_path / "out")]
        assert main([*words, "--endpoint-decoding", "{seed: null}"]) == 0
        assert all("seed" not in request for request in server.requests)
    assert read_lines(tmp_path / "out")[0]["responses"] == ["red", "blue", "red", "grey"]


def test_a_server_that_draws_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = write_questions(tmp_path, 2)
    with run_chat_server() as server:
        server.answer = lambda prompt: "red"
        assert main([*words, "--endpoint", server.url, "--model", "m", "--out", str(tmp_path / "out")]) == 2
    assert "4 equal responses to each of 2 questions" in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--endpoint-decoding", "{seed: 1}"], "--endpoint-decoding holds a seed"),
        (["--gold", "taught"], "row 1: taught is None; expected the teacher's answer"),
        (["--search", "beam"], "--search beam is of a local model"),
        (["--temperature", "0"], "expected a temperature above 0"),
    ],
)
def test_what_an_endpoint_refuses(tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*write_questions(tmp_path, 1), "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--out", str(tmp_path / "out")]
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_the_server_does_not_have_stops_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_questions(tmp_path, 2)
    with run_chat_server() as server:
        server.scripts = {f"Which colour, {i}?": [fault(404, "no such model")] * 4 for i in range(2)}
        more = ["--endpoint", server.url, "--model", "other", "--endpoint-concurrency", "1", "--out", str(tmp_path / "out")]
        assert main([*words, *more]) == 2
        assert len(server.requests) == 1
    assert "HTTP 404: Error code: 404" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_of_a_real_server(tmp_path: Path) -> None:
    """``transformers serve`` draws by the seed: another response for each, the same ones in another run."""
    if importlib.util.find_spec("fastapi") is None:
        pytest.skip("pip install 'transformers[serving]'")
    words = write_questions(tmp_path, 2)
    model, processor = build_tiny_llava(seed=3)
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with serve_model(tmp_path / "serve.log") as url:
        words += ["--endpoint", url, "--model", str(tmp_path / "model"), "--endpoint-concurrency", "1", "--max-new-tokens", "6"]
        # Random words are never red, so that there is no pair.
        for out in ("one", "two"):
            assert main([*words, "--samples", "3", "--out", str(tmp_path / out)]) == 2
    one, two = read_lines(tmp_path / "one"), read_lines(tmp_path / "two")
    assert one == two
    assert len({text for line in one for text in line["responses"]}) == 6
