"""Drawings with faults: worked scores, every fault is what its name says, bytes of the files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.options.world import WorldOptions
from mmalign.worlds.build import build_world
from mmalign.worlds.drawings import Slots, add_fault, make_drawn_list, share_right, slots_of
from mmalign.worlds.scenes import SHAPES, Item, Scene, sample_scene
from mmalign.worlds.text import Speaker

SMALL = {"num_scenes": 4, "num_pairs": 4, "num_eval_scenes": 6, "num_workers": 1, "image_size": 32, "max_objects": 3}


def scenes(count: int, *, most: int = 4) -> list[tuple[Scene, np.random.Generator]]:
    rngs = [np.random.default_rng([7, i]) for i in range(count)]
    return [(sample_scene(rng, num_kinds=8, max_objects=most, with_colour=True), rng) for rng in rngs]


def differences(slots: Slots, truth: Slots) -> list[tuple[Item | None, Item | None]]:
    return [(one, other) for one, other in zip(slots, truth, strict=True) if one != other]


def test_each_fault_is_what_its_name_says() -> None:
    seen: Counter[str] = Counter()
    for scene, rng in scenes(400):
        truth = slots_of(scene)
        fault, slots = add_fault(truth, truth, rng, num_kinds=8)
        seen[fault] += 1
        ((new, old),) = differences(slots, truth)
        if fault == "more":
            assert old is None
            assert new is not None
            assert new.kind not in scene.kinds
            assert new.place not in {item.place for item in scene.items}
        elif fault == "less":
            assert new is None
            assert len(scene.items) > 1
        else:
            assert new is not None
            assert old is not None
            changed = [name for name in ("kind", "colour", "place") if getattr(new, name) != getattr(old, name)]
            assert changed == [fault]
        places = [item.place for item in slots if item is not None]
        assert len(set(places)) == len(places)
    assert set(seen) == {"kind", "colour", "place", "more", "less"}
    assert min(seen.values()) > 30


def test_shares_by_hand() -> None:
    star, ring = Item(3, 0, 0), Item(7, 2, 3)
    truth: Slots = (star, ring, None, None)
    assert share_right(truth, truth) == 1
    assert share_right((star, Item(7, 1, 3), None, None), truth) == 0.75
    # Moved: one quarter lacks it, another one has it too many.
    assert share_right((star, Item(7, 2, 2), None, None), truth) == 0.5
    assert share_right((None, Item(7, 2, 1), Item(1, 1, 2), None), truth) == 0


def test_lists_fall_from_right_to_wrong() -> None:
    lengths: Counter[int] = Counter()
    for scene, rng in scenes(200):
        row = make_drawn_list(scene, rng, Speaker(SHAPES), 24)
        assert row["scores"][0] == 1
        assert row["scores"] == sorted(set(row["scores"]), reverse=True)
        assert len(row["images_responses"]) == len(row["scores"]) == len(set(row["images_responses"]))
        lengths[len(row["scores"])] += 1
    assert set(lengths) <= {3, 4}
    assert lengths[4] > 100


def test_files_hold_captions_that_are_true_and_pictures_that_differ_at_the_fault(tmp_path: Path) -> None:
    folder = build_world(WorldOptions(out=tmp_path / "w", num_drawings=12, **SMALL))
    rows = {name: Dataset.from_parquet(str(folder / "drawings" / f"{name}.parquet")) for name in ("drawings", "drawn_pairs", "drawn_lists")}
    held_out = Dataset.from_parquet(str(folder / "eval" / "drawings.parquet"))
    assert [len(data) for data in (*rows.values(), held_out)] == [12, 12, 12, 6]
    assert json.loads((folder / "world.json").read_text())["counts"]["drawn_pairs"] == 12
    row = rows["drawings"][0]
    kind, _, place = row["objects"][0]
    assert f"At the {('top left', 'top right', 'bottom left', 'bottom right')[place]} is a" in row["caption"]
    assert SHAPES[kind] in row["caption"].split(".")[0]
    assert load_image(row["image"]).size == (32, 32)
    for pair in rows["drawn_pairs"]:
        chosen, rejected = (np.asarray(load_image(pair[name]), dtype=int) for name in ("image_chosen", "image_rejected"))
        changed = (chosen != rejected).any(-1)
        # The same size, shift and noise everywhere else.
        assert 0 < changed.mean() < (0.6 if pair["fault"] == "place" else 0.35)
    again = build_world(WorldOptions(out=tmp_path / "again", num_drawings=12, **SMALL))
    for path in sorted(folder.rglob("drawings/*.parquet")):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()
    plain = build_world(WorldOptions(out=tmp_path / "plain", **SMALL))
    assert not (plain / "drawings").exists()
    assert "num_drawings" not in json.loads((plain / "world.json").read_text())["config"]
    for part in ("sft", "pairs"):
        assert (plain / part / "train.parquet").read_bytes() == (folder / part / "train.parquet").read_bytes()


def test_photos_are_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_drawings is 3, and photos are not drawn"):
        WorldOptions(out=tmp_path, source="photos", photos=tmp_path / "p.parquet", num_drawings=3)
    with pytest.raises(UserError, match="num_drawings is -1"):
        WorldOptions(out=tmp_path, num_drawings=-1)
