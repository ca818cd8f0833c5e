"""``mmalign train online``: the reward rises on a task with right answers; other rewards and their refusals; the card."""

import json
from pathlib import Path

import pytest

from mmalign.cli import main
from tests.commands.training import read_log, read_rejects, train
from tests.data_files import save_rows
from tests.evaluation.judges.chat_server import run_chat_server
from tests.tiny_models import random_image

QUESTIONS = {"is there a dog": "yes", "is there a cat": "no"}
SHORT = ["--samples", "4", "--max-new-tokens", "4"]


def ask(count: int = 8) -> list[dict[str, object]]:
    asked = list(QUESTIONS.items())
    return [
        {"id": f"q{i}", "images": [random_image(i % 4)], "prompt": asked[i % 2][0], "answer": [asked[i % 2][1], "perhaps"]}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("questions") / "questions.parquet", ask())


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    """A model that has learnt to say yes or no, each as often to every question."""
    folder = tmp_path_factory.mktemp("undecided")
    chats = [
        {
            "images": [random_image(i % 4)],
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
        }
        for i in range(4)
        for prompt in QUESTIONS
        for answer in ("yes", "no")
    ]
    rows = save_rows(folder / "chats.parquet", chats)
    words = ["--max-steps", "60", "--batch-size", "16", "--learning-rate", "5e-3", "--schedule", "constant"]
    assert train(tiny_llava_dir, rows, folder / "model", *words, kind="sft") == 0
    return folder / "model"


@pytest.mark.parametrize("objective", ["grpo", "disco", "dpo"])
def test_the_reward_rises_on_a_task_with_right_answers(undecided: Path, data: Path, tmp_path: Path, objective: str) -> None:
    words = ["--reward", "answers", "--objective", objective, "--samples", "8", "--max-new-tokens", "4"]
    words += ["--max-steps", "25", "--batch-size", "8", "--learning-rate", "3e-3", "--schedule", "constant", "--warmup-ratio", "0"]
    assert train(undecided, data, tmp_path / "out", *words, kind="online") == 0
    rewards = [entry["online/reward"] for entry in read_log(tmp_path / "out")]
    # Half at first, within four standard deviations of 64 answers.
    assert 0.25 < rewards[0] < 0.75
    assert sum(rewards[-5:]) / 5 > 0.9
    assert max(entry["online/cut"] for entry in read_log(tmp_path / "out")) < 0.6
    if objective == "grpo":
        said = "a multimodal LLM, trained on rewards of its own answers with grpo on 8 answers per prompt, rewarded by answers."
        assert said in (tmp_path / "out" / "README.md").read_text()


def test_objects_of_a_folder_in_chairs_form(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Its own file is the data; a row whose objects no word names is left out."""
    folder = tmp_path / "world"
    (folder / "images").mkdir(parents=True)
    (folder / "synonyms.txt").write_text("dog\ncat, kitten\nbird\n")
    rows = [{"id": f"s{i}", "image": f"{i}.png", "question": "describe the image", "truth": ["dog", "cat"]} for i in range(8)]
    for i in range(9):
        random_image(i).save(folder / "images" / f"{i}.png")
    (folder / "chair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = tmp_path / "more.jsonl"
    more.write_text((folder / "chair.jsonl").read_text() + json.dumps({**rows[0], "id": "x", "image": "8.png", "truth": ["boat"]}) + "\n")
    words = [
        "--image-root",
        str(folder / "images"),
        "--reward",
        f"objects:{folder}",
        "--max-reject-share",
        "0.2",
        *SHORT,
        "--lora-rank",
        "2",
    ]
    assert train(tiny_llava_dir, more, tmp_path / "out", *words, "--objective", "dno", "--win-rates", kind="online") == 0
    assert read_rejects(tmp_path / "out") == {"x": "truth holds boat, which the word list does not name"}
    assert all(entry["online/reward"] <= 1 for entry in read_log(tmp_path / "out"))


def test_a_judge_behind_an_endpoint_rates_with_a_reference(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Its replies are kept, so that a run that is given again asks nothing twice."""
    rows = save_rows(tmp_path / "q.parquet", [{**row, "reference": "A dog."} for row in ask()])
    with run_chat_server() as server:
        server.answer = lambda prompt: "7" if " a" in prompt.split("Response: ")[1].split("\n")[0] else "2"
        words = ["--reward", "judge", "--judge-url", server.url, "--judge-model", "judge", *SHORT, "--objective", "ipo"]
        assert train(tiny_llava_dir, rows, tmp_path / "out", *words, kind="online") == 0
    log = read_log(tmp_path / "out")
    assert all(2 <= entry["online/reward"] <= 7 for entry in log)
    kept = [json.loads(line) for line in (tmp_path / "out" / "judge_cache.jsonl").read_text().splitlines()]
    assert {row["response"] for row in kept} <= {"2", "7"}
    assert all("Reference: A dog." in row["prompt"] for row in kept)


def test_a_judge_that_fails_at_the_first_step_is_asked_for_the_rest(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model may have moved, and may be given more time; a judge of another name makes another run."""
    rows = save_rows(tmp_path / "q.parquet", [{**row, "reference": "A dog."} for row in ask()])
    words = ["--reward", "judge", "--judge-retries", "0", *SHORT, "--max-steps", "1"]
    with run_chat_server() as first:
        first.answer = lambda prompt: "" if len(first.requests) > 6 else "7"
        given = [*words, "--judge-model", "judge", "--judge-url", first.url]
        assert train(tiny_llava_dir, rows, tmp_path / "out", *given, kind="online") == 2
        assert "running again resumes with the rest" in capsys.readouterr().err
    kept = {json.loads(line)["prompt"] for line in (tmp_path / "out" / "judge_cache.jsonl").read_text().splitlines()}
    with run_chat_server() as second:
        second.answer = lambda prompt: "7"
        words += ["--judge-url", second.url, "--judge-timeout", "60"]
        assert train(tiny_llava_dir, rows, tmp_path / "out", *words, "--judge-model", "other", kind="online") == 2
        assert "judge_model" in capsys.readouterr().err
        assert train(tiny_llava_dir, rows, tmp_path / "out", *words, "--judge-model", "judge", kind="online") == 0
        assert kept
        assert second.asked()
        assert not kept & set(second.asked())


def test_a_reward_that_is_not_finite_stops_the_run(
    tiny_llava_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.py"
    file.write_text("def odd(prompt, responses, row):\n    return [1.0] * (len(responses) - 1) + [float('nan')]\n")
    assert train(tiny_llava_dir, data, tmp_path / "out", "--reward", f"function:{file}:odd", *SHORT, kind="online") == 2
    error = capsys.readouterr().err
    assert f"reward function:{file}:odd gave nan for an answer to row q" in error
    assert "expected a finite number" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "judge"], "--reward judge needs a judge"),
        (["--reward", "objects:nowhere"], "nowhere"),
        (["--reward", "function:nowhere.py:f"], "there is no file nowhere.py"),
        (["--reward", "answers", "--reference", "copy"], "objective grpo is held to the policy that sampled; leave --reference"),
        (["--reward", "answers", "--objective", "simpo", "--reference", "copy"], "objective simpo compares with no reference"),
        (["--reward", "answers", "--top-p", "0"], "top_p is 0.0; expected more than 0"),
        (["--reward", "answers", "--objective", "tpo"], "objective tpo is of lists with a preference"),
    ],
)
def test_online_refuses_what_makes_no_sense(
    tiny_llava_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(tiny_llava_dir, data, tmp_path / "out", *words, *SHORT, kind="online") == 2
    assert message in capsys.readouterr().err


def test_help_names_the_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "online", "--help"])
    assert "answers, objects:FOLDER, judge, model:DIR or function:FILE.py:NAME" in " ".join(capsys.readouterr().out.split())
