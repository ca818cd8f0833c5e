"""``mmalign evaluate --benchmarks``: several benchmarks and models, each model loaded once, resumed, reported; what is missing is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.runs import evaluate_many
from tests.tiny_models import random_image

MMVP = "Index,Question,Options,Correct Answer\n1,Is it?,(a) Yes (b) No,(a)\n2,Is it?,(a) Yes (b) No,(b)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """POPE and RePOPE on images that both share with others, MMVP with its own."""
    folder = tmp_path / "benchmarks"
    rows = [{"question_id": i, "image": f"{i % 2}.png", "text": f"Is there {i}?", "label": "no"} for i in range(1, 5)]
    for name, labels in (("pope", rows), ("repope", [{**row, "label": "yes"} for row in rows[1:]])):
        (folder / name).mkdir(parents=True)
        (folder / name / f"coco_{name}_random.json").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (folder / "mmvp" / "MMVP Images").mkdir(parents=True)
    (folder / "mmvp" / "Questions.csv").write_text(MMVP)
    (folder / "images").mkdir()
    for i in (0, 1):
        random_image(i).save(folder / "images" / f"{i}.png")
        random_image(i + 2).save(folder / "mmvp" / "MMVP Images" / f"{i + 1}.jpg")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count: a line for each model that is loaded and each benchmark that is answered."""
    calls: list[str] = []
    load, answer = evaluate_many.load_model, evaluate_many.answer_questions

    def load_model(options: Any, **more: Any) -> Any:
        calls.append(f"load {Path(options.model).name}")
        return load(options, **more)

    def answer_questions(options: Any, benchmark: Any, **more: Any) -> Any:
        calls.append(f"{options.benchmark} {options.out.name}")
        return answer(options, benchmark, **more)

    monkeypatch.setattr(evaluate_many, "load_model", load_model)
    monkeypatch.setattr(evaluate_many, "answer_questions", answer_questions)
    return calls


def test_two_models_three_benchmarks_and_a_report(
    root: Path, tmp_path: Path, tiny_llava_dir: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second"
    shutil.copytree(tiny_llava_dir, second)
    words = ["evaluate", "--benchmarks", "pope,repope,mmvp", "--data", root, "--out", tmp_path / "out", "--max-new-tokens", "3"]
    words += ["--model", tiny_llava_dir, "--model", second, "--names", "first", "second"]
    assert main([str(word) for word in words]) == 0
    # RePOPE asks what POPE asks.
    assert asked == ["pope first", f"load {tiny_llava_dir.name}", "mmvp first", "pope second", "load second", "mmvp second"]
    table = capsys.readouterr().out
    assert "RePOPE" in table
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "first").glob("*.json")}
    assert {"pope", "repope", "mmvp", "answers"} <= set(results)
    assert results["repope"]["answers"] == results["pope"]["answers"]
    assert results["repope"]["decoding"] == results["pope"]["decoding"] == {"do_sample": False, "max_new_tokens": 3, "prompt_suffix": ""}
    assert results["repope"]["model"] == str(tiny_llava_dir)
    assert (tmp_path / "out" / "report.html").is_file()
    # The same as the command for one.
    one = ["evaluate", "mmvp", "--data", root / "mmvp", "--model", second, "--out", tmp_path / "one", "--max-new-tokens", "3"]
    assert main([str(word) for word in one]) == 0
    for name in ("mmvp_answers.jsonl", "mmvp_items.jsonl", "mmvp.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "out" / "second" / name).read_bytes()
    # Again: nothing is asked, nothing is loaded. A lost file is answered again, and only that.
    asked.clear()
    before = (tmp_path / "out" / "second" / "mmvp.json").read_bytes()
    assert main([str(word) for word in words]) == 0
    assert asked == []
    (tmp_path / "out" / "second" / "mmvp_answers.jsonl").unlink()
    assert main([str(word) for word in words]) == 0
    assert asked == ["mmvp second", "load second"]
    assert (tmp_path / "out" / "second" / "mmvp.json").read_bytes() == before
    # Asked otherwise, they are other answers.
    asked.clear()
    assert main([*map(str, words), "--settings", "{mmvp: {max_new_tokens: 2}}"]) == 0
    assert asked == ["mmvp first", f"load {tiny_llava_dir.name}", "mmvp second", "load second"]


def test_what_is_missing_is_told_at_once(
    root: Path, tmp_path: Path, tiny_llava_dir: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "images")
    words = ["evaluate", "--benchmarks", "pope,mmvp,dash-b,mmhal", "--data", root, "--model", tiny_llava_dir, "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert "3 of 4 benchmarks can't be asked; no model was loaded" in error
    assert f"pope: no images at {root / 'pope' / 'images'}" in error
    assert f"dash-b: no file or folder {root / 'dash-b'}" in error
    assert "its files: images of github.com/YanNeu/DASH-B" in error
    assert "mmhal: MMHal-Bench's questions are missing" in error
    assert asked == []
    assert main([*map(str, words[:2]), "mmvp", *map(str, words[3:]), "--model", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--benchmarks pope,pop --model a", "benchmarks is pop; expected each once, of pope, repope"),
        ("--benchmarks pope,pope --model a", "benchmarks is pope, pope; expected each once"),
        ("--benchmarks pope --model a/x --model b/x", "2 models and the names x, x; give each its own name with --names"),
        ("--benchmarks pope --model a --judgements f", "judgements are of one benchmark: give them in --settings"),
        ("--benchmarks pope --model a --settings {chair:{}}", "settings are of chair, which --benchmarks does not name"),
        ("--benchmarks=pope", "missing: --model"),
    ],
)
def test_refusals(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", *words.split(), "--data", str(tmp_path), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_questions_whose_images_come_later_are_answered_then(root: Path, tmp_path: Path, tiny_llava_dir: Path, asked: list[str]) -> None:
    words = ["evaluate", "--benchmarks", "pope", "--data", root, "--model", tiny_llava_dir, "--max-new-tokens", "3", "--batch-size", "2"]
    words += ["--max-reject-share", "0.6", "--out"]
    answers = [tmp_path / out / tiny_llava_dir.name / "pope_answers.jsonl" for out in ("out", "whole")]
    whole = [str(word) for word in [*words, tmp_path / "whole"]]
    assert main(whole) == 0
    (root / "images" / "0.png").rename(root / "0.png")
    for _ in range(2):
        assert main([str(word) for word in [*words, tmp_path / "out"]]) == 0
        assert len(answers[0].read_text().splitlines()) == 2
    (root / "0.png").rename(root / "images" / "0.png")
    assert main([str(word) for word in [*words, tmp_path / "out"]]) == 0
    assert answers[0].read_bytes() == answers[1].read_bytes()
    assert [call for call in asked if call.startswith("pope")] == [f"pope {tiny_llava_dir.name}"] * 3
    assert not list((tmp_path / "out").rglob("*.partial"))
