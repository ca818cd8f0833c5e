"""The reader learns to read drawings; metrics by hand; ``evaluate images`` and ``pair_pictures.py`` on what was drawn."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from data_tools.pair_pictures import main as pair_pictures
from data_tools.picture_scores import build_scorer
from data_tools.train_reader import main as train_reader
from mmalign.cli import main
from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.options.world import WorldOptions
from mmalign.pictures.metrics import compare_objects, distances_between, quarters_right
from mmalign.pictures.reader import DrawingReader, load_reader, save_reader, to_pixels
from mmalign.worlds.build import build_world
from mmalign.worlds.drawings import DRAWN_FEATURES
from mmalign.worlds.rows import SceneMaker
from tests.commands.training import train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {"num_scenes": 4, "num_pairs": 4, "num_eval_scenes": 4, "num_workers": 1, "image_size": 32, "max_objects": 3}
    return build_world(WorldOptions(out=tmp_path_factory.mktemp("world") / "w", num_drawings=60, **small))


@pytest.fixture(scope="module")
def reader(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 1,500 other drawings."""
    out = tmp_path_factory.mktemp("reader") / "reader"
    maker = SceneMaker(WorldOptions(out=out, image_size=32, max_objects=3))
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in maker.rows("drawings", range(1000, 2600))]
    Dataset.from_list(rows, features=DRAWN_FEATURES["drawings"]).to_parquet(out.parent / "drawings.parquet")
    words = [str(out.parent / "drawings.parquet"), "--out", str(out), "--held-out", "100", "--epochs", "30"]
    assert train_reader(words) == 0
    return out


def test_it_reads_drawings_that_it_has_not_seen(world: Path, reader: Path) -> None:
    """From 1,500 drawings; from 3,600 it reads 99.5% of 400 right."""
    assert json.loads((reader / "reader.json").read_text())["all_right"] > 0.85
    rows = Dataset.from_parquet(str(world / "drawings" / "drawn_pairs.parquet"))
    network = load_reader(reader)
    named = [[tuple(item) for item in objects] for objects in rows["objects"]]
    shares = []
    for column in ("image_chosen", "image_rejected"):
        drawn = network.read([load_image(value) for value in rows[column]])
        shares.append(compare_objects(drawn, named)["all_right"])
    # A fault is seen: of the rejected ones next to none is all right.
    assert shares[0] > 0.85
    assert shares[1] < 0.1


def test_a_damaged_reader_is_named(tmp_path: Path) -> None:
    save_reader(DrawingReader(2, 3), tmp_path, {})
    sizes, weights = tmp_path / "reader.json", tmp_path / "reader.safetensors"
    for path, content, reason in (
        (sizes, b'{"num_kinds": 5, "num_colours": 3}', "the weights of the reader .* can't be used: .*size mismatch"),
        (sizes, b'{"num_kinds": 2}', "reader.json is not of the form expected: 'num_colours' is missing"),
        (weights, b"{", "the weights of the reader .* can't be used"),
    ):
        held = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"(?s){reason}"):
            load_reader(tmp_path)
        path.write_bytes(held)
    assert load_reader(tmp_path).num_colours == 3


def test_likelihood_by_hand(world: Path, reader: Path) -> None:
    """Of the kind of each quarter, 0 = none, and of each object's colour; a right drawing is likelier than one with a fault."""
    rows = Dataset.from_parquet(str(world / "drawings" / "drawn_pairs.parquet"))
    network, score = load_reader(reader), build_scorer(f"likelihood:{reader}")
    scores = [score(row, [row["image_chosen"], row["image_rejected"]]) for row in rows]
    assert np.mean([chosen > rejected for chosen, rejected in scores]) > 0.9
    with torch.no_grad():
        kinds, colours = (logits[0].log_softmax(-1) for logits in network(to_pixels([rows[0]["image_rejected"]])))
    named = {place: (kind, colour) for kind, colour, place in rows[0]["objects"]}
    expected = sum(kinds[place, 1 + named[place][0] if place in named else 0] for place in range(4))
    expected += sum(colours[place, colour] for place, (_, colour) in named.items())
    assert scores[0][1] == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("named", [[3, 0, 1], [0, 2, 1]])
def test_a_reader_says_what_it_can_not_know(named: list[int], tmp_path: Path) -> None:
    save_reader(DrawingReader(3, 2).eval(), tmp_path, {})
    score, picture = build_scorer(f"likelihood:{tmp_path}"), Image.new("RGB", (8, 8))
    assert len(score({"objects": [[2, 1, 3]]}, [picture] * 2)) == 2
    with pytest.raises(UserError, match="of 3 kinds and 2 colours; train it on drawings that have both"):
        score({"objects": [named]}, [picture])


def test_metrics_by_hand() -> None:
    """Two captions of two objects and one: one picture has a wrong colour and one object too many, the other is right."""
    named = [[(3, 0, 0), (7, 2, 3)], [(1, 1, 2)]]
    drawn = [[(3, 0, 0), (7, 1, 3), (5, 4, 1)], [(1, 1, 2)]]
    found = compare_objects(drawn, named)
    expected = {
        "precision": 2 / 4,
        "recall": 2 / 3,
        "f1": 4 / 7,
        "all_right": 1 / 2,
        "quarters_right": (2 / 4 + 1) / 2,
        "objects": 2.0,
        "false_kinds": 1 / 4,
        "kind_right": 1.0,
        "colour_right": 2 / 3,
    }
    assert found == pytest.approx(expected)
    assert quarters_right([], named[1]) == 0.75
    # An empty picture is not all right, and divides by nothing.
    assert compare_objects([[]], [[(1, 1, 2)]])["f1"] == 0
    # Nor does a caption that names nothing.
    assert all(map(math.isfinite, compare_objects([[(1, 1, 2)]], [[]]).values()))
    grey = [Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)) for value in (10, 40, 20)]
    assert distances_between(grey) == [30, 10, 20]
    assert distances_between(grey[:1]) == []


def test_drawings_of_the_world_score_high(world: Path, reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = world / "drawings" / "drawings.parquet"
    assert main(["evaluate", "images", str(data), "--reader", str(reader), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "images.json").read_text())
    assert result["pictures"] == result["captions"] == 60
    assert result["metrics"]["f1"] > 0.85
    assert "all_right" in capsys.readouterr().out
    assert main(["evaluate", "images", str(data), "--reader", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no reader of drawings" in capsys.readouterr().err
    twice = tmp_path / "twice.parquet"
    Dataset.from_parquet(str(data)).select([0]).map(lambda row: {"objects": [[1, 1, 2], [2, 2, 2]]}).to_parquet(twice)
    assert main(["evaluate", "images", str(twice), "--reader", str(reader), "--out", str(tmp_path / "out")]) == 2
    assert "places from 0 to 3, none twice" in capsys.readouterr().err


def test_pictures_are_held_a_caption_at_a_time(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 captions with three pictures each, whose rows are mixed, at most a caption's are in memory; diversity by hand."""
    rows = Dataset.from_parquet(str(world / "drawings" / "drawings.parquet"))
    rows = rows.remove_columns("id").add_column("id", [f"c{number % 20}" for number in range(60)])
    rows.to_parquet(tmp_path / "rows.parquet")
    arrays = [np.asarray(row["image"], dtype=np.float64) for row in rows]
    save_reader(DrawingReader(6, 6).eval(), tmp_path, {})
    held: list[int] = []
    read = DrawingReader.read

    def counted(reader: DrawingReader, pictures: list[Image.Image]) -> Any:
        held.append(sum(isinstance(one, Image.Image) and one.size == (32, 32) for one in gc.get_objects()))
        return read(reader, pictures)

    monkeypatch.setattr(DrawingReader, "read", counted)
    before = sum(isinstance(one, Image.Image) and one.size == (32, 32) for one in gc.get_objects())
    assert main(["evaluate", "images", str(tmp_path / "rows.parquet"), "--reader", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert len(held) == 20
    assert max(held) - before <= 2 * 3
    result = json.loads((tmp_path / "out" / "images.json").read_text())
    assert (result["pictures"], result["captions"]) == (60, 20)
    pairs = [(first, first + other) for first in range(60) for other in (20, 40) if first + other < 60]
    assert result["metrics"]["diversity"] == pytest.approx(np.mean([np.abs(arrays[i] - arrays[j]).mean() for i, j in pairs]))


def test_own_samples_become_pairs_and_lists_that_train(
    world: Path, reader: Path, janus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DDO's self-play, and lists that the reader scores: what was drawn is what is trained on, code by code."""
    captions = tmp_path / "captions.parquet"
    Dataset.from_parquet(str(world / "drawings" / "drawings.parquet")).select(range(6)).to_parquet(captions)
    drawn = tmp_path / "drawn"
    words = ["--model", str(janus_dir), "--out", str(drawn), "--samples", "3", "--guidance", "1"]
    assert main(["sample-images", str(captions), *words]) == 0
    samples = Dataset.from_parquet(str(drawn / "data" / "000000000.parquet"))
    assert pair_pictures([str(drawn / "data"), "--data", str(captions), "--out", str(tmp_path / "pairs.parquet")]) == 0
    pairs = Dataset.from_parquet(str(tmp_path / "pairs.parquet"))
    assert pairs["codes_rejected"] == samples["codes"]
    assert pairs[4]["image_chosen"].tobytes() == samples_of(captions)[1].tobytes()
    assert pairs[4]["image_rejected"].tobytes() == samples[4]["image"].tobytes()
    assert train(janus_dir, tmp_path / "pairs.parquet", tmp_path / "ddo", "--pictures", "--objective", "ddo") == 0
    assert main(["evaluate", "images", str(drawn / "data"), "--reader", str(reader), "--out", str(tmp_path / "result")]) == 0
    assert json.loads((tmp_path / "result" / "images.json").read_text())["metrics"]["diversity"] > 0
    samples.select([0, 3]).to_parquet(tmp_path / "single.parquet")
    assert pair_pictures([str(tmp_path / "single.parquet"), "--scorer", f"reader:{reader}", "--out", str(tmp_path / "none.parquet")]) == 2
    assert "every caption's samples have one score" in capsys.readouterr().err
    # An untrained model draws nothing that can be read: a right drawing stands for a caption's first sample.
    right = samples_of(captions)
    samples = samples.map(lambda row, i: {"image": right[i // 3] if i % 3 == 0 else row["image"]}, with_indices=True)
    samples.to_parquet(tmp_path / "better.parquet")
    assert pair_pictures([str(tmp_path / "better.parquet"), "--scorer", f"reader:{reader}", "--out", str(tmp_path / "lists.parquet")]) == 0
    lists = Dataset.from_parquet(str(tmp_path / "lists.parquet"))
    named = {row["id"]: [tuple(item) for item in row["objects"]] for row in samples}
    network = load_reader(reader)
    assert len(lists) == 6
    for row in lists:
        assert row["scores"] == [quarters_right(one, named[row["id"]]) for one in network.read(row["images_responses"])]
        assert len(set(row["scores"])) > 1
    words = ["--pictures", "--objective", "rank_dpo", "--batch-size", "2"]
    assert train(janus_dir, tmp_path / "lists.parquet", tmp_path / "rank", *words, kind="listwise") == 0
    capsys.readouterr()
    assert pair_pictures([str(drawn / "data"), "--out", str(tmp_path / "x.parquet")]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_lists_by_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples of sample-denoiser, a list in each row: columns stay, even ones go, and what gives no numbers is told."""
    grey = [Image.new("RGB", (2, 2), (value,) * 3) for value in (10, 30, 20)]
    rows = [{"id": i, "caption": f"c{i}", "images": grey[: 3 - i] if i < 2 else grey[:1] * 2, "paths": [b"a", b"b"]} for i in range(3)]
    types = {"id": Value("int64"), "caption": Value("string")}
    features = Features({**types, "images": List(ImageFeature()), "paths": List(Value("binary"))})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "samples.parquet")
    code = "import numpy as np\ndef bright(caption, pictures, row):\n    return [float(np.mean(picture)) for picture in pictures]\n"
    (tmp_path / "score.py").write_text(code + "def short(caption, pictures, row):\n    return [1.0]\n")
    words = [str(tmp_path / "samples.parquet"), "--out", str(tmp_path / "scored.parquet")]
    assert pair_pictures([*words, "--scorer", f"function:{tmp_path / 'score.py'}:bright"]) == 0
    scored = Dataset.from_parquet(str(tmp_path / "scored.parquet"))
    assert scored["scores"] == [[10, 30, 20], [10, 30]]
    assert scored["paths"] == [[b"a", b"b"]] * 2
    assert scored["id"] == [0, 1]
    assert scored[0]["images"][1].getpixel((0, 0)) == (30, 30, 30)
    for scorer, message in (
        (f"function:{tmp_path / 'score.py'}:short", "gave [1.0] for 3 pictures"),
        (f"function:{tmp_path / 'score.py'}:none", "has no function 'none'"),
        (f"reader:{tmp_path}", "no reader of drawings"),
        ("clip", "scorer is 'clip'; expected reader:DIR, likelihood:DIR or function:FILE.py:NAME"),
    ):
        assert pair_pictures([*words, "--scorer", scorer]) == 2
        assert message in capsys.readouterr().err


def save_samples(path: Path, rows: list[tuple[str | None, str, int]]) -> Path:
    """As sample-images writes them: of each id and caption, and how bright it is."""
    own = [
        {"id": name, "caption": caption, "sample": 0, "image": Image.new("RGB", (2, 2), (grey,) * 3), "codes": [grey], "codes_of": "t"}
        for name, caption, grey in rows
    ]
    Dataset.from_list(own).cast_column("image", ImageFeature()).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["c0", None])
def test_samples_of_two_captions_are_two_lists(name: str | None, tmp_path: Path) -> None:
    """Also where both have one id, or none."""
    samples = save_samples(tmp_path / "samples.parquet", [(name, "dog", 10), (name, "dog", 20), (name, "cat", 40), (name, "cat", 30)])
    code = "import numpy as np\ndef bright(caption, pictures, row):\n    return [float(np.mean(picture)) for picture in pictures]\n"
    (tmp_path / "score.py").write_text(code)
    words = [str(samples), "--scorer", f"function:{tmp_path / 'score.py'}:bright", "--out", str(tmp_path / "lists.parquet")]
    assert pair_pictures(words) == 0
    lists = Dataset.from_parquet(str(tmp_path / "lists.parquet"))
    assert list(zip(lists["caption"], lists["scores"], strict=True)) == [("dog", [10, 20]), ("cat", [40, 30])]


@pytest.mark.parametrize("name", ["c0", None])
def test_pairs_need_to_know_the_picture_of_an_id(name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows may share it, as captions of one picture do."""
    samples = save_samples(tmp_path / "samples.parquet", [(name, "dog", 10)])
    same = save_samples(tmp_path / "same.parquet", [(name, "dog", 50), (name, "a dog", 50)])
    words = [str(samples), "--out", str(tmp_path / "pairs.parquet")]
    assert pair_pictures([*words, "--data", str(same)]) == 0
    assert Dataset.from_parquet(str(tmp_path / "pairs.parquet"))[0]["image_chosen"].getpixel((0, 0)) == (50, 50, 50)
    other = save_samples(tmp_path / "other.parquet", [(name, "dog", 50), (name, "cat", 60)])
    assert pair_pictures([*words, "--data", str(other)]) == 2
    assert f"rows 0 and 1 of {other} have the id {name!r} and different pictures" in capsys.readouterr().err


def samples_of(path: Path) -> list[Image.Image]:
    return [row["image"] for row in Dataset.from_parquet(str(path))]
