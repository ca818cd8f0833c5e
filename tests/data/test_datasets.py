"""Files to data sets, broken rows to the rejects file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Sequence, Value

from mmalign.data.checking import keep_good_rows
from mmalign.data.datasets import add_columns, find_data_files, load_rows
from mmalign.data.rejects import Rejects
from mmalign.data.rows import read_chat, read_pair
from mmalign.errors import UserError
from tests.formats.pictures import PICTURES
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


@pytest.mark.parametrize(
    "rows", [range(6), range(1, 4), [0, 1, 3, 4, 5], [5, 0, 3], []], ids=["all", "a part", "but one", "in another order", "none"]
)
def test_columns_are_added_without_a_copy_of_the_rows(rows: list[int], tmp_path: Path) -> None:
    """As datasets adds them, which writes selected rows to its cache for that, with their images."""
    save_pairs(tmp_path / "pairs.parquet", 6)
    whole = load_rows(tmp_path / "pairs.parquet")
    cache, chosen = Path(whole.cache_files[0]["filename"]).parent, whole.select(rows)
    before = {path.name for path in cache.iterdir()}
    added = add_columns(chosen, {"weight": np.arange(len(rows)) / 2, "id": [str(row) for row in rows]})
    assert {path.name for path in cache.iterdir()} == before
    expected = chosen.remove_columns("id").add_column("weight", np.arange(len(rows)) / 2).add_column("id", [str(row) for row in rows])
    assert added.features == expected.features
    assert added[:] == expected[:]
    if not rows:
        return
    # Again, on top of what was added, and after another selection.
    again = add_columns(added.select([2, 0]), {"weight": [True, False]})
    assert (again["weight"][:], again["id"][:]) == ([True, False], [str(rows[2]), str(rows[0])])


def test_text_that_is_no_utf8_costs_one_row(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "prompt": "what is it", "chosen": "a dog", "rejected": "a cat"}) for i in range(3)]
    lines[1] = lines[1].replace("dog", "caf\\u00e9")
    (tmp_path / "pairs.jsonl").write_bytes("\n".join(lines).replace("\\u00e9", "\u00e9").encode("latin-1"))
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.5)
    good = keep_good_rows(load_rows(tmp_path / "pairs.jsonl"), lambda raw, index: read_pair(raw, index=index), rejects=rejects)
    assert good["id"] == [0, 2]
    (line,) = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "1"
    assert "the row holds text that is no UTF-8" in line


@pytest.mark.parametrize("features", [{"chosen": 5}, ["chosen"], {"chosen": {"_type": "List"}}, {"chosen": {"_type": "Picture"}}])
def test_a_schema_of_unknown_types_is_refused(features: object, tmp_path: Path) -> None:
    table = pa.table({"chosen": ["a"]}).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=f"{tmp_path}/pairs.parquet (has a schema that|can't be read as parquet: Feature type 'Picture')"):
        load_rows(tmp_path / "pairs.parquet")


def test_too_many_broken_rows_stop_the_run(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.parquet", 6, broken=2)
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.1)
    with pytest.raises(
        ValueError,
        match=r"1 of 6 rows are broken, more than the tolerated share of 10.0%; .* The first is row pair-2: image bytes",
    ):
        keep_good_rows(load_rows(tmp_path), lambda raw, index: read_pair(raw, index=index), rejects=rejects)


def test_jsonl_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    assert load_rows(tmp_path / "rows.jsonl").column_names == ["prompt", "chosen", "rejected"]


def test_no_files_and_no_rows_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data at .*: expected a .parquet, .json, .jsonl file, or a folder of them"):
        load_rows(tmp_path)
    with pytest.raises(ValueError, match=r"no data at .*lost.jsonl, where nothing is: expected a .parquet"):
        load_rows(tmp_path / "lost.jsonl")
    (tmp_path / "pointer.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6\n")
    with pytest.raises(ValueError, match="pointer.jsonl is a Git LFS pointer, not the file itself: run 'git lfs pull'"):
        load_rows(tmp_path / "pointer.jsonl")
    Dataset.from_dict({"prompt": []}, features=Features({"prompt": Value("string")})).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet has no rows"):
        load_rows(tmp_path / "empty.parquet")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
            "splits: test-.*, train-00001-of-00002",
        ),
        (["train.jsonl", "validation.jsonl"], "several splits: train.jsonl, validation.jsonl; name one of them"),
        (["Train.json", "val_2014.json"], "several splits: Train.json, val_2014.json"),
        (["data/train.jsonl", "images/readme.txt"], "no data at .*; name one of its folders: data, images"),
        (["1.jsonl", "2.jsonl.gz"], "2.jsonl.gz is packed; unpack it"),
    ],
)
def test_folders_that_are_not_read_as_one_set(names: list[str], reason: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=reason):
        load_rows(tmp_path)


def test_files_of_one_split_are_one_set(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "trains.jsonl", "evaluate_me.jsonl", "tests_of_sight.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    assert load_rows(tmp_path)["prompt"] == ["a"] * 5


@pytest.mark.parametrize("folder", ["a[b]", "a*", "a?"])
def test_a_path_is_no_pattern(folder: str, tmp_path: Path) -> None:
    # Each of them, as a pattern, is the other folder too.
    for number, name in enumerate((folder, "ab"), start=1):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"prompt": ["a"] * number}), tmp_path / name / "pairs.parquet")
    assert len(load_rows(tmp_path / folder / "pairs.parquet")) == 1


def test_names_in_capitals_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "1.PARQUET")
    (tmp_path / "2.JSONL").write_text('{"prompt": "b"}\n')
    (tmp_path / "3.json").write_text('[{"prompt": "c"}]')
    assert load_rows(tmp_path)["prompt"] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl"])
def test_a_cache_that_can_not_be_written_is_not_the_files_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"prompt": ["a"]})
    rows.to_parquet(tmp_path / name) if name.endswith("parquet") else rows.to_json(tmp_path / name)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(
        OSError, match=f"file/cache can't hold what is read of .*{name}: .*Not a directory: .*; free space, or set HF_DATASETS"
    ):
        load_rows(tmp_path / name)


def test_what_a_system_leaves_beside_the_files_is_no_data(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.parquet", 2)
    for name in ("._pairs.parquet", ".pairs.jsonl.swp", "._1.jsonl"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert [path.name for path in find_data_files(tmp_path)] == ["pairs.parquet"]


def test_a_folder_of_save_to_disk_is_refused_by_name(tmp_path: Path) -> None:
    dataset = Dataset.from_list([{"prompt": "what is it", "chosen": "a dog", "rejected": "a cat"}])
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict(train=dataset).save_to_disk(tmp_path / "splits")
    for folder in (tmp_path / "one", tmp_path / "splits", tmp_path / "splits" / "train"):
        with pytest.raises(ValueError, match=f"{folder} was written by save_to_disk of datasets; write each split .* to_parquet"):
            load_rows(folder)


def test_no_image_as_parquet_of_other_programs_has_it(tmp_path: Path) -> None:
    words = {"prompt": ["what is it"] * 3, "chosen": ["a dog"] * 3, "rejected": ["a cat"] * 3}
    images = [{"bytes": PICTURES["a.png"], "path": None}, {"bytes": None, "path": None}, None]
    pq.write_table(pa.table({"image": images, **words}), tmp_path / "pairs.parquet")
    rows = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "pairs.parquet"))]
    assert [len(row.images) for row in rows] == [1, 0, 0]


def test_messages_that_datasets_stored_key_by_key(tmp_path: Path) -> None:
    turns = Features({"conversations": Sequence({"from": Value("string"), "value": Value("string")})})
    said = [{"from": ["human", "gpt"], "value": ["what is it", "a dog"]}, {"from": ["human", "gpt"], "value": ["and this", "a cat"]}]
    Dataset.from_dict({"conversations": said}, features=turns).to_parquet(tmp_path / "chats.parquet")
    rows = [read_chat(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "chats.parquet"))]
    assert [[(m["role"], m["content"][0]["text"]) for m in row.messages] for row in rows] == [
        [("user", "what is it"), ("assistant", "a dog")],
        [("user", "and this"), ("assistant", "a cat")],
    ]


def test_reject_share_must_be_a_share(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_share is 5; expected a share in \[0, 1\]"):
        Rejects(tmp_path / "rejects.jsonl", max_share=5)


USER = {"role": "user", "content": "What is it?"}
IN_PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
SYSTEM = {"role": "system", "content": "Be brief."}
MIXED = {
    "in parts": [[IN_PARTS], [IN_PARTS]],
    "parts and text": [[IN_PARTS], [USER], "What is it?"],
    "system in text, user in parts": [[SYSTEM, IN_PARTS], [SYSTEM, USER]],
    "plain": ["What is it?", "What is it?"],
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("prompts", MIXED.values(), ids=MIXED)
def test_messages_in_any_mixture_of_forms(prompts: list[Any], suffix: str, tmp_path: Path) -> None:
    rows = [
        {"id": i if i else "first", "images": ["a.png"] if i else "a.png", "prompt": prompt, "chosen": "a dog", "rejected": "a cat"}
        for i, prompt in enumerate(prompts)
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        Dataset.from_json(str(lines)).to_parquet(path)
    else:
        path.write_text(lines.read_text() if suffix == "jsonl" else json.dumps(rows))
    (tmp_path / "a.png").write_bytes(PICTURES["a.png"])
    for index, (raw, prompt) in enumerate(zip(load_rows(path), prompts, strict=True)):
        row = read_pair(raw, index=index, image_root=tmp_path)
        words = [part["text"] for message in row.prompt for part in message["content"] if part["type"] == "text"]
        assert words == [*(["Be brief."] if prompt[0] == SYSTEM else []), "What is it?"]
        assert (len(row.images), row.chosen, row.id) == (1, "a dog", str(index) if index else "first")


def test_files_of_different_forms_in_one_folder(tmp_path: Path) -> None:
    same = {"images": ["a.png"], "chosen": "a dog", "rejected": "a cat"}
    (tmp_path / "a.png").write_bytes(PICTURES["a.png"])
    (tmp_path / "1.jsonl").write_text(json.dumps({"id": 1, "prompt": [IN_PARTS], **same}) + "\n")
    (tmp_path / "2.jsonl").write_text(json.dumps({"id": "b", "prompt": "What is it?", **same, "source": "hand"}) + "\n")
    rows = [read_pair(raw, index=i, image_root=tmp_path) for i, raw in enumerate(load_rows(tmp_path))]
    assert [(row.id, row.source, row.prompt) for row in rows] == [("1", "all", [IN_PARTS]), ("b", "hand", [IN_PARTS])]
    save_pairs(tmp_path / "3.parquet", 2)
    with pytest.raises(ValueError, match="hold column images in forms that don't go together"):
        load_rows(tmp_path)


def test_other_features_stay_encoded(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.parquet", 1)
    features = load_rows(tmp_path / "pairs.parquet").features
    assert features["images"] == List(Image(decode=False))
