"""The bridge: the task folder as it is written, and a real run of lmms-eval beside our own evaluation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmalign.cli import main
from mmalign.evaluation.harness import pope_task
from mmalign.evaluation.harness.tasks import write_pope_task
from mmalign.evaluation.pope import PopeQuestion
from tests.tiny_models import build_tiny_llava, random_image

NUM_IMAGES = 4
TIMM_TOWER = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: pip install 'mmalign[lmms-eval]' into an environment of its own",
)


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for image in range(NUM_IMAGES):
        random_image(image).save(tmp_path / "images" / f"{image} %.png")
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
        (tmp_path / f"pope_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write_task(folder: Path, *words: str) -> Path:
    out = folder / "tasks"
    assert main(["lmms-tasks", str(folder), "--images", str(folder / "images"), "--out", str(out), "--max-new-tokens", "8", *words]) == 0
    return out


def read_yaml(path: Path) -> dict[str, Any]:
    """The task as YAML, function names as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"!{node.value}")
    return yaml.load(path.read_text(), Loader=Loader)


def test_task_as_written(pope_folder: Path) -> None:
    out = write_task(pope_folder, "--prompt-suffix", '\nSay "yes" or no: {x}.')
    task = read_yaml(out / "mmalign_pope.yaml")
    assert task["lmms_eval_specific_kwargs"]["default"]["post_prompt"] == '\nSay "yes" or no: {x}.'
    assert task["generation_kwargs"] == {"max_new_tokens": 8, "do_sample": False, "until": []}
    functions: dict[str, Any] = {}
    exec((out / "functions.py").read_text(), functions)
    named = [value for value in task.values() if isinstance(value, str) and value.startswith("!")]
    named += [metric["aggregation"] for metric in task["metric_list"]]
    assert all(callable(functions[name.removeprefix("!functions.")]) for name in named)
    rows = [json.loads(line) for line in Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    assert len(rows) == 6 * NUM_IMAGES
    (image,) = pope_task.doc_to_visual(rows[3])
    assert image.tobytes() == random_image(1).tobytes()
    assert pope_task.doc_to_text(rows[0], {"post_prompt": "!"}) == rows[0]["text"] + "!"


def test_metrics_are_the_originals() -> None:
    """A "Yes." is a yes here, which lmms-eval's own task counts as wrong; recall over all that are yes, an odd answer too."""
    labels = ("yes", "yes", "no", "no")
    docs = [{"id": f"random/{i}", "split": "random", "image": "a.png", "text": "?", "label": label} for i, label in enumerate(labels)]
    results = [pope_task.process_results(doc, [reply]) for doc, reply in zip(docs, ("Yes.", "No", "No, none.", "Yes"), strict=True)]
    got = {name: getattr(pope_task, f"aggregate_{name}")([result[name] for result in results]) for name in pope_task.METRICS}
    assert got == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5}


def test_missing_images_are_named(tmp_path: Path) -> None:
    question = PopeQuestion("random/1", "random", "nowhere.png", "?", True)
    with pytest.raises(ValueError, match="image not found: .*nowhere.png"):
        write_pope_task(tmp_path / "tasks", [question], images=tmp_path)
    assert not (tmp_path / "tasks").exists()


@needs_lmms_eval
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "fastvlm"])
def test_a_run_gives_our_own_answers(kind: str, pope_folder: Path) -> None:
    model, processor = build_tiny_llava() if kind == "llava" else build_tiny_llava(vision=TIMM_TOWER, image_size=64)
    for part in (model, processor):
        part.save_pretrained(pope_folder / "model")
    out = write_task(pope_folder)
    words = ["--model", "mmalign", "--model_args", f"pretrained={pope_folder / 'model'},dtype=float32", "--tasks", "mmalign_pope"]
    words += ["--include_path", str(out), "--batch_size", "5", "--output_path", str(pope_folder / "out"), "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(pope_folder / "hf")}
    done = subprocess.run([sys.executable, "-m", "lmms_eval", *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ids = [json.loads(line)["id"] for line in (out / "mmalign_pope.jsonl").read_text().splitlines()]
    (samples,) = (pope_folder / "out").rglob("*samples_mmalign_pope.jsonl")
    theirs = {ids[row["doc_id"]]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())}
    evaluation = ["evaluate", "pope", "--model", str(pope_folder / "model"), "--data", str(pope_folder), "--out", str(pope_folder / "ours")]
    assert main([*evaluation, "--dtype", "float32", "--max-new-tokens", "8"]) == 0
    ours = [json.loads(line) for line in (pope_folder / "ours" / "pope_answers.jsonl").read_text().splitlines()]
    assert len({row["response"] for row in ours}) > 3
    assert {row["id"]: [row["response"]] for row in ours} == {i: r if isinstance(r, list) else [r] for i, r in theirs.items()}
    (results,) = (pope_folder / "out").rglob("*results.json")
    scores = json.loads(results.read_text())["results"]["mmalign_pope"]
    expected = json.loads((pope_folder / "ours" / "pope.json").read_text())["metrics"]
    for name in pope_task.METRICS:
        assert scores[f"{name},none"] == pytest.approx(expected[f"pope/{name}"])
