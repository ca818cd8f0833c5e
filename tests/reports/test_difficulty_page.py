"""The page of difficulty scores: marks, edges, and the command on files as scoring leaves them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from mmalign.cli import main
from mmalign.reports.difficulty_page import mark_differences
from mmalign.reports.difficulty_plots import gap_edges
from mmalign.reports.gallery import Piece
from tests.data_files import encoded, save_encoded, save_rows
from tests.reports.html_page import check_self_contained
from tests.tiny_models import pair_rows

NUM_PAIRS = 40


def scored_folder(folder: Path, **changes: Any) -> Path:
    """As ``score-difficulty`` leaves it, with answers that would be markup."""
    rows = []
    for i, row in enumerate(pair_rows(NUM_PAIRS)):
        gaps = {"gap_contrastive": float(i - 10), "gap_generative": float((7 * i) % NUM_PAIRS - 12)}
        rows.append({**row, "source": "<b>web</b>", **gaps, "difficulty": 1 - (i + 0.5) / NUM_PAIRS, **changes})
    rows[NUM_PAIRS - 1]["chosen"] = [{"role": "assistant", "content": "a <script>alert(1)</script> & more"}]
    statistics = {name: {"mean": 1.0, "std": 2.0, "accuracy": 0.7, "weight": 0.5} for name in ("contrastive", "generative")}
    agreement = [{"proxies": ["contrastive", "generative"], "sign_agreement": 0.625, "kappa": None, "rank_correlation": 0.25}]
    source = {"num_pairs": NUM_PAIRS, "mean_difficulty": 0.5, "accuracy": {"contrastive": 0.7, "generative": 0.7}}
    sources = {"<b>web</b>": {**source, "proxy_agreement": agreement}}
    summary = {"weighting": "accuracy", "statistics": {"all": statistics}, "proxy_agreement": agreement, "sources": sources}
    folder.mkdir()
    save_rows(folder / "scored.parquet", rows)
    (folder / "difficulty.json").write_text(json.dumps({**summary, "num_scored": NUM_PAIRS, "num_rejected": 1}))
    return folder


def test_words_of_one_answer_alone_are_marked() -> None:
    chosen, rejected = mark_differences("A red moon and a star.", "A red heart and a star, a ring.")
    assert chosen == [Piece("A red ", "plain"), Piece("moon", "right"), Piece(" and a star.", "plain")]
    assert rejected == [
        Piece("A red ", "plain"),
        Piece("heart", "wrong"),
        Piece(" and a star, ", "plain"),
        Piece("a ring", "wrong"),
        Piece(".", "plain"),
    ]


def test_answers_without_words_have_no_marks() -> None:
    assert mark_differences("...", "!") == ([Piece("...", "plain")], [Piece("!", "plain")])


@pytest.mark.parametrize("gaps", [[-3.0, -1.0, 2.0, 7.0], [0.5, 1.0, 1.5], [-2.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
def test_bars_meet_at_zero_and_hold_every_gap(gaps: list[float]) -> None:
    edges = gap_edges(np.array(gaps))
    assert 0.0 in edges
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
    counts, _ = np.histogram(np.clip(gaps, edges[0], edges[-1]), edges)
    assert counts.sum() == len(gaps)
    assert len(edges) < 50


def test_page_shows_evenly_spaced_pairs_and_every_text_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page = scored_folder(tmp_path / "scores"), tmp_path / "pages" / "d.html"
    assert main(["report", "difficulty", str(folder), "--out", str(page), "--num-pairs", "4"]) == 0
    html = page.read_text()
    # Of 40 ranks the first, the last, and two between; the last row is the easiest.
    order = [html.index(f"Rank {rank}<") for rank in (1, 14, 27, 40)]
    assert order == sorted(order)
    assert html.count("data:image/png;base64,") == 4
    assert html.index("pair-39 ") < html.index("pair-26 ") < html.index("pair-13 ") < html.index("pair-0 ")
    assert "<script" not in html
    assert "&lt;b&gt;web&lt;/b&gt;" in html
    assert "alert" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "preferred by the contrastive proxy on 72.5% and by the generative proxy on 67.5%" in html
    assert html.count("<svg") == 4
    first = page.read_bytes()
    assert main(["report", "difficulty", str(folder), "--out", str(page), "--num-pairs", "4"]) == 0
    assert page.read_bytes() == first


def test_groups_of_another_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows 0 to 9 have the difficulties 1 - 0.5/40 to 1 - 9.5/40, in the mean 1 - 5/40; the gap is above zero from row 11 on."""
    folder = scored_folder(tmp_path / "scores")
    rows = [
        {**row, "kind": "first" if index < 10 else None} for index, row in enumerate(Dataset.from_parquet(str(folder / "scored.parquet")))
    ]
    save_encoded(folder / "scored.parquet", [encoded(row) for row in rows])
    words = ["report", "difficulty", str(folder), "--out", str(tmp_path / "d.html")]
    assert main([*words, "--group-by", "kind"]) == 0
    page = check_self_contained((tmp_path / "d.html").read_text())
    assert "By kind" in page.texts("h2")
    rows = page.texts("tr")
    assert [row for row in rows if row.startswith("first" + "10" + "0.875" + "0.0")]
    assert [row for row in rows if row.startswith("all" + "30")]
    assert main([*words, "--group-by", "nothing"]) == 2
    assert "--group-by is 'nothing'; the pairs have the columns " in capsys.readouterr().err


def test_an_image_that_has_gone_leaves_the_pair(tmp_path: Path) -> None:
    folder = scored_folder(tmp_path / "scores")
    rows = [
        {**encoded(row), "images": [{"bytes": None, "path": "gone.png"}]} for row in Dataset.from_parquet(str(folder / "scored.parquet"))
    ]
    save_encoded(folder / "scored.parquet", rows)
    assert main(["report", "difficulty", str(folder), "--out", str(tmp_path / "d.html"), "--num-pairs", "3"]) == 0
    assert (tmp_path / "d.html").read_text().count("image not at hand") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--num-pairs", "0"], "num_pairs is 0; expected 1 or more"), (["--image-root", "nowhere"], "no folder of images at nowhere")],
)
def test_options_that_cant_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["report", "difficulty", str(scored_folder(tmp_path / "scores")), "--out", str(tmp_path / "d.html"), *words]) == 2
    assert message in capsys.readouterr().err


def test_folders_that_hold_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", "difficulty", str(tmp_path / "scores"), "--out", str(tmp_path / "d.html")]
    assert main(words) == 2
    assert "no scored.parquet in" in capsys.readouterr().err
    record = scored_folder(tmp_path / "scores") / "difficulty.json"
    held = json.loads(record.read_text())
    record.write_text(json.dumps({**held, "num_scored": 3}))
    assert main(words) == 2
    assert "scored.parquet has 40 pairs and difficulty.json 3; run mmalign fuse-difficulty again" in capsys.readouterr().err
    record.write_text(json.dumps({key: value for key, value in held.items() if key != "proxy_agreement"}))
    assert main(words) == 2
    assert "is from an earlier version and has no agreement of proxies" in capsys.readouterr().err
