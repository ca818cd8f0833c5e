"""``mmalign evaluate --endpoint``: images as they are seen here, resume, refusals; and a real server's answers against our own."""

import base64
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmalign.cli import main
from tests.evaluation.judges.chat_server import ChatServer, completion, fault, run_chat_server
from tests.serving import serve_model
from tests.tiny_models import build_tiny_llava, random_image

QUESTIONS = ("Is there a dog?", "Is there a cat?", "Is there a table?")


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    (tmp_path / "bench" / "images").mkdir(parents=True)
    random_image(1).save(tmp_path / "bench" / "images" / "a.png")
    rows = [{"question_id": i, "image": "a.png", "text": text, "label": "yes"} for i, text in enumerate(QUESTIONS, start=1)]
    (tmp_path / "bench" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "bench"


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with run_chat_server() as server:
        yield server


def ask(chat: ChatServer, pope: Path, out: Path, *more: str) -> int:
    words = ["evaluate", "pope", "--data", str(pope), "--endpoint", chat.url, "--endpoint-model", "m", "--out", str(out)]
    return main([*words, *more])


def read(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "pope_answers.jsonl").read_text().splitlines()]


def test_the_question_and_its_picture_are_sent(chat: ChatServer, pope: Path, tmp_path: Path) -> None:
    chat.answer = lambda prompt: "Yes." if "dog" in prompt else "No."
    assert ask(chat, pope, tmp_path / "out", "--prompt-suffix", " Answer yes or no.", "--endpoint-decoding", "{seed: 3}") == 0
    assert [row["response"] for row in read(tmp_path / "out")] == ["Yes.", "No.", "No."]
    request = chat.requests[0]
    image, text = request["messages"][0]["content"]
    assert text["text"].endswith("? Answer yes or no.")
    assert (request["temperature"], request["seed"], request["max_tokens"]) == (0, 3, 128)
    sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert sent.tobytes() == random_image(1).tobytes()
    result = json.loads((tmp_path / "out" / "pope.json").read_text())
    assert result["metrics"]["pope/accuracy"] == pytest.approx(1 / 3)
    assert (result["model"], result["decoding"]["endpoint"]) == ("m", {"temperature": 0, "seed": 3})


def test_a_stopped_run_asks_for_the_rest_alone(chat: ChatServer, pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat.scripts[QUESTIONS[1]] = [fault(400, "this question is not liked")] * 3
    chat.answer = lambda prompt: "Yes."
    assert ask(chat, pope, tmp_path / "out", "--endpoint-concurrency", "1") == 2
    assert "left 1 of 3 prompts unanswered; 2 are answered and cached" in capsys.readouterr().err
    chat.scripts.clear()
    assert ask(chat, pope, tmp_path / "out") == 0
    assert chat.asked() == {QUESTIONS[0]: 1, QUESTIONS[1]: 2, QUESTIONS[2]: 1}
    # Another picture under the same name is another question.
    random_image(2).save(pope / "images" / "a.png")
    assert ask(chat, pope, tmp_path / "out") == 0
    assert chat.asked()[QUESTIONS[0]] == 2


def test_an_answer_at_its_longest_length_is_marked(chat: ChatServer, pope: Path, tmp_path: Path) -> None:
    chat.scripts[QUESTIONS[0]] = [completion("Yes and then", "length")]
    assert ask(chat, pope, tmp_path / "out", "--max-new-tokens", "3") == 0
    assert [row["ended"] for row in read(tmp_path / "out")] == [False, True, True]
    assert chat.requests[0]["max_tokens"] == 3


def test_broken_pictures_are_left_out_with_the_reason(chat: ChatServer, pope: Path, tmp_path: Path) -> None:
    rows = (pope / "coco_pope_random.json").read_text()
    broken = {"question_id": 4, "image": "b.png", "text": "Is there a cup?", "label": "no"}
    (pope / "coco_pope_random.json").write_text(rows + "\n" + json.dumps(broken))
    (pope / "images" / "b.png").write_bytes(b"no picture")
    assert ask(chat, pope, tmp_path / "out", "--max-reject-share", "0.5") == 0
    assert len(read(tmp_path / "out")) == 3
    assert "random/4" in (tmp_path / "out" / "pope_rejects.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], "needs both --endpoint and --endpoint-model"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m", "--model", "x"], "give either --model or --endpoint"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m", "--beams", "2"], "leave --beams out"),
    ],
)
def test_what_contradicts_itself_is_refused(
    pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main(["evaluate", "pope", "--data", str(pope), "--out", str(tmp_path / "out"), *words]))
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_answers_of_a_real_server_equal_our_own(pope: Path, tmp_path: Path) -> None:
    """``transformers serve`` with the same checkpoint, greedily."""
    if importlib.util.find_spec("fastapi") is None:
        pytest.skip("pip install 'transformers[serving]'")
    model, processor = build_tiny_llava(seed=3)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    common = ["evaluate", "pope", "--data", str(pope), "--max-new-tokens", "8"]
    with serve_model(tmp_path / "serve.log") as url:
        endpoint = ["--endpoint", url, "--endpoint-model", str(tmp_path / "model"), "--endpoint-concurrency", "1"]
        assert main([*common, *endpoint, "--out", str(tmp_path / "served")]) == 0
    assert main([*common, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "own")]) == 0
    assert read(tmp_path / "served") == read(tmp_path / "own")
    assert len({str(row["response"]) for row in read(tmp_path / "own")}) > 1
