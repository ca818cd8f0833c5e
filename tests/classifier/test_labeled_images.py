"""Labelled images in every layout, label splits, decoded-image cache, views, files of teacher logits."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from torch.nn import functional as F

from mmalign.classifier import labeled_images
from mmalign.classifier.augment import draw_numbers, fixed_numbers, make_views, strengthen
from mmalign.classifier.class_logits import load_class_logits, save_class_logits
from mmalign.classifier.image_cache import CachedImages, cache_images, to_square
from mmalign.classifier.labeled_images import COOP_SETS, LabeledImages, load_labeled_images
from mmalign.classifier.splits import LabelSplit, draw_split, load_split, save_split
from mmalign.data.images import digest_images
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.held import holding
from mmalign.options.classifier import SetName
from tests.tiny_models import random_image

NAMES = ("cat", "dog")


def save_folders(root: Path, number: int = 3) -> Path:
    for label, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for i in range(number):
            random_image(10 * label + i).save(root / name / f"{i}.png")
    return root


def build_dataset(number: int = 6) -> Dataset:
    rows = {
        "image": [random_image(i) for i in range(number)],
        "label": [i % 2 for i in range(number)],
        "id": [f"p{i}" for i in range(number)],
    }
    return Dataset.from_dict(rows, features=Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES), "id": Value("string")}))


def test_class_folders_parquet_and_saved_sets_say_the_same(tmp_path: Path) -> None:
    save_folders(tmp_path / "folders" / "train")
    folders = load_labeled_images(tmp_path / "folders")
    assert folders.classes == NAMES
    assert folders.ids[:2] == ("cat/0.png", "cat/1.png")
    assert folders.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"has train and nothing for split 'test'; name the folder itself"):
        load_labeled_images(tmp_path / "folders", split="test")
    (tmp_path / "hub").mkdir()
    build_dataset().to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    build_dataset(2).to_parquet(tmp_path / "hub" / "test-00000-of-00001.parquet")
    DatasetDict({"train": build_dataset(), "test": build_dataset(2)}).save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "hub", tmp_path / "saved"):
        found = load_labeled_images(source)
        assert found.ids == tuple(f"p{i}" for i in range(6))
        assert found.classes == NAMES
        assert len(load_labeled_images(source, split="test")) == 2
    assert load_labeled_images(tmp_path / "hub").fingerprint() == load_labeled_images(tmp_path / "hub").fingerprint()
    assert load_labeled_images(tmp_path / "hub").fingerprint() != load_labeled_images(tmp_path / "hub", split="test").fingerprint()


def test_tables_that_cant_be_used_are_refused_with_their_name(tmp_path: Path) -> None:
    kinds = {"image": ImageFeature(), "label": ClassLabel(names=NAMES)}
    row = {"image": [random_image(0)], "label": [0]}

    def save(name: str, rows: dict[str, list], **other: object) -> Path:
        path = tmp_path / name / "train-00000-of-00002.parquet"
        path.parent.mkdir()
        Dataset.from_dict(rows, features=Features({**kinds, **other})).to_parquet(path)
        return path

    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    saved = tmp_path / "saved"
    build_dataset().save_to_disk(saved)
    (saved / "state.json").write_text("{")
    several = save("several", row).parent
    Dataset.from_dict(row, features=Features({**kinds, "label": ClassLabel(names=NAMES[::-1])})).to_parquet(several / "train-00001.parquet")
    for source, reason in (
        (damaged, "damaged.parquet can't be read as parquet"),
        (saved, "can't be read as save_to_disk writes it"),
        (several, "hold column label in forms that don't go together"),
        (save("empty", {"image": [], "label": []}), "has no rows"),
        (save("unlabelled", {**row, "label": [None]}), "column label has the value None"),
        (save("words", {**row, "label": ["cat"]}, label=Value("string")), "or a column of text or whole numbers that --label-column names"),
        (save("bytes", {**row, "image": [b"GIF"]}, image=Value("binary")), r"and none of type Image; .* cast_column\(NAME, Image\(\)\)"),
    ):
        with pytest.raises(UserError, match=reason):
            load_labeled_images(source)


def test_paths_of_images_are_followed_in_memory_alone(tmp_path: Path) -> None:
    """``load_dataset("imagefolder")`` has paths; ``to_parquet`` writes them as they are, ``save_to_disk`` the images."""
    save_folders(tmp_path / "images", 2)
    files = [str(tmp_path / "images" / name / f"{i}.png") for name in NAMES for i in range(2)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    dataset = Dataset.from_dict({"image": files, "label": [0, 0, 1, 1]}, features=features)
    dataset.to_parquet(tmp_path / "paths.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"paths.parquet holds no bytes of images, only paths such as .*0.png; save_to_disk stores both"):
        load_labeled_images(tmp_path / "paths.parquet")
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.0)
    with holding({"memory:data": dataset}):
        found = load_labeled_images(Path("memory:data"))
    cached = [cache_images(one, tmp_path, side=8, rejects=rejects) for one in (found, load_labeled_images(tmp_path / "saved"))]
    assert np.array_equal(cached[0].pixels, cached[1].pixels)


def test_numbered_tables_of_a_folder_are_one_set(tmp_path: Path) -> None:
    for split, number in (("train", 2), ("test", 1)):
        (tmp_path / split).mkdir()
        for part in range(number):
            rows = {"img": [random_image(part)], "fine_label": [part]}
            features = Features({"img": ImageFeature(), "fine_label": ClassLabel(names=NAMES)})
            Dataset.from_dict(rows, features=features).to_parquet(tmp_path / split / f"000{part}.parquet")
    assert load_labeled_images(tmp_path / "train").labels.tolist() == [0, 1]
    assert len(load_labeled_images(tmp_path / "test", split="validation")) == 1


def save_table(path: Path, **columns: list[str]) -> None:
    """Two images, with a column of classes for each list of names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({"img": ImageFeature(), **{name: ClassLabel(names=names) for name, names in columns.items()}})
    rows = {"img": [random_image(0), random_image(1)], **{name: [0, 1] for name in columns}}
    Dataset.from_dict(rows, features=features).to_parquet(path)


def test_of_several_columns_of_classes_the_one_that_is_read_is_named(tmp_path: Path) -> None:
    """As in CIFAR-100."""
    save_table(tmp_path / "train-00000-of-00001.parquet", fine_label=NAMES, coarse_label=["animals", "things"])
    (note,) = load_labeled_images(tmp_path).notes
    assert note.endswith("has classes in columns fine_label, coarse_label: fine_label is read; --label-column names another one")
    coarse = load_labeled_images(tmp_path, column="coarse_label")
    assert (coarse.classes, coarse.notes) == (("animals", "things"), ())


@pytest.mark.parametrize("place", ["data/train-00000-of-00001.parquet", "default/train/0000.parquet"])
def test_folders_of_tables_are_named_where_a_data_set_of_the_hub_is(tmp_path: Path, place: str) -> None:
    save_table(tmp_path / place, label=NAMES)
    with pytest.raises(
        UserError, match=rf"has tables in {Path(place).parent} \(1\); name a folder of tables, such as .*{Path(place).parent}"
    ):
        load_labeled_images(tmp_path)
    assert len(load_labeled_images((tmp_path / place).parent)) == 2


def test_a_split_that_a_folder_has_not_is_told_how_to_name_its_files(tmp_path: Path) -> None:
    """Food-101 has validation files and no test files."""
    save_table(tmp_path / "validation-00000-of-00001.parquet", label=NAMES)
    with pytest.raises(
        UserError, match=r"and nothing for split 'test'; .* or a folder of the files that are meant, called test-\*.parquet"
    ):
        load_labeled_images(tmp_path, split="test")


def test_fine_grained_sets_by_name(tmp_path: Path) -> None:
    """CoOp's split file, and FGVC Aircraft's own lists."""
    place = COOP_SETS["oxford_pets"]
    save_folders(tmp_path / place.images)
    rows = [["cat/0.png", 0, "cat"], ["dog/0.png", 1, "dog"]]
    (tmp_path / place.split_file).write_text(json.dumps({"train": rows, "val": rows[:1], "test": rows[1:]}))
    assert len(load_labeled_images(tmp_path, name="oxford_pets")) == 2
    validation = load_labeled_images(tmp_path, name="oxford_pets", split="validation")
    assert validation.ids == ("cat/0.png",)
    assert validation.classes == NAMES
    aircraft = tmp_path / "fgvc_aircraft"
    aircraft.mkdir()
    (aircraft / "variants.txt").write_text("707-320\nA300 B4\n")
    (aircraft / "images_variant_val.txt").write_text("0034309 A300 B4\n1234567 707-320\n")
    found = load_labeled_images(tmp_path, name="fgvc_aircraft", split="validation")
    assert found.ids == ("0034309.jpg", "1234567.jpg")
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"split file not found: .*split_zhou_EuroSAT.json"):
        load_labeled_images(tmp_path, name="eurosat")
    (tmp_path / place.split_file).write_text(json.dumps({"train": [["a", 0, "cat"], ["b", 0, "dog"]]}))
    with pytest.raises(ValueError, match=r"label 0 is both 'cat' and 'dog'"):
        load_labeled_images(tmp_path, name="oxford_pets")
    (tmp_path / place.split_file).write_text(json.dumps({"train": [["a", 0, "cat"], ["b", "dog"]]}))
    with pytest.raises(UserError, match=r"has the row \['b', 'dog'\]; expected \[path, label, class name\]"):
        load_labeled_images(tmp_path, name="oxford_pets")
    (tmp_path / place.split_file).write_text('{"train": [')
    with pytest.raises(UserError, match=r"OxfordPets.json is damaged or no JSON"):
        load_labeled_images(tmp_path, name="oxford_pets")


def test_every_named_set_has_its_place() -> None:
    assert set(COOP_SETS) == set(get_args(SetName))


LABELS = np.repeat(np.arange(4), [50, 30, 20, 3]).astype(np.int64)


@pytest.mark.parametrize(
    ("how", "expected"), [({"shots": 5}, [5, 5, 5, 3]), ({"share": 0.3}, [10, 9, 9, 3]), ({"share": 1.0}, [50, 30, 20, 3])]
)
def test_splits_are_disjoint_balanced_and_repeatable(how: dict[str, float], expected: list[int]) -> None:
    """0.3 x 103 = 31 images: 3 from the class that has no more, and 28 over three classes."""
    split, again, other = (draw_split(LABELS, num_classes=4, seed=seed, **how) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert sorted(Counter(LABELS[split.labeled].tolist()).values(), reverse=True) == expected
    assert np.array_equal(np.sort(np.concatenate([split.labeled, split.unlabeled])), np.arange(len(LABELS)))
    assert all(np.array_equal(getattr(split, name), getattr(again, name)) for name in ("labeled", "unlabeled", "validation"))
    if how != {"share": 1.0}:
        assert not np.array_equal(split.labeled, other.labeled)


def test_validation_part_is_held_out_of_every_class() -> None:
    split = draw_split(LABELS, num_classes=4, seed=0, shots=2, validation_share=0.2)
    assert np.bincount(LABELS[split.validation]).tolist() == [10, 6, 4, 1]
    assert not set(split.validation) & (set(split.labeled) | set(split.unlabeled))


def test_index_file_holds_ids_and_refuses_overlap(tmp_path: Path) -> None:
    ids = [f"p{i}" for i in range(len(LABELS))]
    split = draw_split(LABELS, num_classes=4, seed=0, shots=2, validation_share=0.2)
    save_split(tmp_path / "split.json", split, ids, seed=0)
    loaded = load_split(tmp_path / "split.json", ids)
    assert np.array_equal(loaded.labeled, split.labeled)
    assert np.array_equal(loaded.validation, split.validation)
    with pytest.raises(ValueError, match=r"names image 'p102', which the data don't have"):
        load_split(tmp_path / "split.json", ids[:-1])
    save_split(tmp_path / "bad.json", LabelSplit(split.labeled, split.labeled, split.validation), ids)
    with pytest.raises(ValueError, match=r"twice; labelled, unlabelled and validation images must be disjoint"):
        load_split(tmp_path / "bad.json", ids)
    (tmp_path / "bad.json").write_text('{"labeled": ["p1"], "unlabeled": [["p2"]]}')
    with pytest.raises(UserError, match=r"bad.json is no split; expected lists of image ids"):
        load_split(tmp_path / "bad.json", ids)


def test_share_and_shots_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"shots is 2 and share 0.1; expected one of the two"):
        draw_split(LABELS, num_classes=4, seed=0, shots=2, share=0.1)


def test_corrupt_image_is_rejected_with_its_path_and_the_cache_is_found_again(tmp_path: Path) -> None:
    root = save_folders(tmp_path / "images", number=12)
    (root / "cat" / "5.png").write_bytes((root / "cat" / "5.png").read_bytes()[:200])
    data = load_labeled_images(root)
    for turn in range(2):
        rejects = Rejects(tmp_path / f"rejects{turn}.jsonl", max_share=0.05)
        found = cache_images(data, tmp_path / "cache", side=16, rejects=rejects)
        assert len(found.ids) == len(found.labels) == len(found.pixels) == 23
        assert "cat/5.png" not in found.ids
        assert found.pixels.shape[1:] == (3, 16, 16)
        (line,) = (tmp_path / f"rejects{turn}.jsonl").read_text().splitlines()
        assert json.loads(line)["id"] == "cat/5.png"
        assert str(root / "cat" / "5.png") in json.loads(line)["reason"]
        if turn == 0:
            stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    expected = to_square(random_image(17).convert("RGB"), 16)
    assert np.array_equal(found.pixels[found.ids.index("dog/7.png")], expected)
    with pytest.raises(ValueError, match=r"1 of \d+ rows are broken"):
        cache_images(data, tmp_path / "other", side=16, rejects=Rejects(tmp_path / "r.jsonl", max_share=0.0))


def test_cache_is_of_the_images_content(tmp_path: Path) -> None:
    """Another picture under the same name, of the same size and time, is another data set; a copy elsewhere is not."""

    def cached(root: Path) -> tuple[CachedImages, int]:
        data = load_labeled_images(root)
        found = cache_images(data, tmp_path / "cache", side=16, rejects=Rejects(tmp_path / "rejects.jsonl", max_share=0.0))
        return found, len(list((tmp_path / "cache").glob("images-*.npy")))

    root = tmp_path / "images"
    for label, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for i in range(3):
            random_image(10 * label + i).save(root / name / f"{i}.bmp")
    first, number = cached(root)
    assert number == 1
    shutil.copytree(root, tmp_path / "copy")
    again, number = cached(tmp_path / "copy")
    assert (again.fingerprint, number) == (first.fingerprint, 1)
    path = root / "dog" / "1.bmp"
    before = path.stat()
    random_image(99).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    changed, number = cached(root)
    assert number == 2
    assert np.array_equal(changed.pixels[4], to_square(random_image(99), 16))
    assert [i for i in range(6) if first.digests[i] != changed.digests[i]] == [4]
    assert changed.digests[4] == digest_images([random_image(99)])


def test_untouched_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_labeled_images(save_folders(tmp_path / "images"))
    first = data.fingerprint(tmp_path / "memory")
    assert first == data.fingerprint()
    monkeypatch.setattr(labeled_images, "_read_content", lambda source: pytest.fail("read again"))
    assert data.fingerprint(tmp_path / "memory") == first


def test_labels_are_numbered_by_name(tmp_path: Path) -> None:
    """A split that lacks a class is counted by the model's numbers; one that has another class is refused."""
    for name in ("dog", "frog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        random_image(1).save(tmp_path / "test" / name / "0.png")
    test = load_labeled_images(tmp_path, split="test").with_classes(("cat", "dog", "frog"), what="the test set")
    assert test.labels.tolist() == [1, 2]
    assert test.classes == ("cat", "dog", "frog")
    assert test.notes == ("the test set has no image of class cat (1)",)
    with pytest.raises(ValueError, match=r"the test set has images of dog \(1\), and the classes are cat, frog \(2\)"):
        load_labeled_images(tmp_path, split="test").with_classes(("cat", "frog"), what="the test set")


def test_a_name_without_images_is_no_other_class() -> None:
    """Labels of a table may name more than is shown."""
    shown = LabeledImages(("a",), (b"",), np.array([2]), ("cat", "dog", "frog"))
    assert shown.with_classes(("frog", "toad"), what="it").labels.tolist() == [0]


def test_square_keeps_the_centre() -> None:
    image = random_image(0, (20, 40))
    assert np.array_equal(to_square(image, 20), np.asarray(image)[:, 10:30].transpose(2, 0, 1))


def images(side: int = 16, number: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_views_are_functions_of_their_numbers() -> None:
    stored, numbers = images(), draw_numbers(6, generator=torch.Generator().manual_seed(0))
    for augmentation in ("pad-crop", "random-resized-crop"):
        views = make_views(stored, numbers, augmentation=augmentation, side=16)
        assert views.shape == (6, 3, 16, 16)
        assert torch.equal(views, make_views(stored, numbers, augmentation=augmentation, side=16))
        # The view of an image does not depend on its batch.
        assert torch.equal(views[2:3], make_views(stored[2:3], numbers[2:3], augmentation=augmentation, side=16))
        assert views.min() >= 0
        assert views.max() <= 1
    assert torch.equal(fixed_numbers(4, 2, seed=3), fixed_numbers(4, 2, seed=3))


def test_pad_crop_by_hand() -> None:
    """Numbers 0.99, 0.5: down by 2 of 16 over a reflected border; 0.9: no flip; 0.1 flips."""
    stored = images(number=1)
    straight = make_views(stored, torch.tensor([[0.99, 0.5, 0.9, 0.0, 0.0]]), augmentation="pad-crop", side=16)
    padded = F.pad(stored.float() / 255, (2, 2, 2, 2), mode="reflect")
    assert torch.equal(straight, padded[:, :, 4:20, 2:18])
    flipped = make_views(stored, torch.tensor([[0.99, 0.5, 0.1, 0.0, 0.0]]), augmentation="pad-crop", side=16)
    assert torch.equal(flipped, straight.flip(-1))


def test_whole_box_of_a_resized_crop_is_the_image_and_none_is_the_centre() -> None:
    stored = images(number=1)
    whole = make_views(stored, torch.tensor([[1.0, 0.5, 0.9, 0.5, 0.5]]), augmentation="random-resized-crop", side=16)
    torch.testing.assert_close(whole, stored.float() / 255, atol=1e-5, rtol=0)
    assert torch.equal(make_views(stored, None, augmentation="pad-crop", side=8), stored[..., 4:12, 4:12].float() / 255)


def test_strong_views_have_a_grey_square() -> None:
    strong = strengthen(torch.rand(2, 3, 16, 16), torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5]] * 2))
    assert (strong[..., 4:12, 4:12] == 0.5).all()
    assert (strong == 0.5).all(1).sum((-1, -2)).tolist() == [64, 64]


def test_teacher_logits_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path, logits = tmp_path / "logits.safetensors", torch.randn(3, 2)
    save_class_logits(path, ids=["a", "b", "c"], classes=NAMES, logits=logits, source="here")
    found = load_class_logits(path, ids=["c", "a"], classes=NAMES)
    assert torch.equal(found.logits, logits[[2, 0], None])
    assert found.features is None
    turned = load_class_logits(path, ids=["c", "a"], classes=NAMES[::-1])
    assert torch.equal(turned.logits, logits[[2, 0], None][..., [1, 0]])
    with pytest.raises(ValueError, match=r"alone has dog \(1\), the data alone have frog \(1\)"):
        load_class_logits(path, ids=["a"], classes=("cat", "frog"))
    with pytest.raises(ValueError, match=r"has no logits of image 'd' \(1 such images\)"):
        load_class_logits(path, ids=["a", "d"], classes=NAMES)
    assert not found.knows_images
    save_class_logits(path, ids=["a", "b", "c"], classes=NAMES, logits=logits, source="here", digests=["0a", "0b", "0c"])
    assert load_class_logits(path, ids=["c", "a"], classes=NAMES, digests=["0c", "0a"]).knows_images
    with pytest.raises(ValueError, match=r"is stale: its logits of 'a' are of the image 0a, and the data's is 1a \(1 such images\)"):
        load_class_logits(path, ids=["c", "a"], classes=NAMES, digests=["0c", "1a"])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"can't be read as teacher logits"):
        load_class_logits(path, ids=["a"], classes=NAMES)
