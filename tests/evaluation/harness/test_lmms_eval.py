"""The bridge: tasks as they are written, and real runs of lmms-eval beside our own evaluation."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmalign.cli import main
from mmalign.evaluation.answers import SHORT_ANSWER
from mmalign.evaluation.harness.benchmark_task import METRICS, BenchmarkTask, metric_name
from mmalign.evaluation.harness.tasks import task_name
from mmalign.options.harness import LmmsTasksOptions
from tests.tiny_models import build_tiny_llava, random_image

NUM_IMAGES = 4
TIMM_TOWER = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: pip install 'mmalign[lmms-eval]' into an environment of its own",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The four benchmarks about the same pictures, each in the folder of its name."""
    (tmp_path / "images").mkdir()
    for image in range(NUM_IMAGES):
        random_image(image).save(tmp_path / "images" / f"{image} %.png")
    _write_popes(tmp_path)
    _write_dash_b(tmp_path)
    _write_amber(tmp_path)
    return tmp_path


def _write_popes(root: Path) -> None:
    """RePOPE turns one label and leaves one question out."""
    for name in ("pope", "repope"):
        (root / name).mkdir()
    for split in ("random", "popular"):
        rows = [
            {
                "question_id": i,
                "image": f"{i // 3} %.png",
                "text": f"is there a {'red' if i % 2 else 'blue'} dog {i}",
                "label": "no" if i % 2 else "yes",
            }
            for i in range(3 * NUM_IMAGES)
        ]
        write_lines(root / "pope" / f"coco_pope_{split}.json", rows)
        write_lines(root / "repope" / f"coco_repope_{split}.json", [{**rows[0], "label": "no"}, *rows[2:]])


def _write_dash_b(root: Path) -> None:
    (root / "dash_b").mkdir()
    for side in ("neg", "pos"):
        objects = {name: [f"{i}.png" for i in range(NUM_IMAGES)] for name in ("dog", "red car")}
        (root / "dash_b" / f"dash_benchmark_{side}.json").write_text(json.dumps({"coco": objects}))
        for number, name in enumerate(objects):
            (root / "images" / side / "coco" / name).mkdir(parents=True)
            for i in range(NUM_IMAGES):
                random_image(10 * number + i).save(root / "images" / side / "coco" / name / f"{i}.png")


def _write_amber(root: Path) -> None:
    """Descriptions stand among the yes-or-no questions."""
    (root / "amber").mkdir()
    kinds = ["generative", "discriminative-hallucination", "discriminative-attribute-state", "discriminative-relation"]
    told: list[dict[str, Any]] = [{"id": i, "type": kinds[i % 4], "truth": "no" if i % 3 else "yes"} for i in range(1, 13)]
    told = [row if row["type"] != "generative" else {**row, "truth": ["dog"], "hallu": ["cat"]} for row in told]
    asked = [{"id": i, "image": f"{i % NUM_IMAGES} %.png", "query": f"is there a dog {i}"} for i in range(1, 13)]
    closed = [one for one, row in zip(asked, told, strict=True) if row["type"] != "generative"]
    files = {"annotations": told, "query_all": asked, "query_discriminative": closed, "relation": {"dog": [], "cat": []}}
    for name, value in files.items():
        (root / "amber" / f"{name}.json").write_text(json.dumps(value))
    (root / "amber" / "safe_words.txt").write_text("picture\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(root: Path, name: str, *words: str) -> Path:
    data, images = str(root / name.replace("-", "_")), str(root / "images")
    command = ["lmms-tasks", data, "--benchmark", name, "--images", images, "--out", str(root / "tasks"), "--max-new-tokens", "8"]
    assert main([*command, *words]) == 0
    return root / "tasks"


def read_yaml(path: Path) -> dict[str, Any]:
    """The task as YAML, function names as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"!{node.value}")
    return yaml.load(path.read_text(), Loader=Loader)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_longest_answer_is_that_of_mmalign_evaluate() -> None:
    """Answers that are cut elsewhere may be scored otherwise."""
    assert LmmsTasksOptions(data=Path(), images=Path(), out=Path()).max_new_tokens == SHORT_ANSWER


@pytest.mark.parametrize("name", METRICS)
def test_task_as_written(name: Any, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a word of the vectors that AMBER's descriptions are scored with."""
    out = write(root, name, "--prompt-suffix", '\nSay "yes" or no: {x}.')
    task = read_yaml(out / f"{task_name(name)}.yaml")
    assert task["lmms_eval_specific_kwargs"]["default"]["post_prompt"] == '\nSay "yes" or no: {x}.'
    assert task["generation_kwargs"] == {"max_new_tokens": 8, "do_sample": False, "until": []}
    functions: dict[str, Any] = {}
    exec((out / f"{task_name(name)}_functions.py").read_text(), functions)
    named = [value for value in task.values() if isinstance(value, str) and value.startswith("!")]
    named += [metric["aggregation"] for metric in task["metric_list"]]
    assert all(callable(functions[value.removeprefix(f"!{task_name(name)}_functions.")]) for value in named)
    rows = read_rows(Path(task["dataset_kwargs"]["data_files"]["test"]))
    assert len(rows) == {"pope": 24, "repope": 24, "dash-b": 16, "amber": 9}[name]
    assert {row["label"].split()[0] for row in rows} >= {"yes", "no"}
    (image,) = functions["doc_to_visual"](rows[0])
    assert image.tobytes() == random_image(1 if name == "amber" else 0).tobytes()
    assert functions["doc_to_text"](rows[0], {"post_prompt": "!"}) == rows[0]["text"] + "!"
    better = {metric["metric"] for metric in task["metric_list"] if metric.get("higher_is_better")}
    assert better == {metric_name(key) for key in METRICS[name]} - {"yes_ratio"}
    assert "word vectors" not in caplog.text


def test_metrics_are_the_originals(root: Path) -> None:
    """A "Yes." is a yes in POPE, which lmms-eval's own task counts as wrong; RePOPE's label of the first is no, the second is removed."""
    replies = {"random/0": "Yes.", "random/1": "No", "random/2": "No, none.", "random/3": "<think>Yes?</think>Yes"}
    expected = {
        "pope": {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5},
        # Labels no, yes, no of the answers yes, no, yes; of POPE's as above.
        "repope": {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 2 / 3, "pope_accuracy": 0.5, "pope_f1": 0.5},
    }
    names: tuple[Any, ...] = ("pope", "repope")
    for name in names:
        task = BenchmarkTask(name, str(root / name))
        docs = [{"id": i, "image": "a.png", "text": "?"} for i in replies]
        results = [task.process_results(doc, [replies[str(doc["id"])]]) for doc in docs]
        got = {metric_name(key): task.aggregate(key)([result[metric_name(key)] for result in results]) for key in METRICS[name]}
        # One split is answered; over the splits it is halved nowhere.
        assert got == pytest.approx(expected[name])


def test_no_readable_answer_is_no_number(root: Path) -> None:
    assert math.isnan(BenchmarkTask("repope", str(root / "repope")).aggregate("f1")([{"id": "random/0", "response": "A dog."}]))


def test_missing_images_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images" / "2 %.png").unlink()
    words = ["--images", str(root / "images"), "--out", str(root / "tasks")]
    assert main(["lmms-tasks", str(root / "pope"), *words]) == 2
    assert "2 %.png; name the folder of the benchmark's images" in capsys.readouterr().err
    assert not (root / "tasks").exists()


@needs_lmms_eval
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "names"), [("llava", tuple(METRICS)), ("fastvlm", ("pope",))])
def test_a_run_gives_our_own_answers(kind: str, names: tuple[Any, ...], root: Path) -> None:
    model, processor = build_tiny_llava() if kind == "llava" else build_tiny_llava(vision=TIMM_TOWER, image_size=64)
    for part in (model, processor):
        part.save_pretrained(root / "model")
    for name in names:
        out = write(root, name)
    words = ["--model", "mmalign", "--model_args", f"pretrained={root / 'model'},dtype=float32", "--tasks", ",".join(map(task_name, names))]
    words += ["--include_path", str(out), "--batch_size", "5", "--output_path", str(root / "out"), "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf")}
    done = subprocess.run([sys.executable, "-m", "lmms_eval", *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # It ends with status 0 where it failed, too.
    results = next((root / "out").rglob("*results.json"), None)
    assert results is not None, done.stderr[-3000:]
    scores = json.loads(results.read_text())["results"]
    for name in names:
        _check_equal(root, name, scores[task_name(name)])


def _check_equal(root: Path, name: Any, scores: dict[str, Any]) -> None:
    """Their answers and their numbers are those of ``mmalign evaluate`` on the same yes-or-no questions."""
    task, short = task_name(name), name.replace("-", "_")
    ids = [row["id"] for row in read_rows(root / "tasks" / f"{task}.jsonl")]
    (samples,) = (root / "out").rglob(f"*samples_{task}.jsonl")
    theirs = {ids[row["doc_id"]]: row["filtered_resps"] for row in read_rows(samples)}
    data = root / "amber" / "query_discriminative.json" if name == "amber" else root / short
    evaluation = ["evaluate", name, "--model", str(root / "model"), "--data", str(data), "--images", str(root / "images")]
    assert main([*evaluation, "--out", str(root / "ours"), "--dtype", "float32", "--max-new-tokens", "8"]) == 0
    ours = {row["id"]: row["response"] for row in read_rows(root / "ours" / f"{name}_answers.jsonl")}
    assert len(set(ours.values())) > 2
    assert {i: [ours[i]] for i in ids} == {i: r if isinstance(r, list) else [r] for i, r in theirs.items()}
    expected = json.loads((root / "ours" / f"{name}.json").read_text())["metrics"]
    for key in METRICS[name]:
        value = expected.get(f"{short}/{key}", math.nan)
        assert scores[f"{metric_name(key)},none"] == pytest.approx(value, nan_ok=True), key
