"""``mmalign report eval`` from folders as ``mmalign evaluate`` writes them, on real photographs where they are at hand."""

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.evaluation.benchmark import compute_metrics
from mmalign.evaluation.intervals import compute_intervals
from mmalign.evaluation.items import Item, items_path, read_items, write_items
from mmalign.evaluation.pope import Pope, PopeQuestion
from mmalign.evaluation.results import SCORER_VERSION, Result
from tests.reports.html_page import HOSTILE, Page, check_self_contained
from tests.tiny_models import random_image

NUM_IMAGES = 12


def build_questions() -> list[PopeQuestion]:
    return [
        PopeQuestion(f"{split}/{i}", split, f"{i // 2}.png", f"Is there a thing {i}?", i % 2 == 0)
        for split in ("random", "popular")
        for i in range(2 * NUM_IMAGES)
    ]


def write_results(folder: Path, *, share: float, seed: int = 0, suffix: str = "", **changes: Any) -> Path:
    """Results and scored answers of a model that is right with this probability."""
    rng = Random(seed)
    questions = build_questions()
    answers = {q.id: ("Yes" if q.is_yes == (rng.random() < share) else "No") + suffix for q in questions}
    items = Pope([], questions).items(answers, mode="official")
    folder.mkdir(parents=True)
    metrics = compute_metrics(Pope, items) | {"pope/always_no/f1": 0.0}
    result = Result(
        benchmark="pope",
        metrics=metrics,
        mode="official",
        num_answers=len(items),
        data={"pope_random.jsonl": "a" * 64},
        model="runs/x",
        decoding={"max_new_tokens": 9},
    )
    dataclasses.replace(result, **changes).write(folder / "pope.json")
    write_items(items_path(folder, "pope"), items)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for image in range(NUM_IMAGES):
        random_image(image, (400, 300)).save(tmp_path / f"{image}.png")
    return [write_results(tmp_path / "sft", share=0.6), write_results(tmp_path / "dpo", share=0.9, seed=1)]


def report(folders: list[Path], out: Path, *words: str) -> int:
    return main(["report", "eval", *map(str, folders), "--out", str(out), "--resamples", "200", *words])


def test_report_holds_the_results(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(folders, tmp_path / "out", "--images", str(tmp_path), "--max-wrong", "5") == 0
    items = [read_items(items_path(folder, "pope")) for folder in folders]
    table = (tmp_path / "out" / "report.md").read_text()
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["sft", "dpo"]
    assert printed.splitlines()[1] == "POPE: is there a ...?, 48 answers per model"
    assert "Random" not in printed, "groups are in the files"
    for those in items:
        interval = compute_intervals(Pope, those, resamples=200)["pope/f1"]
        ends = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
        assert f"{100 * interval.value:.1f} ({ends})" in table.replace("**", "").replace(" †", "")
    assert (tmp_path / "out" / "report.csv").read_text().startswith("metric,sft,sft low,sft high,dpo,dpo low,dpo high\npope/accuracy,")
    page = check_self_contained((tmp_path / "out" / "report.html").read_text())
    assert page.texts("p", **{"class": "headline"}) == [f"Accuracy: {first(items[0])} with sft and {first(items[1])} with dpo."]
    assert page.texts("li")[0].startswith("dpo against sft, POPE: better in accuracy (")
    assert page.texts("th", scope="col") == ["Metric", "sft", "dpo"]
    assert "Always no: F1 0.0" in page.texts("th")
    num_wrong = [sum(item.correct is False for item in those) for those in items]
    (summary,) = page.texts("summary")
    assert summary.endswith(f"wrong in all: sft {num_wrong[0]}, dpo {num_wrong[1]}")
    cards = [has["class"].split() for tag, has, _ in page.elements if tag == "article"]
    shown = [sum(f"wrong-{index}" in classes for classes in cards) for index in range(2)]
    assert all(number >= 5 for number in shown[:1])
    assert min(num_wrong[1], 5) <= shown[1]
    correct = [{item.id: item.correct for item in those} for those in items]
    captions = page.texts("figcaption")
    for classes, caption in zip(cards, captions, strict=True):
        identifier = caption.split(" · ")[0]
        assert [f"wrong-{index}" in classes for index in range(2)] == [not by_id[identifier] for by_id in correct]
    assert all(value.startswith("data:image/jpeg;base64,") for _, value in page.attributes("src"))
    assert len(page.attributes("src")) == len(cards) == len(captions)
    drawing = next(alt for tag, alt in page.attributes("aria-label") if tag == "svg")
    assert drawing.startswith("POPE: is there a ...?, percent. Accuracy: sft ")


def first(items: list[Item]) -> str:
    return f"{100 * compute_metrics(Pope, items)['pope/accuracy']:.1f}%"


def test_same_results_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    pages = []
    for out in (tmp_path / "a", tmp_path / "b"):
        assert report(folders, out) == 0
        pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_search_is_named(tmp_path: Path) -> None:
    decoding = {"num_beams": 5, "length_penalty": 0.0}
    folders = [write_results(tmp_path / name, share=share, decoding=decoding) for name, share in (("a", 0.5), ("b", 0.7))]
    assert report(folders, tmp_path / "out") == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "mode official, 5 beams, length penalty 0.0, scorer" in html
    assert "settings differ" not in html


def test_hostile_words_stay_words(folders: list[Path], tmp_path: Path) -> None:
    hostile = [write_results(tmp_path / "h", share=0.5, suffix=f" {HOSTILE}", model=HOSTILE, data={HOSTILE: "b"}, decoding={HOSTILE: 1})]
    rows = read_items(items_path(hostile[0], "pope"))
    changed = [
        dataclasses.replace(item, question=HOSTILE, label=HOSTILE, image=item.image + HOSTILE, id=f"{item.id}{HOSTILE}") for item in rows
    ]
    write_items(items_path(hostile[0], "pope"), changed)
    assert report(hostile, tmp_path / "out", "--names", HOSTILE, "--title", HOSTILE) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    page = check_self_contained(html)
    assert page.texts("h1") == [HOSTILE]
    assert HOSTILE in page.texts("dd")[0]
    assert page.texts("p", **{"class": "asked"})[0] == HOSTILE


def test_filters_have_their_cards_and_links_their_pages(folders: list[Path], tmp_path: Path) -> None:
    assert report(folders, tmp_path / "out", "--links", str(tmp_path / "difficulty.html"), str(tmp_path / "out" / "my_log.html")) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    links = Page(html)
    assert [value for tag, value in links.attributes("href") if tag == "a"] == ["../difficulty.html", "my_log.html"]
    assert links.texts("a") == ["Difficulty", "My log"]
    for index in range(2):
        assert f"details:has(.only-{index}:checked) .scene:not(.wrong-{index}) {{ display: none; }}" in html
        assert f'class="only-{index}"' in html


def test_what_differs_beside_the_model_is_said(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_results(tmp_path / "other", share=0.7, decoding={"max_new_tokens": 64})
    items_path(other, "pope").unlink()
    assert report([*folders, other], tmp_path / "out") == 0
    notes = Page((tmp_path / "out" / "report.html").read_text()).texts("div", **{"class": "card notes"})[0]
    assert 'pope: the decoding settings differ: sft: {"max_new_tokens": 9};' in notes
    assert "pope: no intervals and wrong answers of other" in notes
    for text in (capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()):
        assert '- pope: the decoding settings differ: sft: {"max_new_tokens": 9};' in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "strict"}, "sft and other can't be compared, they differ in mode: official and strict"),
        ({"data": {"pope_random.jsonl": "b" * 64}}, "they differ in data: "),
        ({"scorer_version": "0"}, f"they differ in scorer_version: {SCORER_VERSION} and 0"),
    ],
)
def test_results_that_can_not_stand_side_by_side(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    other = write_results(tmp_path / "other", share=0.6, **changes)
    assert report([*folders, other], tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_results(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "empty"], "no results in"),
        ([folders[0], folders[0]], "2 folders and the names sft, sft; give each its own name with --names"),
    ):
        assert report(words, tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty" / "pope.json").write_text("{broken")
    assert report([tmp_path / "empty"], tmp_path / "out") == 2
    assert "pope.json is damaged" in capsys.readouterr().err
    assert report(folders, tmp_path / "out", "--images", str(tmp_path / "nowhere")) == 2
    assert "no folder of images at" in capsys.readouterr().err


def test_images_outside_the_folder_are_not_shown(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = items_path(folders[0], "pope")
    rows: list[Item] = [dataclasses.replace(item, image="../secret.png") for item in read_items(path)]
    write_items(path, rows)
    random_image(0).save(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    assert report(folders, tmp_path / "out", "--images", str(tmp_path / "images")) == 2
    assert "leaves the image root" in capsys.readouterr().err


def test_numbers_in_csv_are_those_of_the_results(folders: list[Path], tmp_path: Path) -> None:
    assert report(folders, tmp_path / "out") == 0
    metrics = json.loads((folders[0] / "pope.json").read_text())["metrics"]
    lines = [line.split(",") for line in (tmp_path / "out" / "report.csv").read_text().splitlines()[1:]]
    assert {line[0]: float(line[1]) for line in lines} == {key: value for key, value in metrics.items() if "always" not in key}
