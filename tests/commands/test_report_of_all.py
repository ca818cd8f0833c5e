"""Benchmarks of every kind from saved answers to the report: each has intervals and wrong answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from tests.reports.html_page import Page

NUM_IMAGES = 6


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_mme(folder: Path) -> dict[str, str]:
    write_rows(folder / "mme.jsonl", [
        {"question_id": f"count/{i}", "category": "count", "image": f"{i}.png", "question": f"Is it {answer}?", "answer": answer}
        for i in range(NUM_IMAGES) for answer in ("Yes", "No")
    ])  # fmt: skip
    return {f"count/{i}/{n}": "Yes" if n == 1 or i % 2 else "No" for i in range(NUM_IMAGES) for n in (1, 2)}


def write_mmvp(folder: Path) -> dict[str, str]:
    folder.mkdir()
    rows = [f"{i + 1},Is it open?,(a) Yes (b) No,({'ab'[i % 2]})\n" for i in range(2 * NUM_IMAGES)]
    (folder / "Questions.csv").write_text("Index,Question,Options,Correct Answer\n" + "".join(rows))
    return {str(i + 1): "(a)" if i % 2 == 0 or i > NUM_IMAGES else "(b)" for i in range(2 * NUM_IMAGES)}


def write_repope(folder: Path) -> dict[str, str]:
    rows = [{"question_id": i, "image": f"{i}.png", "text": "Is there a dog?", "label": "yes"} for i in range(NUM_IMAGES)]
    write_rows(folder / "coco_pope_random.json", rows)
    write_rows(folder / "coco_repope_random.json", [{**row, "label": "no"} for row in rows[1:]])
    return {str(i): "Yes" if i % 2 else "No" for i in range(NUM_IMAGES)}


def write_dash_b(folder: Path) -> dict[str, str]:
    folder.mkdir()
    images = [f"{i}.png" for i in range(NUM_IMAGES)]
    for side in ("neg", "pos"):
        (folder / f"dash_benchmark_{side}.json").write_text(json.dumps({"coco": {"bed": images}}))
    return {
        f"{side}/bed/{image}": "Yes" if side == "pos" or i % 3 == 0 else "No" for side in ("neg", "pos") for i, image in enumerate(images)
    }


def write_naturalbench(folder: Path) -> dict[str, str]:
    folder.mkdir()
    places = [(i, q, k) for i in range(NUM_IMAGES) for q in (0, 1) for k in (0, 1)]
    rows = [[f"Is it {q}?", f"{i}_{k}.jpg", "Yes" if q == k else "No", "yes_no"] for i, q, k in places]
    (folder / "test_set.json").write_text(json.dumps(rows))
    return {str(n): row[2] if n >= 4 else "Yes" for n, row in enumerate(rows)}


def write_haloquest(folder: Path) -> dict[str, str]:
    words = ["correct" if i else "incorrect" for i in range(NUM_IMAGES)]
    write_rows(folder.parent / "judgements.jsonl", [{"id": str(i), "judgement": word} for i, word in enumerate(words)])
    folder.mkdir()
    header = ",image_name,image type,hallucination type,question,groundtruth responses,split\n"
    rows = [f"{i},{i}.png,real,false premises,What is it?,Nothing,eval\n" for i in range(NUM_IMAGES)]
    (folder / "haloquest-eval.csv").write_text(header + "".join(rows))
    return {str(i): "red" for i in range(NUM_IMAGES)}


def write_hallusionbench(folder: Path) -> dict[str, str]:
    names = [(f"{i}", figure) for i in range(NUM_IMAGES) for figure in ("1", "2")]
    rows = [
        {"category": "VS", "subcategory": "chart", "set_id": i, "figure_id": figure, "question_id": "0", "visual_input": figure,
         "filename": f"./{i}_{figure}.png", "question": "Is it first?", "gt_answer": str(2 - int(figure)),
         "gt_answer_details": "It is."}
        for i, figure in names
    ]  # fmt: skip
    folder.mkdir()
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    return {f"VS_chart_{i}_{figure}_0": "Yes" if figure == "1" or int(i) % 3 else "No" for i, figure in names}


def write_amber(folder: Path) -> dict[str, str]:
    folder.mkdir()
    kinds = ("discriminative-hallucination", "discriminative-attribute-state")
    rows = [{"id": i, "type": kinds[i % 2], "truth": "no"} for i in range(2 * NUM_IMAGES)]
    (folder / "annotations.json").write_text(json.dumps(rows))
    asked = [{"id": row["id"], "image": f"AMBER_{row['id'] // 2}.jpg", "query": "Is it so?"} for row in rows]
    (folder / "query_all.json").write_text(json.dumps(asked))
    return {str(row["id"]): "No" if row["id"] % 3 else "Yes" for row in rows}


def write_mmhal(folder: Path) -> dict[str, str]:
    write_rows(folder.parent / "judgements.jsonl", [{"id": f"im{i}", "judgement": f"Rating: {i}"} for i in range(NUM_IMAGES)])
    folder.mkdir()
    rows = [
        {"question_type": "other", "image_id": f"im{i}", "image_content": ["Dog"], "question": "What is it?", "gt_answer": "A dog.",
         "image_src": f"http://host/{i}.jpg"}
        for i in range(NUM_IMAGES)
    ]  # fmt: skip
    (folder / "mmhal-bench_answer_template.json").write_text(json.dumps(rows))
    return {f"im{i}": "A cat." for i in range(NUM_IMAGES)}


@pytest.mark.parametrize(
    ("name", "write", "row", "num_wrong"),
    [
        ("mme", write_mme, "Total ↑ | 125 (", 3),
        ("mmvp", write_mmvp, "Pairs with both right ↑ | 50.0 (", 3),
        ("repope", write_repope, "Pope: Accuracy ↑ | 50.0 (", 3),
        ("dash-b", write_dash_b, "Harmonic mean of both ↑ | 80.0 (", 2),
        ("naturalbench", write_naturalbench, "Samples with all four right ↑ | 83.3 (", 2),
        ("haloquest", write_haloquest, "Answers judged correct ↑ | 83.3 (", 1),
        ("hallusionbench", write_hallusionbench, "Question pairs all right (qAcc) ↑ | 33.3 (", 4),
        ("amber", write_amber, "F1 of no ↑ | 80.0 (", 4),
        ("mmhal", write_mmhal, "Rating by the judge, 0 to 6 ↑ | 2.5 (", 3),
    ],
)
def test_intervals_and_wrong_answers(tmp_path: Path, name: str, write: Any, row: str, num_wrong: int) -> None:
    answers = write(tmp_path / "data")
    saved = write_rows(tmp_path / "answers.jsonl", [{"id": i, "response": text} for i, text in answers.items()])
    judged = ["--judgements", str(tmp_path / "judgements.jsonl")] if name in ("mmhal", "haloquest") else []
    data = str(tmp_path / "data")
    assert main(["evaluate", name, "--data", data, "--answers", str(saved), "--out", str(tmp_path / "run"), *judged]) == 0
    assert main(["report", "eval", str(tmp_path / "run"), "--out", str(tmp_path / "report"), "--resamples", "200"]) == 0
    assert row in (tmp_path / "report" / "report.md").read_text()
    html = (tmp_path / "report" / "report.html").read_text()
    (summary,) = Page(html).texts("summary")
    assert summary.endswith(f"wrong in all: run {num_wrong}")
    assert "no intervals" not in html
