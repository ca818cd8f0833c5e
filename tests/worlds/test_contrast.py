"""Contrasts: two scenes equal to the pixel outside the one object that changed, and answers that are true of one alone."""

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from mmalign.options.world import WorldOptions
from mmalign.worlds.build import build_world
from mmalign.worlds.contrast import KINDS, Contrast
from mmalign.worlds.rows import SceneMaker
from mmalign.worlds.scenes import COLOURS, PLACES, SHAPES, Item, Scene
from tests.tiny_models import random_image
from tests.worlds.test_world import described, scene_truth

SMALL = {"num_scenes": 8, "num_pairs": 8, "num_eval_scenes": 40}
NUMBERS = ("No", "One", "Two", "Three", "Four")


def options(out: Path, **changes: Any) -> WorldOptions:
    return WorldOptions(**{"out": out, **SMALL, "num_contrast": 520, "num_workers": 1, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(options(tmp_path_factory.mktemp("world") / "w"))


def rows_of(world: Path, split: str) -> list[dict[str, Any]]:
    path = world / "contrast" / "train.parquet" if split == "contrast" else world / "eval" / "contrast" / "pairs.parquet"
    return list(Dataset.from_parquet(str(path)).with_format("arrow")[:].to_pylist())


def questions_of(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "eval" / "contrast" / "questions.jsonl").read_text().splitlines()]


def pixels(encoded: dict[str, Any]) -> np.ndarray:
    return np.asarray(Pictures.open(io.BytesIO(encoded["bytes"])).convert("RGB"))


def text(messages: list[dict[str, str]]) -> str:
    return messages[0]["content"]


def answer(question: str, scene: Scene, names: tuple[str, ...] = SHAPES) -> str:
    """Answer from the words of the question, without the code that made it."""
    by_name = {names[item.kind]: item for item in scene.items}
    if found := re.fullmatch(r"Is there an? (.+) in the image\?", question):
        return "Yes." if found[1] in by_name else "No."
    if found := re.fullmatch(r"Is the (.+) further left than the (.+)\?", question):
        left = [PLACES[by_name[name].place].endswith("left") for name in found.groups()]
        return "Yes." if left == [True, False] else "No."
    if found := re.fullmatch(r"Where is the (.+)\?", question):
        return f"At the {PLACES[by_name[found[1]].place]}."
    if found := re.fullmatch(r"What colour is the (.+)\?", question):
        return f"{COLOURS[by_name[found[1]].colour or 0].capitalize()}."
    assert question == "How many objects are there?"
    return f"{NUMBERS[len(by_name)]}."


def quarter_of(item: Item, size: int) -> tuple[slice, slice]:
    """Where an object can be. A star's points reach furthest: 1.15 of the largest radius, around a centre that is moved by 0.07 at most."""
    reach = 0.07 + 1.15 * 0.22
    x, y = 0.27 + 0.46 * (item.place % 2), 0.27 + 0.46 * (item.place // 2)
    rows, columns = (slice(max(0, int((at - reach) * size) - 1), int((at + reach) * size) + 2) for at in (y, x))
    return rows, columns


@pytest.mark.parametrize("split", ["contrast", "contrast_eval"])
def test_chosen_is_true_of_the_own_scene_alone(world: Path, split: str) -> None:
    maker = SceneMaker(options(world))
    for index, row in enumerate(rows_of(world, split)):
        contrast, _ = maker.contrast(split, index)
        chosen, rejected = text(row["chosen"]), text(row["rejected"])
        assert chosen != rejected
        assert row["chosen_other"] == row["rejected"]
        assert (row["contrast_kind"], row["id"]) == (contrast.kind, f"{split}-{index}")
        if row["contrast_asked"] == "description":
            for said, scene in ((chosen, contrast.own), (rejected, contrast.other)):
                assert described(said) == scene_truth(scene, with_place="At the" in said)
            # A description without places is not made false by a move.
            assert described(chosen) != described(rejected)
        else:
            question = text(row["prompt"])
            assert (answer(question, contrast.own), answer(question, contrast.other)) == (chosen, rejected)


def test_scenes_differ_as_their_kind_says(world: Path) -> None:
    maker = SceneMaker(options(world))
    for index, row in enumerate(rows_of(world, "contrast")):
        contrast, _ = maker.contrast("contrast", index)
        lost, gained = set(contrast.own.items) - set(contrast.other.items), set(contrast.other.items) - set(contrast.own.items)
        sizes = {"removed": (1, 0), "added": (0, 1)}.get(contrast.kind, (1, 1))
        assert (len(lost), len(gained)) == sizes
        if contrast.kind in ("swapped", "moved", "recoloured"):
            before, after = lost.pop(), gained.pop()
            differs = {name for name in ("kind", "place", "colour") if getattr(before, name) != getattr(after, name)}
            assert differs == {{"swapped": "kind", "moved": "place", "recoloured": "colour"}[contrast.kind]}
            objects = {before.kind, after.kind}
        else:
            objects = {item.kind for item in lost | gained}
        assert {SHAPES[kind] for kind in objects} == set(row["contrast_objects"])
        for scene in (contrast.own, contrast.other):
            places = [item.place for item in scene.items]
            assert places == sorted(set(places))
            assert len(scene.kinds) == len(scene.items) <= 4


def test_images_are_equal_outside_the_changed_object(world: Path) -> None:
    maker, size = SceneMaker(options(world)), 48
    for index, row in enumerate(rows_of(world, "contrast")[:200]):
        contrast, _ = maker.contrast("contrast", index)
        differ = (pixels(row["images"][0]) != pixels(row["images_other"][0])).any(axis=2)
        assert differ.sum() > 20
        touched = np.zeros((size, size), dtype=bool)
        for item in set(contrast.own.items) ^ set(contrast.other.items):
            touched[quarter_of(item, size)] = True
        assert not (differ & ~touched).any()
        assert not touched.all() or contrast.kind == "moved"


def test_kinds_take_turns_and_answers_are_balanced(world: Path) -> None:
    rows = rows_of(world, "contrast")
    assert Counter(row["contrast_kind"] for row in rows) == dict.fromkeys(KINDS, 104)
    asked = Counter(row["contrast_asked"] for row in rows)
    assert set(asked) == {"description", "existence", "number", "place", "left", "colour"}
    assert asked["description"] / 520 == pytest.approx(0.5, abs=4 * (0.25 / 520) ** 0.5)
    yes = [text(row["chosen"]) == "Yes." for row in rows if row["contrast_asked"] == "existence"]
    assert np.mean(yes) == pytest.approx(0.5, abs=4 * (0.25 / len(yes)) ** 0.5)


def test_training_reads_both_images(world: Path) -> None:
    raw = load_rows(world / "contrast" / "train.parquet")[1]
    row = read_pair(raw, index=1, with_other=True)
    assert (row.id, row.chosen_other) == ("contrast-1", row.rejected)
    for image, column in ((row.images[0], "images"), (row.images_other[0], "images_other")):
        assert (np.asarray(image) == pixels(raw[column][0])).all()


def test_a_model_trains_on_both_images(world: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    Dataset.from_parquet(str(world / "contrast" / "train.parquet")).select(range(4)).to_parquet(tmp_path / "pairs.parquet")
    words = ["--model", str(tiny_llava_dir), "--data", str(tmp_path / "pairs.parquet"), "--objective", "svco", "--max-steps", "1"]
    assert main(["train", "preference", *words, "--out", str(tmp_path / "o"), "--batch-size", "4"]) == 0
    assert (tmp_path / "o" / "model.safetensors").is_file()


def test_evaluation_asks_both_images_one_question(world: Path) -> None:
    maker, rows = SceneMaker(options(world)), questions_of(world)
    held_out = rows_of(world, "contrast_eval")
    assert len(rows) == 2 * len(held_out) == 80
    for index, (own, other) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        contrast, _ = maker.contrast("contrast_eval", index)
        assert own["question"] == other["question"]
        assert own["pair"] == other["pair"] == held_out[index]["id"]
        assert [own["answer"], other["answer"]] == own["options"] == other["options"]
        for row, scene, images in ((own, contrast.own, "images"), (other, contrast.other, "images_other")):
            assert f"{row['answer']}." == answer(row["question"], scene)
            assert (world / "eval" / "contrast" / "images" / row["image"]).read_bytes() == held_out[index][images][0]["bytes"]


def test_same_bytes_whatever_the_processes_and_none_without_the_option(world: Path, tmp_path: Path) -> None:
    again = build_world(options(tmp_path / "again", num_workers=2))
    plain = build_world(options(tmp_path / "plain", num_contrast=0))
    files = [json.loads((folder / "world.json").read_text())["sha256"] for folder in (world, again, plain)]
    assert files[0] == files[1]
    assert files[2] == {name: value for name, value in files[0].items() if "contrast" not in name}
    assert "num_contrast" not in json.loads((plain.parent / "plain" / "world.json").read_text())["config"]


def test_mosaics_change_whole_quarters_and_no_colours(tmp_path: Path) -> None:
    names = ["cat", "dog", "ship", "frog"]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    photos = {"image": [random_image(i, (8, 8)) for i in range(96)], "label": [i % 4 for i in range(96)]}
    Dataset.from_dict(photos, features=features).to_parquet(tmp_path / "photos.parquet")
    folder = build_world(options(tmp_path / "w", source="photos", photos=tmp_path / "photos.parquet", num_contrast=40))
    kinds: Counter[str] = Counter()
    for row in rows_of(folder, "contrast"):
        kinds[row["contrast_kind"]] += 1
        own, other = pixels(row["images"][0]), pixels(row["images_other"][0])
        quarters = [(slice(24 * (i // 2), 24 * (i // 2) + 24), slice(24 * (i % 2), 24 * (i % 2) + 24)) for i in range(4)]
        changed = [i for i, quarter in enumerate(quarters) if (own[quarter] != other[quarter]).any()]
        assert len(changed) == (2 if row["contrast_kind"] == "moved" else 1)
        if row["contrast_kind"] == "moved":
            # The photograph is the same one.
            first, second = (quarters[i] for i in changed)
            assert (own[first] == other[second]).all() or (own[second] == other[first]).all()
        if row["contrast_kind"] in ("removed", "added"):
            emptied = (other if row["contrast_kind"] == "removed" else own)[quarters[changed[0]]]
            assert (emptied == 226).all()
    assert kinds == dict.fromkeys(("swapped", "removed", "added", "moved"), 10)


def test_scenes_of_one_object_have_room_for_three_changes(tmp_path: Path) -> None:
    maker = SceneMaker(options(tmp_path, max_objects=1))
    assert [maker.contrast("contrast", index)[0].kind for index in range(4)] == ["swapped", "moved", "recoloured", "swapped"]


def test_likely_by_hand() -> None:
    square, circle, star = Item(1, 0, 0), Item(0, 1, 1), Item(3, 2, 2)
    # Circle and square come together: the square that goes is expected beside the circle that stays, the star beside nothing there.
    removed = Contrast("removed", 0, ((square, circle, star), (None, circle, star)))
    assert (removed.own.kinds, removed.other.kinds, removed.changed, removed.is_likely) == ({0, 1, 3}, {0, 3}, (1,), True)
    assert not Contrast("removed", 2, ((square, circle, star), (square, circle, None))).is_likely


def test_negative_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_contrast is -1; expected at least 0"):
        options(tmp_path, num_contrast=-1)
