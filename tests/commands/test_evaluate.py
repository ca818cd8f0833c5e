"""``mmalign evaluate``: one JSON object, provenance, refusals, both modes, judges, the real files."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.evaluation.results import SCORER_VERSION
from mmalign.models.load import load_mllm
from mmalign.options.evaluate import EvaluateOptions
from mmalign.runs.answering import evaluate
from mmalign.runs.evaluate import build_judge
from tests.tiny_models import random_image


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    rows = [{"question_id": i, "image": "a.png", "text": "Is there a dog?", "label": label} for i, label in ((1, "yes"), (2, "no"))]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "response": "Yes."}\n{"id": "2", "response": "NO"}\n')
    return tmp_path


def score(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_one_json_object_with_its_provenance(capsys: pytest.CaptureFixture[str], pope: Path) -> None:
    got = score(capsys, "pope", "--answers", pope / "answers.jsonl", "--data", pope / "coco_pope_random.json")
    # Upper-case NO is a yes to the original's parser.
    assert (got["pope/accuracy"], got["pope/recall"], got["pope/yes_ratio"]) == (0.5, 1.0, 1.0)
    assert (got["strict"]["pope/accuracy"], got["strict"]["pope/yes_ratio"]) == (1.0, 0.5)
    assert "pope/recall" not in got["strict"]
    assert got["pope/always_yes/f1"] == pytest.approx(2 / 3)
    assert (got["benchmark"], got["mode"], got["scorer_version"], got["num_answers"]) == ("pope", "official", SCORER_VERSION, 2)
    assert {name: len(digest) for name, digest in got["data"].items()} == {"coco_pope_random.json": 64}
    assert list(got["answers"]) == ["answers.jsonl"]
    assert got["averages"]["pope/f1"] == "plain mean of the splits, as in the paper"
    assert got["averages"]["pope/merged/f1"] == "all splits together, as VLMEvalKit"
    assert got["decoding"] is got["judge"] is got["model"] is None


def test_strict_names_the_official_values(capsys: pytest.CaptureFixture[str], pope: Path) -> None:
    got = score(capsys, "pope", "--answers", pope / "answers.jsonl", "--data", pope, "--mode", "strict")
    assert (got["mode"], got["pope/accuracy"], got["official"]["pope/accuracy"]) == ("strict", 1.0, 0.5)


def test_a_table_without_json(capsys: pytest.CaptureFixture[str], pope: Path) -> None:
    assert main(["evaluate", "pope", "--answers", str(pope / "answers.jsonl"), "--data", str(pope)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pope, official, 2 answers\n")
    assert any(line.split() == ["pope/accuracy", "0.5", "(strict:", "1)"] for line in out.splitlines())


def test_refusals_list_ids(capsys: pytest.CaptureFixture[str], pope: Path) -> None:
    words = ["evaluate", "pope", "--answers", str(pope / "answers.jsonl"), "--data", str(pope)]
    (pope / "answers.jsonl").write_text('{"id": "1", "response": "Yes"}\n{"id": "9", "response": "No"}\n')
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "1 questions have no answer: random/2" in error
    assert "1 answers belong to no question: random/9" in error
    assert main([*words, "--allow-partial"]) == 0
    assert main(["evaluate", "pope", "--data", str(pope)]) == 2
    assert "give either --model or --endpoint, to answer the questions, or --answers" in capsys.readouterr().err


def test_one_process_answers(capsys: pytest.CaptureFixture[str], pope: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = ["--model", "x", "--out", str(pope / "out")]
    for words in (["pope", "--data", str(pope)], ["--benchmarks", "pope", "--data", str(pope)]):
        assert main(["evaluate", *words, *shared]) == 2
        assert "WORLD_SIZE is 2; expected one process: start mmalign evaluate without torchrun" in capsys.readouterr().err


def test_results_are_saved_as_reports_read_them(capsys: pytest.CaptureFixture[str], pope: Path) -> None:
    score(capsys, "pope", "--answers", pope / "answers.jsonl", "--data", pope, "--out", pope / "out")
    saved = json.loads((pope / "out" / "pope.json").read_text())
    assert (saved["metrics"]["pope/accuracy"], saved["other_mode"]["pope/accuracy"]) == (0.5, 1.0)


MMHAL = [
    {"question_type": kind, "image_id": kind, "image_src": "", "image_content": ["Dog"], "question": "?", "gt_answer": "A dog."}
    for kind in ("attribute", "other")
]


def test_saved_judgements_are_scored(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mmhal.json").write_text(json.dumps(MMHAL))
    (tmp_path / "answers.json").write_text(json.dumps([row | {"model_answer": "A cat."} for row in MMHAL]))
    replies = [{"id": row["image_id"], "judgement": text} for row, text in zip(MMHAL, ("Rating: 6", "Rating:1"), strict=True)]
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, replies)))
    words = ["mmhal", "--answers", tmp_path / "answers.json", "--data", tmp_path / "mmhal.json"]
    got = score(capsys, *words, "--judgements", tmp_path / "judged.jsonl")
    assert (got["mmhal/score"], got["mmhal/hallucination_rate"], got["judge"]) == (3.0, 0.5, "saved in judged.jsonl")
    assert got["strict"]["mmhal/score"] == 3.5
    assert main(["evaluate", *map(str, words)]) == 2
    assert "needs a judge" in capsys.readouterr().err


def test_a_judge_is_asked_and_its_replies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge:
        name = "always 4"
        decoding: Mapping[str, Any] = {"temperature": 0}

        def ask(self, prompts: list[str]) -> list[str]:
            assert all("Response: A cat." in prompt for prompt in prompts)
            return ["Rating: 4"] * len(prompts)

    monkeypatch.setattr("mmalign.runs.evaluate.build_judge", lambda options: Judge())
    (tmp_path / "mmhal.json").write_text(json.dumps(MMHAL))
    (tmp_path / "answers.json").write_text(json.dumps([row | {"model_answer": "A cat."} for row in MMHAL]))
    options = EvaluateOptions(benchmark="mmhal", data=tmp_path / "mmhal.json", answers=tmp_path / "answers.json", out=tmp_path / "out")
    result = evaluate(options)
    assert (result.metrics["mmhal/score"], result.judge, len(str(result.judge_prompt))) == (4.0, "always 4", 64)
    saved = [json.loads(line) for line in (tmp_path / "out" / "mmhal_judgements.jsonl").read_text().splitlines()]
    assert saved == [{"id": kind, "judgement": "Rating: 4"} for kind in ("attribute", "other")]


def test_half_a_judge_is_refused(tmp_path: Path) -> None:
    common = {"benchmark": "mmhal", "data": tmp_path}
    with pytest.raises(ValueError, match="needs both --judge-url and --judge-model"):
        build_judge(EvaluateOptions(**common, judge_url="http://127.0.0.1:1/v1"))
    with pytest.raises(ValueError, match="give one of --judge-url, --judge and --judgements"):
        build_judge(EvaluateOptions(**common, judge="dir", judgements=tmp_path))
    assert build_judge(EvaluateOptions(**common)) is None


def test_a_model_answers_first(capsys: pytest.CaptureFixture[str], pope: Path, tiny_llava_dir: Path) -> None:
    random_image(0).save(pope / "a.png")
    words = ["pope", "--model", tiny_llava_dir, "--data", pope, "--images", pope, "--out", pope / "out", "--max-new-tokens", "3"]
    got = score(capsys, *words, "--prompt-suffix", "\nAnswer shortly.")
    assert got["decoding"] == {"do_sample": False, "max_new_tokens": 3, "prompt_suffix": "\nAnswer shortly."}
    assert got["num_answers"] == 2
    asked = [json.loads(line)["prompt"] for line in (pope / "out" / "pope_answers.jsonl").read_text().splitlines()]
    assert asked == ["Is there a dog?\nAnswer shortly."] * 2


def test_beams_search_and_are_named(capsys: pytest.CaptureFixture[str], pope: Path, tiny_llava_dir: Path) -> None:
    """Answers of stock beams with the mean per token; one beam gives the bytes of no option at all."""
    random_image(0).save(pope / "a.png")
    words = ["pope", "--model", tiny_llava_dir, "--data", pope, "--images", pope, "--max-new-tokens", "6", "--batch-size", "3"]
    got = score(capsys, *words, "--beams", "4", "--length-penalty", "1", "--out", pope / "searched")
    decoding = {"do_sample": False, "max_new_tokens": 6, "prompt_suffix": ""}
    assert got["decoding"] == {**decoding, "num_beams": 4, "length_penalty": 1.0}
    said = [json.loads(line)["response"] for line in (pope / "searched" / "pope_answers.jsonl").read_text().splitlines()]
    model, processor = load_mllm(str(tiny_llava_dir))
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=random_image(0), return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=6, num_beams=4, length_penalty=1.0, do_sample=False)
    stock = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert said == [stock] * 2
    assert score(capsys, *words, "--out", pope / "greedy")["decoding"] == decoding
    assert score(capsys, *words, "--beams", "1", "--out", pope / "one")["decoding"] == decoding
    greedy, one = (pope / folder / "pope_answers.jsonl" for folder in ("greedy", "one"))
    assert greedy.read_bytes() == one.read_bytes() != (pope / "searched" / "pope_answers.jsonl").read_bytes()


def test_a_length_penalty_without_beams_is_refused(pope: Path) -> None:
    with pytest.raises(ValueError, match="length_penalty is 1.0 without beams"):
        EvaluateOptions(benchmark="pope", data=pope, length_penalty=1.0)
    with pytest.raises(ValueError, match="beams is 0; expected at least 1"):
        EvaluateOptions(benchmark="pope", data=pope, beams=0)


def test_real_captions_in_a_process_of_its_own(shared_data: Path) -> None:
    """Only the JSON object is on stdout, and the published number comes out."""
    pytest.importorskip("nltk")
    folder = shared_data / "benchmarks" / "chair"
    command = [sys.executable, "-m", "mmalign", "evaluate", "chair", "--json", "--data", str(folder)]
    command += ["--answers", str(folder / "captions_llava13b_instruction2.jsonl")]
    environment = os.environ | {"NLTK_DATA": str(shared_data / "nltk_data")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    got = json.loads(done.stdout)
    assert [f"{100 * got[f'chair/{name}']:.1f}" for name in ("sentence", "instance", "recall")] == ["32.7", "10.5", "68.0"]
    assert (got["variant"], got["num_answers"], sorted(got["data"])) == ("original", 2000, ["coco2014_objects.json.gz", "synonyms.txt"])


def test_amber_in_part(capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "benchmarks" / "amber"
    rows = [{"id": row["id"], "response": "No"} for row in json.loads((folder / "annotations.json").read_text()) if row["id"] > 1004]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    words = ["amber", "--answers", tmp_path / "answers.json", "--data", folder, "--similarity", "exact"]
    assert main(["evaluate", *map(str, words)]) == 2
    assert "1004 questions have no answer: 1, 2, 3" in capsys.readouterr().err
    got = score(capsys, *words, "--allow-partial")
    assert (got["amber/accuracy"], got["amber/f1"], got["amber/existence/f1"]) == (66.3, 79.7, 100.0)
    assert not {"amber/chair", "amber/score"} & set(got)
