"""DASH-B: both readings by hand, the released lists, and the published answers' numbers to the last digit."""

import json
from pathlib import Path

import pytest

from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.dash_b import DashB, load_dash_b


@pytest.fixture
def bench(tmp_path: Path) -> DashB:
    (tmp_path / "dash_benchmark_neg.json").write_text(json.dumps({"coco": {"bed": ["1.png", "2.png"]}, "objects_365": {"tie": ["1.png"]}}))
    (tmp_path / "dash_benchmark_pos.json").write_text(json.dumps({"coco": {"bed": ["1.jpg"]}, "objects_365": {"tie": ["2.jpg"]}}))
    return load_dash_b(tmp_path)


def test_by_hand(bench: DashB) -> None:
    assert bench.required() == ["neg/bed/1.png", "neg/bed/2.png", "neg/tie/1.png", "pos/bed/1.jpg", "pos/tie/2.jpg"]
    first = bench.questions()[0]
    assert first.image == "neg/coco/bed/1.png"
    assert first.prompt == "Can you see a bed in this image? Please answer only with yes or no."
    answers = dict(zip(bench.required(), ["No", "Yes.", "I cannot tell.", "yes", "Possibly"], strict=True))
    got = bench.score(answers, mode="official")
    # The letters "no" in "cannot" are a no; "Possibly" is neither, and wrong.
    assert (got["dash_b/tnr"], got["dash_b/tpr"], got["dash_b/accuracy"]) == pytest.approx((2 / 3, 1 / 2, 3 / 5))
    assert got["dash_b/harmonic_mean"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    # Of the beds one of two and one of one; of the ties one and none.
    assert (got["dash_b/coco/harmonic_mean"], got["dash_b/objects_365/harmonic_mean"]) == (pytest.approx(2 / 3), 0)
    assert got["dash_b/unknown"] == 1
    strict = bench.score(answers, mode="strict")
    assert (strict["dash_b/tnr"], strict["dash_b/unknown"]) == (pytest.approx(1 / 3), 2)
    assert (got["dash_b/always_yes/accuracy"], got["dash_b/always_yes/harmonic_mean"], got["dash_b/always_no/accuracy"]) == (0.4, 0, 0.6)
    wrong = [(item.id, item.label) for item in bench.items(answers, mode="strict") if not item.correct]
    assert wrong == [("neg/bed/2.png", "no"), ("neg/tie/1.png", "no"), ("pos/tie/2.jpg", "yes")]


def test_the_published_answers_to_the_digit(shared_data: Path, tmp_path: Path) -> None:
    """PaliGemma-3b's answers are yes and no alone: of 1,341 without the object 354 no, of 1,341 with it 1,158 yes."""
    bench = load_dash_b(shared_data / "benchmarks" / "dash_b")
    assert (len(bench.records), sum(one.is_yes for one in bench.records)) == (2682, 1341)
    assert len({one.id.split("/")[1] for one in bench.records}) == 70
    rows, right = [], {"no": 354, "yes": 1158}
    for one in bench.records:
        _, name, file = one.id.split("/")
        truth, other = ("yes", "no") if one.is_yes else ("no", "yes")
        rows.append({"img_id": file, "object_name": name, "gt": truth, "response": truth if right[truth] else other})
        right[truth] -= right[truth] > 0
    (tmp_path / "answers.json").write_text(json.dumps([{**row, "answer": row["response"]} for row in rows], indent=4))
    read = read_answers(tmp_path / "answers.json", bench.form, order=bench.required(), texts=bench.texts(), parts=bench.parts())
    got = bench.score(match_answers(read, required=bench.required()), mode="official")
    names = ["accuracy", "tnr", "tpr", "harmonic_mean"]
    assert [got[f"dash_b/{name}"] for name in names] == [0.5637583892617449, 0.2639821029082774, 0.8635346756152126, 0.40435353858172646]
    assert got["dash_b/always_yes/accuracy"] == 0.5


def test_folders_and_refusals(tmp_path: Path, bench: DashB) -> None:
    assert bench.images_in(tmp_path) == tmp_path / "images"
    (tmp_path / "neg").mkdir()
    assert bench.images_in(tmp_path) == tmp_path
    (tmp_path / "dash_benchmark_pos.json").write_text(json.dumps({"coco": {"bed": "1.png"}}))
    with pytest.raises(ValueError, match=r"pos.json: coco/bed holds no list of image names; expected source -> object -> names"):
        load_dash_b(tmp_path)
    (tmp_path / "dash_benchmark_pos.json").write_text(json.dumps({"coco": {"bed": ["1.png", "1.png"]}}))
    with pytest.raises(ValueError, match=r"holds 1 images of an object twice \(first: pos/bed/1.png\)"):
        load_dash_b(tmp_path)
    (tmp_path / "dash_benchmark_pos.json").unlink()
    with pytest.raises(ValueError, match=r"lacks DASH-B's lists of images: expected one file dash_benchmark_pos.json, found none"):
        load_dash_b(tmp_path)
