"""From two models to a page: ``mmalign evaluate --model`` writes what ``mmalign report eval`` shows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.evaluation.intervals import compute_intervals
from mmalign.evaluation.items import Item, read_items
from mmalign.evaluation.pope import parse_official
from mmalign.evaluation.registry import find_benchmark
from tests.data_files import chat_rows, save_rows
from tests.reports.html_page import Page
from tests.tiny_models import WORDS, random_image

NUM_IMAGES = 4


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    """Folders ``a`` and ``b`` of two models; the objects are words that they say."""
    root = tmp_path_factory.mktemp("results")
    (root / "images").mkdir()
    for i in range(NUM_IMAGES):
        random_image(50 + i).save(root / "images" / f"{i}.png")
    # A few steps on chats, so that they say words.
    save_rows(root / "chats.parquet", chat_rows(8))
    for name, steps in (("a", "30"), ("b", "60")):
        words = ["--model", str(tiny_llava_dir), "--data", str(root / "chats.parquet"), "--out", str(root / f"model-{name}")]
        assert main(["train", "sft", *words, "--max-steps", steps, "--batch-size", "4", "--learning-rate", "3e-3"]) == 0
    # Every second object is in every image, the others are in none.
    objects = [word for word in dict.fromkeys(WORDS) if len(word) > 2]
    pope = [
        {"question_id": i, "image": f"{i % NUM_IMAGES}.png", "text": f"Is there a {WORDS[i]}?", "label": "no" if i % 3 else "yes"}
        for i in range(12)
    ]
    chair = [{"id": str(i), "image": f"{i}.png", "question": "describe", "truth": objects[::2]} for i in range(NUM_IMAGES)]
    write_jsonl(root / "pope_random.jsonl", pope)
    write_jsonl(root / "chair.jsonl", chair)
    (root / "synonyms.txt").write_text("\n".join(objects) + "\n")
    for name in ("a", "b"):
        for benchmark in ("pope", "chair"):
            words = [benchmark, "--model", str(root / f"model-{name}"), "--data", str(root), "--out", str(root / name)]
            assert main(["evaluate", *words, "--max-new-tokens", "24"]) == 0
    return root


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_saved_answers_are_scored_and_compared_without_torch(results: Path, tmp_path: Path) -> None:
    """It takes seconds to import."""
    code = f"""
import sys
from mmalign.cli import main
words = ["evaluate", "pope", "--data", "{results}", "--answers", "{results}/a/pope_answers.jsonl", "--out", "{tmp_path}/a"]
assert main(words) == 0
assert main(["report", "eval", "{tmp_path}/a", "{results}/b", "--images", "{results}/images", "--out", "{tmp_path}"]) == 0
print(sorted({{"torch", "transformers", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("benchmark", ["pope", "chair"])
def test_items_are_the_result_answer_by_answer(results: Path, benchmark: str) -> None:
    items, result = read_items(results / "a" / f"{benchmark}_items.jsonl"), json.loads((results / "a" / f"{benchmark}.json").read_text())
    answers = [json.loads(line) for line in (results / "a" / f"{benchmark}_answers.jsonl").read_text().splitlines()]
    assert [item.response for item in items] == [answer["response"] for answer in answers]
    assert len(items) == result["num_answers"]
    for key, interval in compute_intervals(find_benchmark(benchmark), items, resamples=100).items():
        assert interval.value == pytest.approx(result["metrics"][key], abs=1e-9), key
    if benchmark == "pope":
        assert [item.correct for item in items] == [("yes" if parse_official(item.response) else "no") == item.label for item in items]


def test_report_shows_intervals_and_wrong_answers(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(results / name) for name in ("a", "b")]
    capsys.readouterr()
    words = [*folders, "--out", str(tmp_path), "--images", str(results / "images"), "--resamples", "200"]
    assert main(["report", "eval", *words]) == 0
    table = (tmp_path / "report.md").read_text().replace("**", "")
    page = Page((tmp_path / "report.html").read_text())
    num_articles = 0
    for benchmark, metric in (("pope", "accuracy"), ("chair", "instance")):
        items: dict[str, list[Item]] = {name: read_items(results / name / f"{benchmark}_items.jsonl") for name in ("a", "b")}
        for those in items.values():
            interval = compute_intervals(find_benchmark(benchmark), those, resamples=200)[f"{benchmark}/{metric}"]
            assert f"{100 * interval.value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})" in table
        wrong = {name: {item.id for item in those if item.correct is False} for name, those in items.items()}
        assert any(wrong.values()), "nothing went wrong: nothing would show"
        expected = ", ".join(f"{name} {len(ids)}" for name, ids in wrong.items())
        assert any(summary.endswith(f"wrong in all: {expected}") for summary in page.texts("summary"))
        num_articles += len(wrong["a"] | wrong["b"])
    assert sum(tag == "article" for tag, _, _ in page.elements) == num_articles
    assert all(value.startswith("data:image/png;base64,") for _, value in page.attributes("src"))
    assert "no intervals" not in (tmp_path / "report.html").read_text()
