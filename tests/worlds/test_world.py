"""The world: the same bytes from the same seed, and nothing said that the scene does not bear out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from mmalign.data.rows import response_text
from mmalign.files import hash_file
from mmalign.options.world import WorldOptions
from mmalign.worlds.build import build_world
from mmalign.worlds.pairs import ANSWERS, DIFFICULTY, EASY, HARD
from mmalign.worlds.questions import absent_kinds, count_objects
from mmalign.worlds.rows import DESCRIPTION_SHARE, SceneMaker
from mmalign.worlds.scenes import COLOURS, PLACES, SHAPES, Item, Scene, implausible_absent, likely_absent
from mmalign.worlds.text import Speaker
from tests.tiny_models import random_image

SMALL = {"num_scenes": 600, "num_pairs": 600, "num_eval_scenes": 30}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(WorldOptions(out=tmp_path_factory.mktemp("world") / "w", num_workers=1, **SMALL))


def described(text: str) -> set[tuple[str, str, str | None]]:
    """Read (kind, colour, place) back from a description."""
    found = set()
    thing = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    for place, colour, kind in re.findall(rf"(?:At the ({'|'.join(PLACES)}) is )?{thing}", text):
        found.add((kind, colour, place or None))
    return found


def scene_truth(scene: Scene, *, with_place: bool) -> set[tuple[str, str, str | None]]:
    return {(SHAPES[item.kind], COLOURS[item.colour or 0], PLACES[item.place] if with_place else None) for item in scene.items}


def test_same_bytes_whatever_the_number_of_processes(world: Path, tmp_path: Path) -> None:
    again = build_world(WorldOptions(out=tmp_path / "w", num_workers=2, **SMALL))
    first, second = (json.loads((folder / "world.json").read_text())["sha256"] for folder in (world, again))
    assert first == second
    assert first["sft/train.parquet"] == hash_file(world / "sft" / "train.parquet")


def test_another_seed_is_another_world(world: Path, tmp_path: Path) -> None:
    other = build_world(WorldOptions(out=tmp_path / "w", seed=1, num_workers=1, num_scenes=20, num_pairs=5, num_eval_scenes=5))
    rows = [Dataset.from_parquet(str(folder / "sft" / "train.parquet"))[:5]["messages"] for folder in (world, other)]
    assert rows[0] != rows[1]


def test_a_finished_world_is_kept_and_another_is_refused(world: Path) -> None:
    before = (world / "world.json").stat().st_mtime_ns
    build_world(WorldOptions(out=world, num_workers=1, **SMALL))
    assert (world / "world.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another world: its num_pairs is 600, not 7; choose another --out"):
        build_world(WorldOptions(out=world, num_workers=1, **{**SMALL, "num_pairs": 7}))


def test_answers_and_clean_captions_are_true(world: Path) -> None:
    maker = SceneMaker(WorldOptions(out=world, **SMALL))
    sizes: list[int] = []
    for index, row in enumerate(Dataset.from_parquet(str(world / "sft" / "train.parquet")).select_columns(["messages", "kind"])):
        scene, _ = maker.scene("sft", index)
        names = {SHAPES[kind] for kind in scene.kinds}
        turns = zip(row["messages"][::2], row["messages"][1::2], row["kind"].split("+"), strict=True)
        for question, answer, kind in turns:
            text = answer["content"]
            if kind in ("short", "detailed"):
                assert described(text) == scene_truth(scene, with_place=kind == "detailed")
            elif kind.endswith("-noisy"):
                extra = {kind for kind, _, _ in described(text)} - names
                assert len(extra) == 1
                assert SHAPES.index(extra.pop()) in likely_absent(scene)
            elif kind == "attribute":
                name = re.search(r"colour is the (\w+)", question["content"]).group(1)  # type: ignore[union-attr]
                assert (name, text.strip(".").lower(), None) in scene_truth(scene, with_place=False)
            elif kind == "count":
                assert text == ("One.", "Two.", "Three.", "Four.")[len(scene.items) - 1]
            elif kind == "existence":
                name = re.fullmatch(r"Is there an? (\w+) in the image\?", question["content"]).group(1)  # type: ignore[union-attr]
                likely = SHAPES.index(name) in likely_absent(scene)
                # Yes about a likely absent object is the world's noise; any other answer is true.
                assert (name in names) == (text == "Yes.") or (likely and text == "Yes.")
        sizes.append(len(row["messages"]) // 2)
    assert set(sizes) == {1, 6}
    assert np.mean([size == 1 for size in sizes]) == pytest.approx(DESCRIPTION_SHARE, abs=4 * (0.25 / 600) ** 0.5)


def test_share_of_noisy_captions(world: Path) -> None:
    maker = SceneMaker(WorldOptions(out=world, **SMALL))
    kinds = Dataset.from_parquet(str(world / "sft" / "train.parquet"))["kind"]
    descriptions = [i for i, kind in enumerate(kinds) if "existence" not in kind]
    possible = sum(bool(likely_absent(maker.scene("sft", i)[0])) for i in descriptions)
    noisy = sum("noisy" in kind for kind in kinds)
    # 0.8 of the captions that have a likely absent object to name; four standard deviations.
    assert noisy / possible == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / possible) ** 0.5)


def test_pairs_are_graded_balanced_and_trl_shaped(world: Path) -> None:
    pairs = Dataset.from_parquet(str(world / "pairs" / "train.parquet"))
    maker = SceneMaker(WorldOptions(out=world, **SMALL))
    lengths = {"chosen": 0, "rejected": 0}
    for index, row in enumerate(pairs.remove_columns("images")):
        scene, _ = maker.scene("pairs", index)
        chosen, rejected = response_text(row["chosen"], "chosen"), response_text(row["rejected"], "rejected")
        assert chosen != rejected
        assert row["truth_difficulty"] == DIFFICULTY[row["truth_kind"]]
        if row["truth_kind"] in ANSWERS:
            assert (chosen, rejected) == ANSWERS[row["truth_kind"]]
        else:
            assert described(chosen) == scene_truth(scene, with_place="At the" in chosen)
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            lengths[name] += len(text.split())
    easy = np.mean([kind in EASY for kind in pairs["truth_kind"]])
    assert easy == pytest.approx(0.8, abs=4 * (0.16 / 600) ** 0.5)
    assert set(pairs["truth_kind"]) <= EASY.keys() | HARD.keys()
    assert lengths["chosen"] == pytest.approx(lengths["rejected"], rel=0.05)
    assert not any(pairs["truth_flipped"])


def test_label_noise_flips_its_share(tmp_path: Path) -> None:
    folder = build_world(WorldOptions(out=tmp_path / "w", label_noise=0.3, num_workers=1, num_scenes=5, num_pairs=400, num_eval_scenes=2))
    flipped = np.mean(Dataset.from_parquet(str(folder / "pairs" / "train.parquet"))["truth_flipped"])
    assert flipped == pytest.approx(0.3, abs=4 * (0.21 / 400) ** 0.5)


def test_pope_is_balanced_and_true(world: Path) -> None:
    truth = {row["image"]: set(row["truth"]) for row in map(json.loads, (world / "eval" / "chair.jsonl").read_text().splitlines())}
    for split in ("random", "popular", "adversarial"):
        rows = [json.loads(line) for line in (world / "eval" / f"pope_{split}.jsonl").read_text().splitlines()]
        assert sum(row["label"] == "yes" for row in rows) * 2 == len(rows)
        for row in rows:
            name = re.fullmatch(r"Is there an? (\w+) in the image\?", row["text"]).group(1)  # type: ignore[union-attr]
            assert (name in truth[row["image"]]) == (row["label"] == "yes")


def test_pope_negatives_by_hand() -> None:
    # Kind 1 is the most frequent, kind 3 stands most often beside kind 0.
    scenes = [frozenset(kinds) for kinds in ({0, 3}, {0, 3}, {0, 1}, {1}, {1}, {1}, {2})]
    frequency, together = count_objects(scenes, 4)
    assert frequency.tolist() == [3, 4, 1, 2]
    assert together[0].tolist() == [0, 1, 0, 2]
    rng = np.random.default_rng(0)
    options = {"frequency": frequency, "together": together, "rng": rng}
    assert absent_kinds("popular", frozenset({0}), **options) == [1, 3, 2]
    assert absent_kinds("adversarial", frozenset({0}), **options) == [3, 1, 2]
    assert sorted(absent_kinds("random", frozenset({0}), **options)) == [1, 2, 3]


def test_likely_and_implausible_by_hand() -> None:
    scene = Scene((Item(0, 0, 0), Item(3, 1, 2)))
    assert likely_absent(scene) == [1, 2]
    assert implausible_absent(scene, 8) == [4, 5, 6, 7]


def test_words_by_hand() -> None:
    scene = Scene((Item(0, 5, 0), Item(7, 0, 3)))
    speaker = Speaker(SHAPES)
    assert speaker.short(scene) == "There is a black circle and a red ring."
    assert speaker.detailed(scene) == "At the top left is a black circle. At the bottom right is a red ring."


def test_photo_mosaics_keep_their_photos_apart(tmp_path: Path) -> None:
    names = ["cat", "dog", "ship", "frog"]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rows = {"image": [random_image(i, (8, 8)) for i in range(48)], "label": [i % 4 for i in range(48)]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "photos.parquet")
    config = WorldOptions(
        out=tmp_path / "w",
        source="photos",
        photos=tmp_path / "photos.parquet",
        num_workers=1,
        num_scenes=20,
        num_pairs=20,
        num_eval_scenes=5,
    )
    folder = build_world(config)
    text = json.dumps(Dataset.from_parquet(str(folder / "sft" / "train.parquet"))["messages"][:20])
    assert any(name in text for name in names)
    assert not any(colour in text for colour in COLOURS)
    assert "swap-colour" not in Dataset.from_parquet(str(folder / "pairs" / "train.parquet"))["truth_kind"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_noise": 1.5}, r"caption_noise is 1.5; expected a share in \[0, 1\]"),
        ({"num_pairs": 0}, "num_pairs is 0; expected at least 1"),
        ({"max_objects": 5}, "max_objects is 5; expected 1 to 4"),
        ({"image_size": 8}, "image_size is 8; expected at least 24 pixels"),
        ({"source": "photos"}, "--source photos and --photos FILE go together"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldOptions(out=tmp_path, **change)  # type: ignore[arg-type]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no world"):
        build_world(WorldOptions(out=tmp_path, **SMALL))
    assert (tmp_path / "thesis.tex").read_text() == "mine"
