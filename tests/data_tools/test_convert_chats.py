"""Chats in LLaVA's JSON: what each becomes, what is refused, and that training can't tell them from a set's own Parquet."""

import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_tools.chat_sets import CHAT_SETS, LLAVA_SETS
from data_tools.convert_chats import main
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_chat
from tests.data_tools import sets
from tests.tiny_models import random_text


def said(*values: str) -> list[dict[str, str]]:
    """A conversation by turns, the human's first."""
    return [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(values)]


def convert(tmp_path: Path, set_name: str, records: list[dict[str, Any]], *words: str, name: str = "a.json") -> list[dict[str, Any]]:
    root = sets.save_images(tmp_path / "images", "a.jpg", "b.jpg")
    text = "\n".join(map(json.dumps, records)) if name.endswith("jsonl") else json.dumps(records)
    (tmp_path / name).write_text(text)
    assert main([set_name, str(tmp_path / name), "--image-root", str(root), "--out", str(tmp_path / "out"), *words]) == 0
    return list(load_rows(tmp_path / "out" / "chats"))


FORMS = {
    "place in front": ({"image": "a.jpg"}, said("<image>\nWhat is it?", "A dog."), ["What is it?", "A dog."], ["a.jpg"]),
    "place behind": ({"image": "a.jpg"}, said("What is it?\n<image>", "A dog."), ["What is it?\n<image>", "A dog."], ["a.jpg"]),
    "no place": ({"image": "a.jpg"}, said("What is it?", "A dog."), ["What is it?", "A dog."], ["a.jpg"]),
    "two in front": (
        {"image": ["a.jpg", "b.jpg"]},
        said("<image>\n<image>\nAlike?", "No."),
        ["Alike?", "No."],
        ["a.jpg", "b.jpg"],
    ),
    "two in the text": (
        {"image": ["a.jpg", "b.jpg"]},
        said("Is <image> like <image>?", "No."),
        ["Is <image> like <image>?", "No."],
        ["a.jpg", "b.jpg"],
    ),
    "two turns": (
        {"image": ["a.jpg", "b.jpg"]},
        said("<image>\nWhat?", "A dog.", "<image>\nAnd here?", "A cat."),
        ["<image>\nWhat?", "A dog.", "<image>\nAnd here?", "A cat."],
        ["a.jpg", "b.jpg"],
    ),
    "one place of two": (
        {"image": ["a.jpg", "b.jpg"]},
        said("What?", "A dog.", "And <image>?", "A cat."),
        ["<image>\nWhat?", "A dog.", "And <image>?", "A cat."],
        ["a.jpg", "b.jpg"],
    ),
    "an answer that writes the tag": ({"image": "a.jpg"}, said("<image>\nTag?", "It is <image>."), ["Tag?", "It is <image>."], ["a.jpg"]),
    "no image": ({}, said("Hello.", "Hello to you."), ["Hello.", "Hello to you."], []),
    "system": (
        {"image": "a.jpg"},
        [{"from": "system", "value": "Be brief."}, *said("<image>\nWhat?", "A dog.")],
        ["Be brief.", "What?", "A dog."],
        ["a.jpg"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_forms(tmp_path: Path, form: str, name: str) -> None:
    more, conversations, texts, images = FORMS[form]
    (row,) = convert(tmp_path, "llava", [{"id": "x", **more, "conversations": conversations}], name=name)
    assert (row["id"], row["source"]) == ("x", "llava")
    assert [message["content"] for message in row["messages"]] == texts
    assert [cell["path"] for cell in row["images"]] == images


@pytest.mark.parametrize("form", FORMS)
def test_training_reads_the_converted_row_as_it_reads_the_record(tmp_path: Path, form: str) -> None:
    """The images, and their places among the words, are those that ``read_chat`` finds in LLaVA's own record."""
    more, conversations, _, images = FORMS[form]
    record = {"id": "x", **more, "conversations": conversations}
    (row,) = convert(tmp_path, "llava", [record])
    got = read_chat(row, index=0, image_root=tmp_path / "images")
    assert len(got.images) == len(images)
    # Fewer places than images are an error to read_chat, which guesses nothing.
    if form != "one place of two":
        assert got == read_chat({"images": images, **record, "image": None}, index=0, image_root=tmp_path / "images")


BROKEN = {
    "more places": ({"conversations": said("<image>\n<image>\nWhat?", "A dog.")}, r"2 places of images \(<image>\) for 1 images"),
    "a place without an image": ({"image": None}, r"1 places of images \(<image>\) for 0 images"),
    "gpt first": ({"conversations": said("a", "b", "c", "d")[1:]}, "the conversation begins with an assistant turn"),
    "doubled": ({"conversations": [*said("a"), *said("b", "c")]}, "two user turns follow each other"),
    "doubled answers": ({"conversations": [*said("a", "b"), said("a", "c")[1]]}, "two assistant turns follow each other"),
    "no answer": ({"conversations": said("a", "b", "c")}, "the conversation has no answer to its last turn"),
    "empty answer": ({"conversations": said("a", " ")}, "an assistant turn is empty"),
    "empty question": ({"conversations": said("", "b")}, "a user turn is empty"),
    "no turns": ({"conversations": []}, "the conversation has no turns"),
    "no conversations": ({"conversations": None}, "no field conversations; the record has id, image, conversations"),
    "odd role": ({"conversations": [{"from": "robot", "value": "x"}]}, "a turn is from 'robot'; expected one of human, gpt"),
    "late system": ({"conversations": [*said("a", "b"), {"from": "system", "value": "c"}]}, "a system turn stands behind other turns"),
    "a video": ({"video": "a.mp4"}, "the record has a video"),
    "missing image": ({"image": "nowhere.jpg"}, "image not found"),
    "outside": ({"image": "../a.json"}, "leaves the image root"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_chat_costs_itself(tmp_path: Path, fault: str) -> None:
    change, reason = BROKEN[fault]
    good = {"id": "x", "image": "a.jpg", "conversations": said("<image>\nWhat?", "A dog.")}
    assert len(convert(tmp_path, "llava", [good, {**good, **change}, good], "--max-reject-share", "0.5")) == 2
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert re.search(reason, reject["reason"])


def test_text_chats_stay_or_go(tmp_path: Path) -> None:
    records = [{"id": 1, "conversations": said("Hi.", "Hello.")}, {"id": 2, "image": "a.jpg", "conversations": said("What?", "A dog.")}]
    assert [row["id"] for row in convert(tmp_path, "llava-mix665k", records)] == ["1", "2"]
    (tmp_path / "out").rename(tmp_path / "all")
    assert [row["id"] for row in convert(tmp_path, "llava-mix665k", records, "--images-only")] == ["2"]
    counts = json.loads((tmp_path / "out" / "conversion.json").read_text())["counts"]
    assert counts == {"records": 2, "without_image": 1, "chats": 1, "rejected": 0}


@pytest.mark.parametrize("name", LLAVA_SETS)
def test_each_named_set_reads_llavas_form_and_tells_its_name(name: str) -> None:
    chat = CHAT_SETS[name]({"id": 7, "image": "a.jpg", "conversations": said("<image>\nWhat?", "A dog.")}, "none")
    assert (chat.id, chat.source, chat.images) == ("7", name, ["a.jpg"])
    assert chat.messages == [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]


def test_sets_in_forms_of_their_own() -> None:
    lrv = {"image_id": "2392588", "question": "Is there a teapot?", "answer": "No teapot.", "task": "negative"}
    chat = CHAT_SETS["lrv"](lrv, "filter_cap.json[3]")
    assert (chat.id, chat.images, chat.messages[0]["content"]) == ("filter_cap.json[3]", ["2392588.jpg"], "Is there a teapot?")
    hub = {"id": "CGD_1", "instruction": "What differs?", "answer": "The hat.", "images": [{"bytes": b"1"}, {"bytes": b"2"}]}
    chat = CHAT_SETS["mimic-it"](hub, "none")
    assert (chat.id, chat.images, chat.messages[1]["content"]) == ("CGD_1", hub["images"], "The hat.")


def generated(number: int, rng: random.Random) -> dict[str, Any]:
    """A record of any shape that LLaVA's files have, with what it must become under ``expected``."""
    texts = [random_text(1000 * number + i, rng.randint(1, 9)) for i in range(2 * rng.randint(1, 3))]
    kind = rng.choice(["front", "none", "text"])
    values = [f"<image>\n{texts[0]}", *texts[1:]] if kind == "front" else texts
    record = {"id": f"c-{number}", "conversations": said(*values)}
    return {"record": record if kind == "text" else {**record, "image": rng.choice(["a.jpg", "b.jpg"])}, "texts": texts}


def test_a_thousand_records_come_back(tmp_path: Path) -> None:
    rng = random.Random(0)
    made = [generated(number, rng) for number in range(1000)]
    rows = convert(tmp_path, "llava", [one["record"] for one in made], "--shard-rows", "300")
    assert [row["id"] for row in rows] == [f"c-{number}" for number in range(1000)]
    assert [[message["content"] for message in row["messages"]] for row in rows] == [one["texts"] for one in made]
    assert [[cell["path"] for cell in row["images"]] for row in rows] == [
        [one["record"]["image"]] if "image" in one["record"] else [] for one in made
    ]
    assert [path.name for path in sorted((tmp_path / "out" / "chats").iterdir())] == [f"chats-{i:05d}.parquet" for i in range(4)]


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times the records, the same peak: a window of the file and a group of rows."""
    monkeypatch.setattr("data_tools.records.JSON_CHUNK", 1 << 15)
    peaks = []
    main(["llava", str(_written(tmp_path / "first.json", 10)), "--out", str(tmp_path / "first")])
    for number in (300, 1500):
        file = _written(tmp_path / f"{number}.json", number)
        tracemalloc.start()
        assert main(["llava", str(file), "--out", str(tmp_path / f"out-{number}"), "--shard-rows", "250"]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < (tmp_path / "1500.json").stat().st_size


def _written(path: Path, number: int) -> Path:
    filler = "word " * 400
    records = [{"id": i, "conversations": said(f"Question {i}?", filler)} for i in range(number)]
    path.write_text(json.dumps(records))
    return path


def test_the_worlds_chats_train_to_the_same_weights(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """From its own Parquet, from LLaVA's JSON, and from what becomes of it: bit for bit."""
    sizes = "--num-scenes 6 --num-pairs 2 --num-eval-scenes 2 --num-workers 1"
    assert mmalign(["world", "build", "--out", str(tmp_path / "world"), *sizes.split()]) == 0
    own = tmp_path / "world" / "sft"
    rows, images = list(load_rows(own)), tmp_path / "images"
    images.mkdir()
    records = []
    for number, row in enumerate(rows):
        for i, cell in enumerate(row["images"]):
            (images / f"{number}-{i}.png").write_bytes(cell["bytes"])
        places = "<image>\n" * len(row["images"])
        texts = [message["content"] for message in row["messages"]]
        names = [f"{number}-{i}.png" for i in range(len(row["images"]))]
        records.append(
            {"id": row["id"], "image": names[0] if len(names) == 1 else names, "conversations": said(places + texts[0], *texts[1:])}
        )
    (tmp_path / "llava.json").write_text(json.dumps(records))
    assert main(["llava", str(tmp_path / "llava.json"), "--image-root", str(images), "--out", str(tmp_path / "out")]) == 0
    weights = []
    for name, data in {"own": own, "converted": tmp_path / "out" / "chats", "direct": tmp_path / "llava.json"}.items():
        words = (
            f"train sft --model {tiny_llava_dir} --data {data} --image-root {images} --max-steps 2 --batch-size 4 --out {tmp_path}/{name}"
        )
        assert mmalign([*words.split(), "--learning-rate", "1e-3"]) == 0
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    start = load_file(tiny_llava_dir / "model.safetensors")
    assert any(not torch.equal(start[key], weights[0][key]) for key in start)
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in weights[0])
