"""``mmalign evaluate`` with a judge behind an endpoint, with reasoning, and with answers that ended at their longest length."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.errors import UserError
from mmalign.evaluation import runner
from mmalign.evaluation.pope import Pope
from mmalign.options.evaluate import EvaluateOptions
from mmalign.runs.evaluate import build_judge, load_benchmark
from tests.evaluation.judges.chat_server import ChatServer, fault, run_chat_server
from tests.tiny_models import random_image

pytest.importorskip("openai", reason="the judge extra is not installed")
MMHAL = [
    {
        "question_type": kind,
        "image_id": kind,
        "image_src": "",
        "image_content": ["Dog"],
        "question": f"Is it {kind}?",
        "gt_answer": "A dog.",
    }
    for kind in ("attribute", "other")
]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with run_chat_server() as chat:
        chat.answer = lambda prompt: "<think>Rating: 3? No.</think>\n**Rating:** 5/6"
        yield chat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mmhal-bench_answer_template.json").write_text(json.dumps(MMHAL))
    answers = [{**row, "model_answer": "<think>A cat?</think>A dog."} for row in MMHAL]
    (tmp_path / "mmhal_answers.json").write_text(json.dumps(answers))
    return tmp_path


def evaluate(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_local_server_without_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: ChatServer, folder: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = ["mmhal", "--data", folder, "--answers", folder / "mmhal_answers.json", "--mode", "strict", "--out", folder / "out"]
    words += ["--judge-url", server.url, "--judge-model", "m", "--judge-concurrency", 1, "--judge-retries", 0, "--judge-timeout", 5]
    got = evaluate(capsys, *words, "--judge-decoding", "{max_completion_tokens: 4096, temperature: null, seed: 1}")
    assert (got["mmhal/score"], got["mmhal/hallucination_rate"]) == (5.0, 0.0)
    assert got["judge_decoding"] == {"max_completion_tokens": 4096, "seed": 1}
    assert (got["num_judgements_reasoned"], got["num_judgements_unanswered"]) == (2, 0)
    assert {key: request[key] for request in server.requests for key in ("max_completion_tokens", "seed")} == got["judge_decoding"]
    assert not {"temperature", "max_tokens"} & set(server.requests[0])
    # The judge reads the answer, and not the reasoning before it.
    assert all("Response: A dog." in request["messages"][0]["content"] for request in server.requests)
    # Kept as it was said; scored again from the file it gives the same.
    saved = (folder / "out" / "mmhal_judgements.jsonl").read_text()
    assert saved.count("<think>") == 2
    again = evaluate(capsys, *words[:7], "--judgements", folder / "out" / "mmhal_judgements.jsonl")
    assert (again["mmhal/score"], again["num_judgements_reasoned"], again["judge_decoding"]) == (5.0, 2, None)
    # Other settings are another judge.
    evaluate(capsys, *words)
    assert server.requests[-1]["max_tokens"] == 1024


JUDGE = ["--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m"]


@pytest.mark.parametrize(
    ("benchmark", "words", "reason"),
    [
        ("mmhal", [], "needs a judge"),
        ("mmhal", JUDGE[:2], "needs both --judge-url and --judge-model"),
        ("mmhal", ["--judge", "nowhere/at/all"], "no checkpoint at nowhere/at/all"),
        ("mmhal", [*JUDGE, "--judge-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        ("mmhal", [*JUDGE, "--judge-prompt", "FOLDER/no.txt"], "file not found: FOLDER/no.txt"),
        ("mmhal", [*JUDGE, "--judge-prompt", "FOLDER/words.txt"], "the judge's prompt has no field"),
        ("mmhal", ["--judgements", "FOLDER/no.jsonl"], "file not found: FOLDER/no.jsonl"),
        ("pope", JUDGE, "pope asks no judge"),
        ("pope", [], "data are missing"),
    ],
)
def test_what_scoring_would_lack_is_told_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, benchmark: str, words: list[str], reason: str
) -> None:
    """The model is not there: an error that names it would come after hours with one that is."""

    def lack(*_: object, **__: object) -> None:
        raise UserError("data are missing")

    monkeypatch.setattr(Pope, "items", lack)
    (folder / "words.txt").write_text("judge this")
    (folder / "pope").mkdir()
    (folder / "pope" / "coco_pope_random.json").write_text(json.dumps({"question_id": 1, "image": "a", "text": "b?", "label": "no"}))
    (folder / "images").mkdir()
    data = folder if benchmark == "mmhal" else folder / benchmark
    asked = ["evaluate", benchmark, "--data", str(data), "--images", str(folder / "images"), "--model", str(folder / "no_model")]
    assert main([*asked, "--out", str(folder / "out"), *(word.replace("FOLDER", str(folder)) for word in words)]) == 2
    assert reason.replace("FOLDER", str(folder)) in capsys.readouterr().err


def test_a_judge_that_fails_costs_no_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: ChatServer, folder: Path, tiny_llava_dir: Path
) -> None:
    """The same command asks the judge again, and not the model; what is left then is what one run without a fault leaves."""
    (folder / "images").mkdir()
    random_image(0).save(folder / "images" / "a.png")
    (folder / "mmhal-bench_answer_template.json").write_text(json.dumps([{**row, "image_src": "http://x/a.png"} for row in MMHAL]))
    words = ["mmhal", "--data", folder, "--model", tiny_llava_dir, "--max-new-tokens", 4, "--out", folder / "out"]
    words += ["--judge-model", "m", "--judge-retries", 0, "--judge-url"]
    assert main(["evaluate", *map(str, words), "http://127.0.0.1:9/v1"]) == 2
    assert "running again resumes with the rest" in capsys.readouterr().err
    answers = (folder / "out" / "mmhal_answers.jsonl").read_text()
    monkeypatch.setattr(runner, "answer_batch", None)
    assert evaluate(capsys, *words, server.url)["mmhal/score"] == 0.0
    assert (folder / "out" / "mmhal_answers.jsonl").read_text() == answers
    assert not list((folder / "out").glob("*.partial"))


def test_a_refused_setting_is_told_by_its_option(capsys: pytest.CaptureFixture[str], server: ChatServer, folder: Path) -> None:
    refusal = fault(400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
    words = ["mmhal", "--data", folder, "--answers", folder / "mmhal_answers.json", "--out", folder / "out"]
    words += ["--judge-url", server.url, "--judge-model", "m", "--judge-key-env", "none"]
    benchmark = load_benchmark(EvaluateOptions(benchmark="mmhal", data=folder))
    server.scripts = {prompt: [refusal] for prompt in benchmark.judge_prompts(dict.fromkeys(benchmark.required(), "A dog.")).values()}
    assert main(["evaluate", *map(str, words)]) == 2
    assert "set --judge-decoding to '{temperature: 0, max_completion_tokens: 1024}'" in capsys.readouterr().err


def test_keys_and_settings_that_can_not_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    common: dict[str, Any] = {"benchmark": "mmhal", "data": tmp_path, "out": tmp_path, "judge_model": "m"}
    with pytest.raises(
        ValueError, match=r"OPENAI_API_KEY is not set; .* \(--judge-key-env none or --endpoint-key-env none, or another variable's name\)"
    ):
        build_judge(EvaluateOptions(**common, judge_url="https://api.openai.com/v1"))
    with pytest.raises(ValueError, match="variable MINE is not set"):
        build_judge(EvaluateOptions(**common, judge_url="http://127.0.0.1:1/v1", judge_key_env="MINE"))
    with pytest.raises(ValueError, match="takes max_new_tokens alone"):
        build_judge(EvaluateOptions(benchmark="mmhal", data=tmp_path, out=tmp_path, judge="dir", judge_decoding={"temperature": 1}))


def test_a_mode_that_can_read_nothing_does_not_stop_the_other(
    capsys: pytest.CaptureFixture[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "judged.jsonl").write_text("".join(json.dumps({"id": row["image_id"], "judgement": "Very good."}) + "\n" for row in MMHAL))
    words = ["mmhal", "--data", folder, "--answers", folder / "mmhal_answers.json", "--judgements", folder / "judged.jsonl"]
    got = evaluate(capsys, *words)
    # The original takes what it can't read for 0.
    assert (got["mmhal/score"], got["strict"]) == (0.0, {})
    assert "there is no strict result: none of 2 judgements holds a rating" in caplog.text
    assert main(["evaluate", *map(str, words), "--mode", "strict"]) == 2
    assert "none of 2 judgements holds a rating" in capsys.readouterr().err


POPE = [{"question_id": i, "image": "a.png", "text": f"Is there a {n}?", "label": a} for i, n, a in ((1, "dog", "yes"), (2, "cat", "no"))]


@pytest.mark.parametrize("mode", ["official", "strict"])
def test_reasoning_is_counted_and_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, POPE)))
    rows = [{"id": 1, "response": "<think>no?</think>\nYes", "ended": True}, {"id": 2, "response": "<think>Yes, no", "ended": False}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["pope", "--data", tmp_path, "--answers", tmp_path / "a.jsonl", "--mode", mode]
    got = evaluate(capsys, *words)
    assert (got["num_reasoned"], got["num_unanswered"], got["num_at_limit"]) == (2, 1, 1)
    # An empty answer is a yes to the original's parser, and unknown to the strict one.
    assert (got["pope/accuracy"], got["pope/unknown"]) == (0.5, float(mode == "strict"))
    assert "2 answers hold reasoning: what stands behind it is scored" in caplog.text
    assert ("the original script would read all of it" in caplog.text) is (mode == "official")
    assert "1 answers ended inside their reasoning and are scored as empty; raise --max-new-tokens" in caplog.text
    assert main(["evaluate", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "answers that ended at the longest length: 1\n" in out
    assert "answers with reasoning, which was taken away: 2; of these without an answer: 1\n" in out


def test_answers_that_do_not_say_how_they_ended(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, POPE)))
    (tmp_path / "a.jsonl").write_text('{"id": 1, "response": "Yes"}\n{"id": 2, "response": "No"}')
    got = evaluate(capsys, "pope", "--data", tmp_path, "--answers", tmp_path / "a.jsonl")
    assert (got["num_at_limit"], got["num_reasoned"], got["pope/accuracy"]) == (None, 0, 1.0)


def test_the_longest_answer_is_the_benchmarks_own(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, POPE)))
    (tmp_path / "mmhal.json").write_text(json.dumps(MMHAL))

    def lengths(name: Any, data: Path) -> dict[int, int]:
        questions = load_benchmark(EvaluateOptions(benchmark=name, data=data, similarity="exact")).questions()
        found = sorted(question.max_new_tokens for question in questions)
        return {length: found.count(length) for length in dict.fromkeys(found)}

    assert (lengths("pope", tmp_path), lengths("mmhal", tmp_path / "mmhal.json")) == ({128: 2}, {1024: 2})
    assert lengths("amber", shared_data / "benchmarks" / "amber") == {128: 14_216, 512: 1004}
    (tmp_path / "synonyms.txt").write_text("dog\n")
    (tmp_path / "objects.json").write_text('{"1": ["dog"]}')
    (tmp_path / "chair.jsonl").write_text('{"id": 1, "image": "a.png", "question": "Describe."}')
    assert lengths("chair", tmp_path) == {512: 1}


def test_what_ended_at_the_limit_is_counted_where_a_model_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_llava_dir: Path
) -> None:
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, POPE)))
    random_image(0).save(tmp_path / "a.png")
    words = ["pope", "--model", tiny_llava_dir, "--data", tmp_path, "--images", tmp_path]
    got = evaluate(capsys, *words, "--out", tmp_path / "short", "--max-new-tokens", 2)
    assert (got["num_at_limit"], got["decoding"]["max_new_tokens"]) == (2, 2)
    got = evaluate(capsys, *words, "--out", tmp_path / "own")
    assert got["decoding"]["max_new_tokens"] == 128
    rows = [json.loads(line) for line in (tmp_path / "own" / "pope_answers.jsonl").read_text().splitlines()]
    assert got["num_at_limit"] == sum(not row["ended"] for row in rows)
    assert got["num_different"] == len({row["response"] for row in rows})
