"""The endpoint judge against a real server that misbehaves: order, retries, what is cached, what is never written."""

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmalign.errors import UserError
from mmalign.evaluation.judges.endpoint import OpenAIJudge, choose_key_variable, merge_decoding
from mmalign.evaluation.judging import strip_replies
from tests.evaluation.judges.chat_server import ChatServer, completion, cut_connection, fault, raw, run_chat_server

pytest.importorskip("openai", reason="the judge extra is not installed")
KEY = "sk-very-secret-0123456789"
PROMPTS = [f"prompt {i}" for i in range(6)]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with run_chat_server() as chat:
        yield chat


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def build_judge(server: ChatServer, folder: Path, **options: Any) -> OpenAIJudge:
    defaults: dict[str, Any] = {"url": server.url, "model": "judge-1", "cache": folder / "cache.jsonl", "timeout": 5.0}
    return OpenAIJudge(**defaults | options)


def test_answers_in_order_and_asks_once(server: ChatServer, tmp_path: Path) -> None:
    server.delay = 0.02
    judge = build_judge(server, tmp_path, concurrency=3)
    assert judge.name == "judge-1"
    assert judge.ask([*PROMPTS, PROMPTS[0]]) == [f"echo: {prompt}" for prompt in [*PROMPTS, PROMPTS[0]]]
    assert server.asked() == dict.fromkeys(PROMPTS, 1)
    assert server.most_at_once == 3
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-1", 0, 1024)
    # The same object, and a new one on the same file.
    for again in (judge, build_judge(server, tmp_path)):
        assert again.ask(PROMPTS[::-1]) == [f"echo: {prompt}" for prompt in PROMPTS[::-1]]
    assert len(server.requests) == len(PROMPTS)


def test_another_model_or_setting_is_another_judge(server: ChatServer, tmp_path: Path) -> None:
    build_judge(server, tmp_path).ask(["p"])
    build_judge(server, tmp_path, model="judge-2").ask(["p"])
    build_judge(server, tmp_path, decoding={"temperature": 0, "max_completion_tokens": 9}).ask(["p"])
    assert [request["model"] for request in server.requests] == ["judge-1", "judge-2", "judge-1"]
    assert "max_tokens" not in server.requests[2]
    assert server.requests[2]["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    "reply",
    [
        fault(429),
        fault(500),
        fault(503),
        fault(408),
        cut_connection,
        raw(b'{"choices": ['),
        raw(b"<html>busy</html>", content_type="text/html"),
        raw(b"[]"),
        raw(b'{"choices": []}'),
        raw(b'{"choices": [{"message": null}]}'),
        raw(b'{"error": {"code": 429, "message": "busy"}}'),
        raw(b'{"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"code": 502}}]}'),
        completion(""),
        completion(" \n"),
        completion(None),
    ],
    ids=["429", "500", "503", "408", "cut", "half", "html", "list", "no_choice", "null", "error", "failed", "empty", "blank", "none"],
)
def test_what_fails_in_passing_is_asked_again(server: ChatServer, tmp_path: Path, reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.evaluation.judges.endpoint.FIRST_WAIT", 0.01)
    server.scripts["p"] = [reply, reply]
    assert build_judge(server, tmp_path).ask(["p", "q"]) == ["echo: p", "echo: q"]
    assert server.asked() == {"p": 3, "q": 1}


def test_retry_after_is_obeyed(server: ChatServer, tmp_path: Path) -> None:
    server.scripts["q"] = [fault(429, Retry_After="0.6"), fault(503, Retry_After=formatdate(time.time() + 2, usegmt=True))]
    build_judge(server, tmp_path).ask(["q"])
    first, second = (b - a for a, b in zip(server.times, server.times[1:], strict=False))
    assert 0.6 <= first < 1.5
    # A date is of whole seconds.
    assert 0.3 < second < 2.5


def test_an_error_with_a_good_status_is_waited_for(server: ChatServer, tmp_path: Path) -> None:
    server.scripts["p"] = [raw(b'{"error": {"code": 429, "message": "busy"}}')] * 2
    build_judge(server, tmp_path).ask(["p"])
    first, second = (b - a for a, b in zip(server.times, server.times[1:], strict=False))
    assert first >= 0.5
    assert second >= 1.0


def test_what_stays_broken_is_named_and_the_rest_is_kept(server: ChatServer, tmp_path: Path) -> None:
    server.scripts[PROMPTS[2]] = [fault(500, "out of memory")] * 3
    judge = build_judge(server, tmp_path, max_retries=2)
    message = r"judge-1 left 1 of 6 prompts unanswered; 5 are answered and cached in .*cache.jsonl, and running again resumes"
    with pytest.raises(ValueError, match=rf"{message}.* HTTP 500: .*out of memory"):
        judge.ask(PROMPTS)
    assert judge.ask(PROMPTS) == [f"echo: {prompt}" for prompt in PROMPTS]
    assert server.asked() == dict.fromkeys(PROMPTS, 1) | {PROMPTS[2]: 4}


def test_a_prompt_that_is_refused_is_not_asked_again(server: ChatServer, tmp_path: Path) -> None:
    server.scripts["long"] = [fault(400, "context length exceeded")]
    with pytest.raises(ValueError, match=r"1 of 2 prompts unanswered.*context length exceeded"):
        build_judge(server, tmp_path, concurrency=1).ask(["long", "short"])
    assert server.asked() == {"long": 1, "short": 1}


def test_an_endpoint_that_refuses_all_is_asked_no_more(server: ChatServer, tmp_path: Path) -> None:
    server.scripts = {prompt: [fault(401, "bad key")] for prompt in PROMPTS}
    with pytest.raises(ValueError, match="6 of 6 prompts unanswered; 0 are answered"):
        build_judge(server, tmp_path, concurrency=1).ask(PROMPTS)
    assert len(server.requests) == 1
    many = [f"many {i}" for i in range(50)]
    server.scripts = {prompt: [fault(500)] * 2 for prompt in many}
    with pytest.raises(ValueError, match="50 of 50"):
        build_judge(server, tmp_path, concurrency=1, max_retries=1).ask(many)
    assert len(server.requests) == 1 + 2 * 8


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = ChatServer(url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        with pytest.raises(ValueError, match=rf"1 of 1 prompts unanswered.*{nobody.url}/chat/completions: Connection error.*refused"):
            build_judge(nobody, tmp_path, max_retries=1).ask(["p"])


def test_slow_replies_time_out(server: ChatServer, tmp_path: Path) -> None:
    server.delay = 1.0
    with pytest.raises(ValueError, match="timed out"):
        build_judge(server, tmp_path, timeout=0.1, max_retries=1).ask(["p"])
    assert len(server.requests) == 2


def test_cut_off_judgements_are_counted(server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.scripts["p"] = [completion("Rating:", finish_reason="length")]
    judge = build_judge(server, tmp_path)
    for _ in range(2):
        caplog.clear()
        assert judge.ask(["p", "q"]) == ["Rating:", "echo: q"]
        assert "1 of 2 replies" in caplog.text
        assert "raise max_tokens" in caplog.text


def test_the_key_is_sent_and_nowhere_written(server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    # The third stands where a reason is shortened to 500 characters.
    server.scripts["q"] = [fault(500, f"trace of {KEY}"), raw(KEY.encode()), fault(500, "x" * 450 + KEY), fault(400, f"refused with {KEY}")]
    judge = build_judge(server, tmp_path)
    judge.ask(["p"])
    with pytest.raises(ValueError, match=r"refused with \[key\]") as raised:
        judge.ask(["p", "q"])
    assert server.keys == {f"Bearer {KEY}"}
    written = caplog.text + str(raised.value) + repr(judge) + "".join(p.read_text() for p in tmp_path.iterdir())
    assert "asked again" in written
    assert KEY[:12] not in written


def test_keys_variable(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="environment variable OPENAI_API_KEY is not set"):
        build_judge(server, tmp_path)
    monkeypatch.setenv("OTHER", "k2")
    build_judge(server, tmp_path, api_key_env="OTHER").ask(["p"])
    build_judge(server, tmp_path, api_key_env=None).ask(["q"])
    assert server.keys == {"Bearer k2", "Bearer none"}


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "{temperature: 0, max_completion_tokens: 1024}",
        ),
        (
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
            "{max_tokens: 1024, temperature: null}",
        ),
        ("Extra inputs are not permitted: temperature", "{max_tokens: 1024, temperature: null}"),
    ],
)
def test_a_setting_that_an_endpoint_refuses_is_named_with_the_option(server: ChatServer, tmp_path: Path, message: str, advice: str) -> None:
    server.scripts = {prompt: [fault(400, message)] for prompt in PROMPTS}
    with pytest.raises(ValueError, match="6 of 6 prompts unanswered") as raised:
        build_judge(server, tmp_path, concurrency=1, option="--judge-decoding").ask(PROMPTS)
    assert f"set --judge-decoding to '{advice}'" in str(raised.value)
    # It would refuse every other prompt alike.
    assert len(server.requests) == 1
    server.scripts.clear()
    judge = build_judge(server, tmp_path, decoding=merge_decoding(yaml.safe_load(advice)))
    assert judge.ask(["p"]) == ["echo: p"]
    assert {name: server.requests[-1].get(name) for name in judge.decoding} == judge.decoding
    assert json.loads((tmp_path / "cache.jsonl").read_text())["judge"]["decoding"] == judge.decoding


def test_a_prompt_too_long_is_no_refused_setting(server: ChatServer, tmp_path: Path) -> None:
    server.scripts["long"] = [fault(400, "'max_tokens' is too large: 1024. This model's maximum context length is 512 tokens.")]
    with pytest.raises(ValueError, match="1 of 2 prompts unanswered"):
        build_judge(server, tmp_path, concurrency=1).ask(["long", "short"])
    assert server.asked() == {"long": 1, "short": 1}


def test_settings_over_the_usual_ones() -> None:
    assert merge_decoding({}) == {"temperature": 0, "max_tokens": 1024}
    assert merge_decoding({"max_completion_tokens": 9, "temperature": None}) == {"max_completion_tokens": 9}
    assert merge_decoding({"seed": 1, "max_tokens": 9}) == {"temperature": 0, "max_tokens": 9, "seed": 1}
    with pytest.raises(ValueError, match="holds stream, n, which can't be set"):
        merge_decoding({"stream": True, "n": 2})


def reasoning(content: Any, reasoning: str, finish_reason: str = "stop", *, name: str = "reasoning_content") -> Any:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, name: reasoning}, "finish_reason": finish_reason}
    return raw(json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}).encode())


def test_reasoning_that_is_sent_apart(server: ChatServer, tmp_path: Path) -> None:
    server.scripts = {
        "both": [reasoning("correct", "Is it incorrect?")],
        "alone": [reasoning(None, "It agrees. correct")],
        "other name": [reasoning("", "It agrees. correct", name="reasoning")],
        "cut": [reasoning(None, "Is it incorrect?", "length")],
        "parts": [completion([{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "correct"}])],
    }
    got = dict(zip(server.scripts, build_judge(server, tmp_path).ask(list(server.scripts)), strict=True))
    # A reply that is reasoning alone and ended by itself did not mark where it ends; one that was cut has come to nothing.
    assert {name: got[name] for name in ("both", "alone", "other name", "parts")} == {
        "both": "correct",
        "alone": "It agrees. correct",
        "other name": "It agrees. correct",
        "parts": "correct",
    }
    assert got["cut"] == "<think>\nIs it incorrect?"
    assert strip_replies(got).endings[:2] == (1, 1)


def test_a_length_spent_without_a_word_is_not_asked_again(server: ChatServer, tmp_path: Path) -> None:
    server.scripts["p"] = [completion("", finish_reason="length")]
    with pytest.raises(ValueError, match="a reply without words that ended at its longest length: raise it in decoding"):
        build_judge(server, tmp_path).ask(["p"])
    assert server.asked() == {"p": 1}


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://vllm:8000/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8/v1", False),
    ],
)
def test_which_key_is_sent(monkeypatch: pytest.MonkeyPatch, url: str, local: bool) -> None:
    assert choose_key_variable("auto", url) == "OPENAI_API_KEY"
    assert (choose_key_variable("none", url), choose_key_variable("MINE", url)) == (None, "MINE")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert choose_key_variable("auto", url) == (None if local else "OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert choose_key_variable("auto", url) == (None if local else "OPENAI_API_KEY")


def test_without_the_client(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"a model behind an endpoint needs the openai client: pip install 'mmalign\[judge\]'"):
        build_judge(server, tmp_path)


def test_a_wrong_address_is_named(server: ChatServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"address is '127.0.0.1:8000/v1'; expected its base, such as http://127"):
        build_judge(ChatServer(url="127.0.0.1:8000/v1"), tmp_path)
    server.scripts["p"] = [fault(404)]
    with pytest.raises(ValueError, match=r"HTTP 404: .*; asked at http://127.0.0.1:\d+/v1/chat/completions, of a base such as .*judge-1"):
        build_judge(server, tmp_path).ask(["p"])


def test_options_out_of_range(server: ChatServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="concurrency is 0"):
        build_judge(server, tmp_path, concurrency=0)


def test_a_killed_run_goes_on(server: ChatServer, tmp_path: Path) -> None:
    server.delay = 0.05
    prompts = [f"prompt {i}" for i in range(30)]
    code = (
        "import sys; from pathlib import Path; from mmalign.evaluation.judges.endpoint import OpenAIJudge\n"
        "judge = OpenAIJudge(url=sys.argv[1], model='judge-1', cache=Path(sys.argv[2]), concurrency=2)\n"
        "judge.ask([f'prompt {i}' for i in range(30)])"
    )
    cache = tmp_path / "cache.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(cache)])
    while not (cache.is_file() and cache.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.1)
    held = {json.loads(line)["prompt"] for line in cache.read_bytes().splitlines()}
    assert 5 <= len(held) < 30
    # As if the kill had hit in the middle of a line.
    with cache.open("ab") as file:
        file.write(b'{"key": "ab')
    server.requests.clear()
    assert build_judge(server, tmp_path).ask(prompts) == [f"echo: {prompt}" for prompt in prompts]
    assert server.asked() == dict.fromkeys(set(prompts) - held, 1)
    assert len(cache.read_bytes().splitlines()) == 30


def test_a_word_in_place_of_a_key_may_stand_in_answers(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "t")
    assert build_judge(server, tmp_path).ask(["text to judge"]) == ["echo: text to judge"]
