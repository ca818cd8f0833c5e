"""Files to data sets, broken rows to the rejects file."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value

from mmalign.data.datasets import keep_good_rows, load_rows
from mmalign.data.rejects import Rejects
from mmalign.data.rows import read_pair
from tests.tiny_models import pair_rows


def save_pairs(path: Path, num_rows: int, broken: int | None = None) -> None:
    dataset = Dataset.from_list(pair_rows(num_rows), features=None).cast_column("images", List(Image()))
    rows = [dict(row) for row in dataset.cast_column("images", List(Image(decode=False)))]
    if broken is not None:
        rows[broken]["images"] = [{"bytes": b"junk", "path": None}]
    Dataset.from_list(rows).cast_column("images", List(Image())).to_parquet(path)


def test_a_broken_image_costs_one_row(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.parquet", 6, broken=2)
    dataset = load_rows(tmp_path / "pairs.parquet")
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.5)
    good = keep_good_rows(dataset, lambda raw, index: read_pair(raw, index=index), rejects=rejects)
    assert good["id"] == ["pair-0", "pair-1", "pair-3", "pair-4", "pair-5"]
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert lines == [{"id": "pair-2", "reason": "image bytes is not an image that Pillow can read"}]


def test_too_many_broken_rows_stop_the_run(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.parquet", 6, broken=2)
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.1)
    with pytest.raises(ValueError, match=r"1 of 6 rows are broken, more than the tolerated share of 10.0%; read the reasons in"):
        keep_good_rows(load_rows(tmp_path), lambda raw, index: read_pair(raw, index=index), rejects=rejects)


def test_jsonl_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    assert load_rows(tmp_path / "rows.jsonl").column_names == ["prompt", "chosen", "rejected"]


def test_no_files_and_no_rows_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data at .*: expected a .parquet, .json, .jsonl file, or a folder of them"):
        load_rows(tmp_path)
    Dataset.from_dict({"prompt": []}, features=Features({"prompt": Value("string")})).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet has no rows"):
        load_rows(tmp_path / "empty.parquet")


def test_reject_share_must_be_a_share(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_share is 5; expected a share in \[0, 1\]"):
        Rejects(tmp_path / "rejects.jsonl", max_share=5)
