"""Converters: each set's own schema to the expected pairs, and what comes out is what training takes."""

import base64
import codecs
import json
import math
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from data_tools.convert_pairs import main
from data_tools.rated_sets import VLFEEDBACK_ASPECTS
from data_tools.records import JSON_CHUNK, list_files, read_records
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.rows import PairRow, read_pair
from mmalign.models.contrastive import build_clip
from mmalign.worlds.tokenizer import train_tokenizer
from tests.data_files import encoded, save_encoded
from tests.data_tools import sets
from tests.formats.form import Form, save_form
from tests.formats.rows import PAIRS
from tests.tiny_models import pair_rows


def convert(tmp_path: Path, set_name: str, file: Path, *words: str, root: Path | None = None) -> list[PairRow]:
    where = [] if root is None else ["--image-root", str(root)]
    assert main([set_name, str(file), "--out", str(tmp_path / "out"), *where, *words]) == 0
    return [read_pair(row, index=i, image_root=root) for i, row in enumerate(load_rows(tmp_path / "out" / "pairs"))]


def texts(row: PairRow) -> tuple[str, list[str], str, str]:
    prompt = ["".join(part.get("text", "<image>") for part in message["content"]) for message in row.prompt]
    return row.source, prompt, row.chosen, row.rejected


def save_json(path: Path, rows: Any) -> Path:
    lines = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows, indent=1)
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["bpo.json", "bpo.jsonl"])
def test_bpo(tmp_path: Path, name: str) -> None:
    root = sets.save_images(tmp_path / "images", "coco/train2017/000000000009.jpg", "coco/train2017/000000000010.jpg")
    rows = convert(tmp_path, "bpo", save_json(tmp_path / name, sets.BPO), root=root)
    # Three completions of scores 1, 0, 0 make two pairs; the two of score 0 are equal, and so are the last record's.
    assert [texts(row) for row in rows] == [
        ("bpo/llm-hal", ["<image>What is on the table?"], "A red cup.", "A red cup and a dog."),
        ("bpo/mllm-hal", ["<image>What is on the table?"], "A red cup.", "Two blue cats."),
        ("bpo/mllm-hal", ["<image>Describe it."], "A road.", "A lake."),
    ]
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["counts"] == {"records": 3, "without_unequal_pair": 1, "too_long": 0, "pairs": 3, "rejected": 0}


@pytest.mark.parametrize(
    ("set_name", "record", "expected"),
    [
        ("rlhf-v", sets.RLHF_V, ("7", "rlhf-v/VQAv2", ["<image>What is he doing?"], "He runs.", "He swims.")),
        ("rlaif-v", sets.RLAIF_V, ("abc-1", "rlaif-v/VQAv2", ["<image>How many birds?"], "Two birds.", "Five birds.")),
        ("spa-vl", sets.SPA_VL, ("x_1.jpg", "spa-vl", ["<image>Is it safe?"], "No, it is not.", "Yes.")),
    ],
)
def test_sets_with_embedded_images(tmp_path: Path, set_name: str, record: list[dict[str, Any]], expected: tuple[Any, ...]) -> None:
    (row,) = convert(tmp_path, set_name, sets.save_with_images(tmp_path / "set.parquet", record))
    assert (row.id, *texts(row)) == expected
    (raw,) = load_rows(tmp_path / "out" / "pairs")
    assert raw["images"] == [record[0]["image"]], "the bytes are the set's own, not encoded again"


def test_vlfeedback(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "merged_images", "svit-detail-1.jpg")
    rows = convert(tmp_path, "vlfeedback", save_json(tmp_path / "vlfeedback_80k.jsonl", sets.VLFEEDBACK), root=root)
    # Means 7/3, 5, 5 and one without: the pair of equal means is none, nor is any with the unrated one.
    assert [(row.id, row.chosen, row.rejected) for row in rows] == [
        ("svit-detail-1/0-1", "Good.", "Bad."),
        ("svit-detail-1/0-2", "Also good.", "Bad."),
    ]


def test_vlfeedback_as_old_datasets_store_it(tmp_path: Path) -> None:
    """A sequence of structs became a struct of lists."""
    root = sets.save_images(tmp_path / "merged_images", "svit-detail-1.jpg")
    completions = sets.VLFEEDBACK[0]["completions"]
    columns = {key: [completion[key] for completion in completions] for key in completions[0]}
    file = save_json(tmp_path / "a.jsonl", [{**sets.VLFEEDBACK[0], "completions": columns}])
    assert [row.id for row in convert(tmp_path, "vlfeedback", file, root=root)] == ["svit-detail-1/0-1", "svit-detail-1/0-2"]


def test_llava_rlhf_keeps_the_conversation(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "train2017", "000000022564.jpg")
    (row,) = convert(tmp_path, "llava-rlhf", save_json(tmp_path / "llava_7b_v1_preference.json", sets.LLAVA_RLHF), root=root)
    assert texts(row) == ("llava-rlhf", ["<image>What is it?", "A bench.", "What colour?"], "Brown.", "Green, I think.")
    assert [message["role"] for message in row.prompt] == ["user", "assistant", "user"]


def test_povid(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    (row,) = convert(tmp_path, "povid", save_json(tmp_path / "POVID_preference_data_for_VLLMs.json", sets.POVID), root=root)
    assert (row.id, *texts(row)) == ("000000000077", "povid", ["<image>Describe."], "Boys skate.", "Boys skate with a dog.")


@pytest.mark.parametrize("form", ["messages", "text", "parts"])
def test_trl_rows_keep_their_form(tmp_path: Path, form: str) -> None:
    rows = [encoded(row) for row in pair_rows(3)]
    for row in rows:
        for name in ("prompt", "chosen", "rejected"):
            text = row[name][0]["content"]
            parts = ([{"type": "image", "text": None}] if name == "prompt" else []) + [{"type": "text", "text": text}]
            row[name] = {"messages": row[name], "text": text, "parts": [{"role": row[name][0]["role"], "content": parts}]}[form]
    convert(tmp_path, "trl", save_encoded(tmp_path / "trl.parquet", rows))
    got = list(load_rows(tmp_path / "out" / "pairs"))
    assert [{name: row[name] for name in ("id", "prompt", "chosen", "rejected", "images")} for row in got] == rows


@pytest.mark.parametrize(
    ("parts", "images"),
    [
        ([{"type": "image", "image": "b.jpg"}], []),
        ([{"type": "image"}, {"type": "image_url", "image_url": {"url": "b.jpg"}}], ["a.jpg"]),
        ([{"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0, "text": None}], ["a.jpg", "b.jpg"]),
    ],
)
def test_images_of_a_trl_rows_parts_keep_their_order(tmp_path: Path, parts: list[dict[str, Any]], images: list[str]) -> None:
    root = sets.save_images(tmp_path, "a.jpg", "b.jpg")
    row = {
        "images": images,
        "prompt": [{"role": "user", "content": [*parts, {"type": "text", "text": "Hm?"}]}],
        "chosen": "x",
        "rejected": "y",
    }
    expected = read_pair(row, index=0, image_root=root)
    (got,) = convert(tmp_path, "trl", save_json(tmp_path / "rows.jsonl", [row]), root=root)
    assert (got.prompt, [image.tobytes() for image in got.images]) == (expected.prompt, [image.tobytes() for image in expected.images])


SYSTEM_TEXT = PAIRS.forms[0].text.replace("{", '{"system": "Be brief.", ')
SYSTEM = replace(PAIRS.forms[0], title="A system prompt of its own", text=SYSTEM_TEXT)


@pytest.mark.parametrize("form", [SYSTEM, *(form for form in PAIRS.forms if form.file.startswith("pairs."))], ids=lambda form: form.title)
def test_every_form_that_training_reads_means_the_same_afterwards(tmp_path: Path, form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_form(form, tmp_path / "data")
    if form.refused:
        assert main(["trl", str(file), "--image-root", str(file.parent), "--out", str(tmp_path / "out")]) == 2
        assert form.refused in capsys.readouterr().err
        return
    (got,) = convert(tmp_path, "trl", file, root=file.parent)
    expected = read_pair(load_rows(file)[0], index=0, image_root=file.parent)
    assert replace(got, id="", source="") == replace(expected, id="", source="")


def test_columns_that_change_what_a_row_means_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"videos": ["a.mp4"], "prompt": "Hm?", "chosen": "a", "rejected": "b"}
    assert main(["trl", str(save_json(tmp_path / "rows.jsonl", [row])), "--out", str(tmp_path / "out")]) == 2
    assert "the row has videos: videos can't be read" in capsys.readouterr().err


def test_folders_are_read_as_those_of_training_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sets.save_images(tmp_path / "images", "a.jpg")
    (tmp_path / "hub").mkdir()
    row = {"image": "a.jpg", "prompt": "Hm?", "chosen": "a", "rejected": "b"}
    save_json(tmp_path / "hub" / "train.jsonl", [row])
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    assert len(convert(tmp_path, "trl", tmp_path / "hub", root=root)) == 1
    save_json(tmp_path / "hub" / "test.jsonl", [row])
    for file, message in (
        (tmp_path / "hub", "holds files of several splits: test.jsonl, train.jsonl"),
        (tmp_path / "pointer.json", "is a Git LFS pointer, not the file itself"),
        (tmp_path / "rows.csv", "expected a .parquet, .json, .jsonl file"),
        (tmp_path / "none.json", "where nothing is"),
    ):
        (tmp_path / "pointer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
        (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n")
        assert main(["trl", str(file), "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


def test_forms_are_not_mixed(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path, "a.jpg")
    first = {"image": "a.jpg", "prompt": "Hm?", "chosen": "a", "rejected": "b"}
    second = {**first, "prompt": [{"role": "user", "content": "Hm?"}]}
    file = save_json(tmp_path / "rows.jsonl", [first, second])
    assert len(convert(tmp_path, "trl", file, "--max-reject-share", "0.5", root=root)) == 1
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject == {
        "id": "rows.jsonl:2",
        "reason": "prompt is messages, where the first row's is text; convert the two kinds apart",
    }


def test_images_are_paths_or_bytes_as_asked(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    file = save_json(tmp_path / "povid.json", sets.POVID)
    convert(tmp_path, "povid", file, root=root)
    (raw,) = load_rows(tmp_path / "out" / "pairs")
    assert raw["images"] == [{"bytes": None, "path": "000000000077.jpg"}]
    assert main(["povid", str(file), "--image-root", str(root), "--embed-images", "--out", str(tmp_path / "bytes")]) == 0
    (raw,) = load_rows(tmp_path / "bytes" / "pairs")
    assert raw["images"] == [{"bytes": sets.jpeg(0), "path": "000000000077.jpg"}]
    file = save_json(tmp_path / "in_text.json", [{**sets.POVID[0], "image": base64.b64encode(sets.jpeg(0)).decode()}])
    assert main(["povid", str(file), "--embed-images", "--out", str(tmp_path / "in_text")]) == 0
    assert load_rows(tmp_path / "in_text" / "pairs")[0]["images"] == [{"bytes": sets.jpeg(0), "path": None}]
    # The embedded form is what plain datasets decodes.
    plain = load_dataset("parquet", data_files=str(tmp_path / "bytes" / "pairs" / "*.parquet"), split="train")
    assert plain[0]["images"][0].size == (32, 40)


BROKEN = {
    "missing image": ({"image": "nowhere.jpg"}, r"image not found: .*nowhere.jpg"),
    "image outside": ({"image": "../secret.jpg"}, r"image path '../secret.jpg' leaves the image root"),
    "no text": ({"rejected_conversations": None}, "no field rejected_conversations; the record has id, image, conversations"),
    "same": ({"rejected_conversations": sets.POVID[0]["conversations"]}, "chosen and rejected are the same text"),
    "apart earlier": (
        {"rejected_conversations": [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "x"}]},
        "differ before the last turn: there is no common prompt",
    ),
    "odd role": ({"conversations": [{"from": "robot", "value": "x"}]}, "a turn is from 'robot'; expected one of human, gpt"),
    "not a list": ({"conversations": "x"}, "field conversations is a str; expected list"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_record_costs_itself(tmp_path: Path, fault: str) -> None:
    change, reason = BROKEN[fault]
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    (tmp_path / "secret.jpg").write_bytes(sets.jpeg(1))
    file = save_json(tmp_path / "povid.json", [sets.POVID[0], {**sets.POVID[0], **change}])
    assert len(convert(tmp_path, "povid", file, "--max-reject-share", "0.5", root=root)) == 1
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert re.search(reason, reject["reason"])


def test_the_wrong_set_stops_with_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_json(tmp_path / "bpo.json", sets.BPO * 10)
    assert main(["vlfeedback", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "20 of 20 rows are broken" in capsys.readouterr().err
    reason = json.loads((tmp_path / "out.partial" / "rejects.jsonl").read_text().splitlines()[0])["reason"]
    assert reason == "no field id; the record has prompt, image, completions"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"b": ', "bpo.json is cut off or damaged after 1 records"),
        ('[{"a": 1} {]', "bpo.json is cut off or damaged after 1 records"),
        ("[", "bpo.json is cut off or damaged after 0 records"),
        ('[{"a": 1}, ' + "[" * 100_000, "bpo.json is nested too deeply after 1 records"),
    ],
)
def test_a_damaged_array_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "bpo.json").write_text(text)
    assert main(["bpo", str(tmp_path / "bpo.json"), "--out", str(tmp_path / "out"), "--max-reject-share", "1"]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_line_costs_itself(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    file = tmp_path / "povid.jsonl"
    file.write_text(json.dumps(sets.POVID[0]) + "\n{broken\n\n[1]\n" + json.dumps(sets.POVID[0]) + "\n")
    assert len(convert(tmp_path, "povid", file, "--max-reject-share", "0.9", root=root)) == 2
    reasons = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in reasons] == ["povid.jsonl:2", "povid.jsonl:4"]
    assert reasons[1]["reason"] == "record is a list; expected an object"


def _completions(*values: Any) -> dict[str, Any]:
    return {"completions": list(values)}


ODD = {
    "turns are text": ("povid", {"conversations": ["a", "b"]}, "field conversation holds a str; expected objects"),
    "half a surrogate in a response": (
        "povid",
        {"conversations": [*sets.POVID[0]["conversations"][:1], {"from": "gpt", "value": "a \ud800"}]},
        "half of a surrogate pair, '\\\\ud800', stands after .*a '; expected Unicode text",
    ),
    "half a surrogate in an id": ("povid", {"id": "\udfff"}, "half of a surrogate pair, '\\\\udfff'"),
    "a path longer than a file system takes": ("povid", {"image": "a" * 5000}, "image path 'a+' can't be looked up: File name too long"),
    "completions are text": ("bpo", _completions("a", "b"), "field completions holds a str; expected objects"),
    "a score that is no number": (
        "bpo",
        _completions({"score": math.nan, "response": "x"}, {"score": 1, "response": "y"}),
        "field score is nan; expected a finite number",
    ),
    "annotations are text": (
        "vlfeedback",
        _completions({"annotations": "x", "response": "a"}),
        "field annotations is a str; expected dict",
    ),
    "ratings are no numbers": (
        "vlfeedback",
        _completions(*[{"annotations": {aspect: {"Rating": "nan"} for aspect in VLFEEDBACK_ASPECTS}, "response": text} for text in "ab"]),
        "0 responses with ratings of Helpfulness",
    ),
    "ragged columns": (
        "vlfeedback",
        {"completions": {"annotations": [{}], "response": []}},
        "completions is a dict of columns of lengths .*'annotations': 1, 'response': 0.*; expected lists of one length",
    ),
}
GOOD = {"povid": sets.POVID[0], "bpo": sets.BPO[1], "vlfeedback": sets.VLFEEDBACK[0]}


@pytest.mark.parametrize("fault", ODD)
def test_a_record_of_another_shape_costs_itself(tmp_path: Path, fault: str) -> None:
    """Whatever a record holds, the ones before and after it are converted."""
    set_name, change, reason = ODD[fault]
    good = GOOD[set_name]
    root = sets.save_images(tmp_path / "images", good.get("image") or f"{good['id']}.jpg")
    file = save_json(tmp_path / "set.jsonl", [good, {**good, **change}, good])
    got = [texts(row) for row in convert(tmp_path, set_name, file, "--max-reject-share", "0.5", root=root)]
    assert got[: len(got) // 2] == got[len(got) // 2 :], "the same record twice"
    assert got
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert re.search(reason, reject["reason"])


def test_a_response_in_no_known_form_costs_itself(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path, "a.jpg")
    row = {"image": "a.jpg", "prompt": "Hm?", "chosen": "a", "rejected": "b"}
    file = save_json(tmp_path / "rows.jsonl", [{**row, "chosen": ["a"]}, row])
    assert len(convert(tmp_path, "trl", file, "--max-words", "9", "--max-reject-share", "0.5", root=root)) == 1


def test_a_line_that_is_no_utf8_or_nested_too_deeply_costs_itself(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    good = json.dumps(sets.POVID[0]).encode()
    (tmp_path / "povid.jsonl").write_bytes(b"\n".join([good, b'{"a": "\xff"}', b"[" * 100_000, good]))
    assert len(convert(tmp_path, "povid", tmp_path / "povid.jsonl", "--max-reject-share", "0.5", root=root)) == 2
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reason.split(":")[0] for reason in reasons] == ["not UTF-8", "not JSON"]


@pytest.mark.parametrize("name", ["povid.json", "povid.jsonl"])
def test_a_byte_order_mark_is_no_fault(tmp_path: Path, name: str) -> None:
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    file = save_json(tmp_path / name, sets.POVID)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert len(convert(tmp_path, "povid", file, root=root)) == 1


def test_long_responses_drop_their_record(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "images", "coco/train2017/000000000009.jpg", "coco/train2017/000000000010.jpg")
    rows = convert(tmp_path, "bpo", save_json(tmp_path / "bpo.json", sets.BPO), "--max-words", "5", root=root)
    # "A red cup and a dog." has six words: its record goes with both pairs.
    assert [row.chosen for row in rows] == ["A road."]


def test_an_existing_folder_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert main(["bpo", str(save_json(tmp_path / "bpo.json", sets.BPO)), "--out", str(tmp_path / "out")]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err


def test_shards_hold_all_rows_in_order(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path / "coco", "000000000077.jpg")
    file = save_json(tmp_path / "povid.json", [{**sets.POVID[0], "id": i} for i in range(7)])
    assert [row.id for row in convert(tmp_path, "povid", file, "--shard-rows", "3", root=root)] == [str(i) for i in range(7)]
    assert [path.name for path in sorted((tmp_path / "out" / "pairs").iterdir())] == [f"pairs-{i:05d}.parquet" for i in range(3)]


def test_names_in_capitals_are_read(tmp_path: Path) -> None:
    save_json(tmp_path / "A.JSON", [{"id": 1}])
    (tmp_path / "b.JSONL").write_text('{"id": 2}\n')
    assert [record.value["id"] for file in list_files([tmp_path]) for record in read_records(file)] == [1, 2]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    """Reading a file of 16 MB must not hold it: the peak stays below a window and its copy."""
    filler = "x" * 4000
    file = save_json(tmp_path / f"big{suffix}", [{"id": i, "text": filler} for i in range(4000)])
    tracemalloc.start()
    ids = [record.value["id"] for record in read_records(file)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids == list(range(4000))
    assert peak < 8 * JSON_CHUNK < file.stat().st_size


def save_clip(folder: Path) -> Path:
    """A tiny random CLIP with its processor."""
    train_tokenizer(["a red dog. a blue cat."] * 3).save_pretrained(folder)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"projection_dim": 16, "text_config": {**text, "max_position_embeddings": 24}}
    config |= {"vision_config": {**text, "image_size": 28, "patch_size": 14}}
    for part in build_clip(config, tokenizer=str(folder), seed=0):
        part.save_pretrained(folder)
    return folder


def test_from_a_public_set_to_a_trained_model(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """The three commands of docs/data.md: convert, score, train, with image paths and their root."""
    root = sets.save_images(tmp_path / "images", "coco/train2017/000000000009.jpg", "coco/train2017/000000000010.jpg")
    convert(tmp_path, "bpo", save_json(tmp_path / "bpo.json", sets.BPO), root=root)
    clip = save_clip(tmp_path / "clip")
    score = f"score-difficulty {tmp_path}/out/pairs --image-root {root} --clip {clip} --mllm {tiny_llava_dir} --out {tmp_path}/scored"
    assert mmalign([*score.split(), "--by-source"]) == 0
    train = f"train preference --model {tiny_llava_dir} --data {tmp_path}/scored/scored.parquet --image-root {root}"
    train += f" --reference cached --difficulty-mode paper --max-steps 1 --batch-size 3 --out {tmp_path}/model"
    assert mmalign(train.split()) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert set(json.loads((tmp_path / "scored" / "difficulty.json").read_text())["statistics"]) == {"bpo/llm-hal", "bpo/mllm-hal"}
