"""Sets that weigh a pair, continue an answer, or name another image: their own schema to the columns that training reads."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data_tools.convert_pairs import main
from data_tools.records import read_records
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.messages import text_of
from mmalign.data.rows import read_list, read_pair
from tests.data_tools import sets
from tests.data_tools.sets import SENTINEL_CONTEXT


def save(path: Path, rows: Any, *, indent: int | None = None) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows, indent=indent))
    return path


def convert(tmp_path: Path, set_name: str, file: Path, *words: str, images: tuple[str, ...]) -> list[dict[str, Any]]:
    root = sets.save_images(tmp_path / "images", *images)
    assert main([set_name, str(file), "--image-root", str(root), "--out", str(tmp_path / "out"), *words]) == 0
    return list(load_rows(tmp_path / "out" / ("lists" if "--lists" in words else "pairs")))


def reasons(tmp_path: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]


def paths(cells: list[dict[str, Any]]) -> list[str]:
    return [cell["path"] for cell in cells]


def words(row: dict[str, Any]) -> tuple[list[str], str, str]:
    return [message["content"] for message in row["prompt"]], row["chosen"][0]["content"], row["rejected"][0]["content"]


def test_hsa_dpo_keeps_the_severity_of_the_rejected_answer(tmp_path: Path) -> None:
    (row,) = convert(tmp_path, "hsa-dpo", save(tmp_path / "a.jsonl", sets.HSA_DPO), images=("7.jpg",))
    assert (row["id"], row["severity"], paths(row["images"])) == ("7", 2.5, ["7.jpg"])
    assert words(row) == (["What is on the table?"], "A cup.", "A cup and three dogs.")


def test_a_severity_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    rows = [sets.HSA_DPO[0], {name: value for name, value in sets.HSA_DPO[0].items() if name != "rejected_score"}]
    convert(tmp_path, "hsa-dpo", save(tmp_path / "a.jsonl", rows), "--max-reject-share", "0.5", images=("7.jpg",))
    assert reasons(tmp_path) == ["no field rejected_score; the record has id, question, chosen, rejected, chosen_score"]


CONTINUED = (["Describe this image.", SENTINEL_CONTEXT], " People walk.", " An elephant stands there.")
FIRST = (["Describe this image."], "A street.", "A beach.")


@pytest.mark.parametrize(
    ("name", "rows", "expected", "images"),
    [
        ("a.jsonl", sets.SENTINEL, [CONTINUED, FIRST], ["VG_100K/2315278.jpg", "VG_100K/2315278.jpg"]),
        (
            "a.json",
            sets.SENTINEL_BY_IMAGE,
            [CONTINUED, FIRST, (["What is it?"], "A dog.", "A cat.")],
            ["2315278.jpg", "2315278.jpg", "61.jpg"],
        ),
        ("a.json", sets.SENTINEL_INSTRUCTIONS, [CONTINUED], ["VG_100K/2315278.jpg"]),
    ],
)
def test_sentinel_continues_the_context(tmp_path: Path, name: str, rows: Any, expected: list[Any], images: list[str]) -> None:
    got = convert(tmp_path, "sentinel", save(tmp_path / name, rows, indent=4), images=tuple(images))
    assert [words(row) for row in got] == expected
    assert [paths(row["images"])[0] for row in got] == images
    # Neither answer ends the turn: the caption continues behind it.
    assert [row["ends"] for row in got] == [False] * len(got)
    assert len({row["id"] for row in got}) == len(got)
    read = read_pair(got[0], index=0, image_root=tmp_path / "images")
    assert [message["role"] for message in read.prompt] == ["user", "assistant"]
    assert (text_of(read.prompt[-1]), read.ends) == (SENTINEL_CONTEXT, (False, False))


def test_mm_rlhf_pairs_leave_ties_out(tmp_path: Path) -> None:
    (row,) = convert(tmp_path, "mm-rlhf", save(tmp_path / "dpo_pairs.jsonl", sets.MM_RLHF), images=("short/a.jpg",))
    assert words(row) == (["What is it?"], "A bench.", "A boat.")
    counts = json.loads((tmp_path / "out" / "conversion.json").read_text())["counts"]
    assert counts == {"records": 2, "without_unequal_pair": 1, "too_long": 0, "pairs": 1, "rejected": 0}


def test_mm_rlhf_keeps_its_factor_and_refuses_videos(tmp_path: Path) -> None:
    pair = {**sets.MM_RLHF[0], "ls_factor": 0.75}
    file = save(tmp_path / "dpo_pairs.jsonl", [pair, {"video": "v", **pair, "image": None}])
    (row,) = convert(tmp_path, "mm-rlhf", file, "--max-reject-share", "0.5", images=("short/a.jpg",))
    assert row["ls_factor"] == 0.75
    assert reasons(tmp_path) == ["the record has a video, which can't be read"]


@pytest.mark.parametrize("lists", [False, True])
def test_several_images_keep_their_places(tmp_path: Path, lists: bool) -> None:
    question = "Left: <image> Right: <image>\nWhich is red?"
    images = {"image": ["short/a.jpg", "short/b.jpg"], "prompt": question}
    rated = save(tmp_path / "data.jsonl", [{**sets.MM_RLHF_RATED[0], **images}])
    file = rated if lists else save(tmp_path / "dpo_pairs.jsonl", [{**sets.MM_RLHF[0], **images}])
    row = convert(tmp_path, "mm-rlhf", file, *(["--lists"] if lists else []), images=("short/a.jpg", "short/b.jpg"))[0]
    read = (read_list if lists else read_pair)(row, index=0, image_root=tmp_path / "images")
    assert [part.get("text") for part in read.prompt[0]["content"]] == ["Left: ", None, " Right: ", None, "Which is red?"]
    assert paths(row["images"]) == ["short/a.jpg", "short/b.jpg"]


def test_mm_rlhf_ratings_make_pairs_and_lists(tmp_path: Path) -> None:
    file = save(tmp_path / "data.jsonl", sets.MM_RLHF_RATED)
    rows = convert(tmp_path, "mm-rlhf", file, images=("short/a.jpg",))
    assert [(row["score_chosen"], row["score_rejected"]) for row in rows] == [(5, 1), (5, 3), (3, 1)]
    (tmp_path / "out").rename(tmp_path / "pairs")
    (row,) = convert(tmp_path, "mm-rlhf", file, "--lists", images=("short/a.jpg",))
    assert (row["responses"], row["scores"]) == (["A bench.", "A boat.", "A seat."], [5, 1, 3])


def test_s_vco_has_a_row_for_each_side(tmp_path: Path) -> None:
    rows = convert(tmp_path, "s-vco", save(tmp_path / "mvc.json", sets.S_VCO), images=("flickr30k/a.jpg", "counterfactuals/a.jpg"))
    assert [(paths(row["images"]), paths(row["images_other"])) for row in rows] == [
        (["flickr30k/a.jpg"], ["counterfactuals/a.jpg"]),
        (["counterfactuals/a.jpg"], ["flickr30k/a.jpg"]),
    ]
    two, three = "Two boys run.", "Three boys run."
    assert [words(row) for row in rows] == [(["Describe the image."], two, three), (["Describe the image."], three, two)]
    assert [row["chosen_other"][0]["content"] for row in rows] == [three, two]


def test_s_vco_keeps_its_system_prompt(tmp_path: Path) -> None:
    record = {**sets.S_VCO[0], "system_prompt": "Be brief."}
    rows = convert(tmp_path, "s-vco", save(tmp_path / "mvc.json", [record]), images=("flickr30k/a.jpg", "counterfactuals/a.jpg"))
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]


def test_ms_swift_rows_name_the_other_image(tmp_path: Path) -> None:
    rows = convert(tmp_path, "ms-swift", save(tmp_path / "a.jsonl", sets.MS_SWIFT), images=("cat.png", "dog.png"))
    assert [words(row) for row in rows] == [(["What is it?"], "A kitten.", "A puppy."), (["What is it?"], "A kitten.", "A hat.")]
    assert [(paths(row["images"]), paths(row["images_other"])) for row in rows] == [(["cat.png"], ["dog.png"])] * 2


def test_ms_swift_rows_of_one_image_are_plain_pairs(tmp_path: Path) -> None:
    """With rejected_messages, ms-swift wants the images said again; the same image is no other one."""
    (row,) = convert(
        tmp_path, "ms-swift", save(tmp_path / "a.jsonl", [{**sets.MS_SWIFT[0], "rejected_images": ["cat.png"]}]), images=("cat.png",)
    )
    assert "images_other" not in row


ODD_SWIFT = {
    "images alone differ": ({"rejected_messages": None}, "no field rejected_response or rejected_messages: the row rejects no text"),
    "apart earlier": (
        {"rejected_messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "x"}]},
        "messages and rejected_messages differ before the last turn",
    ),
    "fewer images": ({"rejected_images": ["dog.png", "cat.png"]}, "images_other has 2 images beside the row's 1; expected as many"),
    "broken other image": ({"rejected_images": ["nowhere.png"]}, "image not found"),
    "turns are text": ({"messages": ["a", "b"]}, "messages hold a str; expected objects"),
}


@pytest.mark.parametrize("fault", ODD_SWIFT)
def test_a_contrast_that_is_none_costs_itself(tmp_path: Path, fault: str) -> None:
    change, reason = ODD_SWIFT[fault]
    rows = [sets.MS_SWIFT[0], {**sets.MS_SWIFT[0], **change}]
    file = save(tmp_path / "a.jsonl", rows)
    assert len(convert(tmp_path, "ms-swift", file, "--max-reject-share", "0.5", images=("cat.png", "dog.png"))) == 1
    assert reason in reasons(tmp_path)[0]


@pytest.mark.parametrize("other", ["images_other", "rejected_images"])
def test_trl_rows_keep_what_they_say_beside_their_texts(tmp_path: Path, other: str) -> None:
    row = {"images": ["cat.png"], "prompt": "Hm?", "chosen": " a", "rejected": " b", "ends": False}
    row |= {"score_chosen": 2, "score_rejected": 0.5, other: ["dog.png"], "chosen_other": "c"}
    (got,) = convert(tmp_path, "trl", save(tmp_path / "a.jsonl", [row]), images=("cat.png", "dog.png"))
    assert {name: got[name] for name in ("ends", "score_chosen", "score_rejected", "chosen_other")} == {
        "ends": False,
        "score_chosen": 2.0,
        "score_rejected": 0.5,
        "chosen_other": "c",
    }
    assert paths(got["images_other"]) == ["dog.png"]


def test_an_object_over_several_lines_is_read_item_by_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the window."""
    items = {f"{i}": [{"text": 'a "quoted" word, 12', "number": i}] for i in range(30)}
    file = save(tmp_path / "a.json", items, indent=2)
    for chunk in (1, 7, 1 << 20):
        monkeypatch.setattr("data_tools.records.JSON_CHUNK", chunk)
        assert {record.value["key"]: record.value["items"] for record in read_records(file)} == items


TRAINED = {
    "hsa-dpo": ("hsa_dpo", sets.HSA_DPO, ("7.jpg",)),
    "sentinel": ("dpo", sets.SENTINEL, ("VG_100K/2315278.jpg",)),
    "mm-rlhf": ("mm_dpo", [{**sets.MM_RLHF[0], "ls_factor": 0.75}], ("short/a.jpg",)),
    "s-vco": ("svco", sets.S_VCO, ("flickr30k/a.jpg", "counterfactuals/a.jpg")),
    "ms-swift": ("symmpo", sets.MS_SWIFT, ("cat.png", "dog.png")),
}


@pytest.mark.parametrize("set_name", TRAINED)
def test_each_set_feeds_its_objective_by_one_command(tmp_path: Path, tiny_llava_dir: Path, set_name: str) -> None:
    objective, rows, images = TRAINED[set_name]
    convert(tmp_path, set_name, save(tmp_path / "a.jsonl", rows), "--embed-images", images=images)
    train = f"train preference --model {tiny_llava_dir} --data {tmp_path}/out/pairs --objective {objective} --out {tmp_path}/model"
    assert mmalign([*train.split(), *["--max-steps", "1", "--batch-size", "2", "--logging-steps", "1"]]) == 0
    assert math.isfinite(json.loads((tmp_path / "model" / "train_log.json").read_text())[0]["loss"])
    assert not (tmp_path / "model" / "rejects.jsonl").exists()
