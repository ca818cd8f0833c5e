"""Labelled images from the layouts that people have: class folders, Hugging Face image data sets, CoOp's split files.

Shape legend: N = images.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from numpy.typing import NDArray

from mmalign.classifier.class_names import compose, few
from mmalign.classifier.image_folders import UNLABELED, find_class_folders, find_loose_images, find_split
from mmalign.data.datasets import read_files
from mmalign.errors import UserError
from mmalign.files import list_files, read_json, write_whole
from mmalign.held import find_held
from mmalign.options.classifier import SetName, Split


class CoopSet(NamedTuple):
    """Where a fine-grained set lies under the data root, as CoOp (arXiv:2109.01134) lays it out."""

    split_file: str
    images: str


COOP_SETS: dict[SetName, CoopSet] = {
    "caltech101": CoopSet("caltech-101/split_zhou_Caltech101.json", "caltech-101/101_ObjectCategories"),
    "oxford_pets": CoopSet("oxford_pets/split_zhou_OxfordPets.json", "oxford_pets/images"),
    "stanford_cars": CoopSet("stanford_cars/split_zhou_StanfordCars.json", "stanford_cars"),
    "flowers102": CoopSet("oxford_flowers/split_zhou_OxfordFlowers.json", "oxford_flowers/jpg"),
    "food101": CoopSet("food-101/split_zhou_Food101.json", "food-101/images"),
    "fgvc_aircraft": CoopSet("fgvc_aircraft", "fgvc_aircraft/images"),
    "sun397": CoopSet("sun397/split_zhou_SUN397.json", "sun397/SUN397"),
    "dtd": CoopSet("dtd/split_zhou_DescribableTextures.json", "dtd/images"),
    "eurosat": CoopSet("eurosat/split_zhou_EuroSAT.json", "eurosat/2750"),
    "ucf101": CoopSet("ucf101/split_zhou_UCF101.json", "ucf101/UCF-101-midframes"),
}


@dataclass(frozen=True)
class LabeledImages:
    """Encoded images with their classes; nothing is decoded yet."""

    ids: tuple[str, ...]
    images: Sequence[Any]
    """What ``load_image`` takes."""
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    root: Path | None = None
    notes: tuple[str, ...] = ()
    """What the user should know: files that were skipped, classes without an image."""

    def __len__(self) -> int:
        """Count the images."""
        return len(self.ids)

    def fingerprint(self, memory: Path | None = None) -> str:
        """Hash ids, labels, classes and the content of the images' files.

        Args:
            memory: Folder that remembers the hash of files that nobody touched since, so that a later start need not read them all.
        """
        about = json.dumps([self.ids, self.labels.tolist(), self.classes], ensure_ascii=False).encode()
        sources = [_find_source(image, self.root) for image in self.images]
        known = None
        if memory is not None and any(isinstance(source, Path) for source in sources):
            touched = hashlib.sha256(about + b"".join(_last_touched(source) for source in sources)).hexdigest()
            known = memory / f"content-{touched[:16]}.txt"
            if known.is_file():
                return known.read_text(encoding="ascii")
        digest = hashlib.sha256(about)
        for source in sources:
            digest.update(hashlib.sha256(_read_content(source)).digest())
        if known is not None:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_whole(known, digest.hexdigest())
        return digest.hexdigest()

    def rename_classes(self, names: Sequence[str], *, what: str) -> "LabeledImages":
        """Call the classes as another does, in their order.

        Raises:
            ValueError: If two of them get one name.
        """
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"{what} gives several classes the name {few(twice)}; expected one class of the data for each")
        return replace(self, classes=tuple(names))

    def with_classes(self, classes: Sequence[str], *, what: str) -> "LabeledImages":
        """Number the labels as ``classes`` does, by name; a class that has no image here is noted.

        Args:
            classes: The model's.
            what: Whose images these are, for the error and the note.

        Raises:
            ValueError: If there are images of a class that the model doesn't have, with its name.
        """
        if self.classes == tuple(classes):
            return self
        place = {compose(name): index for index, name in enumerate(classes)}
        seen = [self.classes[label] for label in np.unique(self.labels)]
        unknown = [name for name in seen if compose(name) not in place]
        if unknown:
            raise UserError(
                f"{what} has images of {few(unknown)}, and the classes are {few(classes)}; expected no other class: "
                "classes are matched by their names, letter by letter"
            )
        here = set(map(compose, self.classes))
        missing = [name for name in classes if compose(name) not in here]
        notes = (*self.notes, *([f"{what} has no image of class {few(missing)}"] if missing else []))
        numbers = np.array([place.get(compose(name), -1) for name in self.classes], dtype=np.int64)
        return replace(self, labels=numbers[self.labels], classes=tuple(classes), notes=notes)


def load_labeled_images(
    source: Path, *, split: Split = "train", name: SetName | None = None, column: str | None = None, need_labels: bool = True
) -> LabeledImages:
    """Load a split of a data set.

    Args:
        source: A parquet file or a folder of them, a folder of ``Dataset.save_to_disk``, class folders (with or without a folder for
            each split above them), or a CoOp split file. With ``name`` the root folder of CoOp's sets.
        split: Which part.
        name: One of the ten sets.
        column: Of a table: a ClassLabel, or a column of text or whole numbers, each value a class; the first ClassLabel if not given.
        need_labels: False takes a table without classes too, and a folder of images: all are of the one class ``UNLABELED``.

    Raises:
        ValueError: If nothing is there that can be read, a label has no class, or what is there has no columns.
    """
    if split not in get_args(Split):
        raise UserError(f"split is {split!r}; expected one of {', '.join(get_args(Split))}")
    found = _load(source, split, name, column, need_labels=need_labels)
    seen = set(np.unique(found.labels).tolist())
    empty = [name for label, name in enumerate(found.classes) if label not in seen]
    return replace(found, notes=(*found.notes, f"{source} ({split}) has no image of class {few(empty)}")) if empty else found


def _load(source: Path, split: Split, name: SetName | None, column: str | None, *, need_labels: bool) -> LabeledImages:
    table = None if name is not None else _find_table(source, split)
    if table is not None:
        # What is in memory was opened by the user, who may read any file; the paths of a file that came from elsewhere may lead anywhere.
        root = None if find_held(source) is None else Path("/")
        return _from_dataset(*table, column=column, root=root, need_labels=need_labels)
    if column is not None:
        raise UserError(
            f"label_column is {column!r}, and {name or source} is no table; expected Parquet or save_to_disk, such as "
            "datasets.load_dataset('imagefolder', data_dir=...) with its metadata.csv"
        )
    if name is not None:
        return _load_coop_set(name, source, split)
    if source.suffix.lower() == ".json":
        return read_coop_split(source, source.parent, split)
    return _from_folders(source, split, need_labels=need_labels)


def _find_table(source: Path, split: Split) -> tuple[Dataset, str] | None:
    """The table of a split and what it is called in errors; None where the images lie in another layout."""
    if (held := find_held(source)) is not None:
        return held, "the data set in memory"
    if not source.exists():
        raise UserError(f"no images at {source}: expected a folder or a file")
    if source.suffix.lower() == ".parquet":
        return read_files([source], source), str(source)
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return _choose(_load_saved(source), split, what=str(source)), str(source)
    tables = list_files(source, "*.parquet")
    mine = [path for path in tables if find_split(path.stem.split("-")[0]) == split]
    # The hub's own conversion has a folder for each split: train/0000.parquet, train/0001.parquet.
    if mine := mine or (tables if all(path.stem.isdecimal() for path in tables) else []):
        return read_files(mine, source), f"{source} ({split})"
    if tables:
        raise UserError(
            f"{source} has {few([path.name for path in tables])} and nothing for split {split!r}; name the file itself, or a folder of the "
            f"files that are meant, called {split}-*.parquet"
        )
    return None


def read_coop_split(path: Path, images: Path, split: Split) -> LabeledImages:
    """Read a split file of CoOp: ``{"train" | "val" | "test": [[path, label, class name], ...]}``.

    Raises:
        ValueError: If the file has another form, or its class names and numbers don't agree.
    """
    if not path.is_file():
        raise UserError(f"split file not found: {path}; CoOp's data instructions say where to get it")
    values = read_json(path)
    key = next((key for key in values if find_split(key) == split), None) if isinstance(values, dict) else None
    if key is None:
        raise UserError(f"{path} has no split {split!r}; expected lists train, val and test of [path, label, class name]")
    names: dict[int, str] = {}
    for row in (row for rows in values.values() for row in rows):
        if not (isinstance(row, list) and len(row) == 3 and str(row[1]).isdecimal()):
            raise UserError(f"{path} has the row {row}; expected [path, label, class name]")
        label, name = int(row[1]), row[2]
        if names.setdefault(label, name) != name:
            raise UserError(f"{path}: label {label} is both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{path}: labels are {sorted(names)[:3]}...; expected 0 to {len(names) - 1} without gaps")
    rows = values[key]
    ids, labels = tuple(row[0] for row in rows), np.array([int(row[1]) for row in rows], dtype=np.int64)
    return LabeledImages(ids, ids, labels, tuple(names[label] for label in range(len(names))), images)


def _load_coop_set(name: SetName, root: Path, split: Split) -> LabeledImages:
    if name not in COOP_SETS:
        raise UserError(f"set is {name!r}; expected one of {', '.join(COOP_SETS)}")
    place = COOP_SETS[name]
    if name == "fgvc_aircraft":
        return _read_aircraft(root / place.split_file, root / place.images, split)
    return read_coop_split(root / place.split_file, root / place.images, split)


def _read_aircraft(folder: Path, images: Path, split: Split) -> LabeledImages:
    """Read FGVC Aircraft's own lists: ``images_variant_{train,val,test}.txt`` with lines "id variant"."""
    variants, listed = folder / "variants.txt", folder / f"images_variant_{'val' if split == 'validation' else split}.txt"
    for path in (variants, listed):
        if not path.is_file():
            raise UserError(f"list not found: {path}; it comes with FGVC Aircraft's archive (data/ there)")
    classes = tuple(line.strip() for line in variants.read_text(encoding="utf-8").splitlines() if line.strip())
    number = {name: index for index, name in enumerate(classes)}
    rows = [line.strip().split(" ", 1) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    unknown = [name for _, name in rows if name not in number]
    if unknown:
        raise UserError(f"{listed}: variant {unknown[0]!r} is not in {variants}")
    ids = tuple(f"{row[0]}.jpg" for row in rows)
    return LabeledImages(ids, ids, np.array([number[row[1]] for row in rows], dtype=np.int64), classes, images)


def _load_saved(source: Path) -> Dataset | DatasetDict:
    try:
        return load_from_disk(str(source))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{source} can't be read as save_to_disk writes it: {error}") from error


def _choose(loaded: Dataset | DatasetDict, split: str, *, what: str) -> Dataset:
    if not isinstance(loaded, DatasetDict):
        return loaded
    key = next((key for key in loaded if find_split(key) == split), None)
    if key is None:
        raise UserError(f"{what} has no split {split!r}; it has {', '.join(loaded)}")
    return loaded[key]


def _from_dataset(dataset: Dataset, what: str, *, column: str | None, root: Path | None, need_labels: bool) -> LabeledImages:
    if not len(dataset):
        raise UserError(f"{what} has no rows")
    pictures, lists = (_columns_of(dataset, kind) for kind in (Image, ClassLabel))
    if not pictures:
        raise UserError(
            f"{what} has columns {', '.join(dataset.column_names)}, and none of type Image; datasets makes one of bytes or paths: "
            "cast_column(NAME, Image())"
        )
    image, label = pictures[0], column or next(iter(lists), None)
    table = dataset.cast_column(image, Image(decode=False)).with_format("arrow")[:]
    try:
        labels, names = _number_labels(table, dataset.features, label, what=what)
    except UserError:
        if need_labels:
            raise
        labels, names = np.zeros(len(table), dtype=np.int64), [UNLABELED]
    ids = table["id"].to_pylist() if "id" in dataset.column_names else range(len(labels))
    images = table[image].to_pylist()
    if root is None and not any(one and one["bytes"] for one in images):
        raise UserError(f"{what} holds no bytes of images, only paths such as {images[0] and images[0]['path']}; save_to_disk stores both")
    notes = []
    if len(pictures) > 1:
        notes.append(f"{what} has images in columns {', '.join(pictures)}: {image} is read; leave it out of the table for another one")
    if column is None and len(lists) > 1:
        notes.append(f"{what} has classes in columns {', '.join(lists)}: {label} is read; --label-column names another one")
    return _unique(LabeledImages(tuple(map(str, ids)), images, labels, tuple(names), root, tuple(notes)), what=what)


def _columns_of(dataset: Dataset, kind: type) -> list[str]:
    return [name for name, feature in dataset.features.items() if isinstance(feature, kind)]


def _number_labels(table: Any, features: Features, label: str | None, *, what: str) -> tuple[NDArray[np.int64], Sequence[str]]:
    """Number the labels of a column, and name its classes; of plain values each is a class, in their order."""
    if label not in features:
        wanted = label or "a ClassLabel, or a column of text or whole numbers that --label-column names"
        raise UserError(f"{what} has columns {', '.join(features)}; expected {wanted}")
    values, feature, what = table[label].to_pylist(), features[label], f"{what}, column {label}"
    kinds = str if isinstance(feature, Value) and feature.dtype in ("string", "large_string") else int
    odd = [value for value in values if not isinstance(value, kinds)]
    if odd:
        raise UserError(f"{what} has the value {str(odd[0])[:80]}; expected a ClassLabel, text or whole numbers, one for each image")
    if not isinstance(feature, ClassLabel):
        classes = sorted(set(values))
        place = {value: number for number, value in enumerate(classes)}
        return np.array([place[value] for value in values], dtype=np.int64), [str(value) for value in classes]
    labels, names = np.array(values, dtype=np.int64), feature.names
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
        raise UserError(f"{what} has label {labels.min() if labels.min() < 0 else labels.max()}; expected 0 to {len(names) - 1}")
    return labels, names


def _from_folders(source: Path, split: Split, *, need_labels: bool) -> LabeledImages:
    try:
        found = (None if need_labels else find_loose_images(source)) or find_class_folders(source, split)
    except UserError as error:
        below = sorted({path.parent.relative_to(source) for depth in ("*/*", "*/*/*") for path in source.glob(f"{depth}.parquet")})
        if not below:
            raise
        raise UserError(
            f"{source} has tables in {few(list(map(str, below)))}; name a folder of tables, such as {source / below[-1]}"
        ) from error
    ids = tuple(str(path.relative_to(found.folder)) for files in found.files for path in files)
    labels = np.repeat(np.arange(len(found.classes)), [len(files) for files in found.files])
    return LabeledImages(ids, ids, labels.astype(np.int64), found.classes, found.folder, found.notes)


def _unique(found: LabeledImages, *, what: str) -> LabeledImages:
    if len(set(found.ids)) != len(found.ids):
        raise UserError(f"{what} has {len(found.ids)} images and {len(set(found.ids))} different ids; expected each id once")
    return found


def _find_source(image: Any, root: Path | None) -> bytes | Path:
    """The bytes of an image, or the file that holds them."""
    if isinstance(image, dict) and image.get("bytes") is not None:
        return image["bytes"]
    path = Path(image["path"] if isinstance(image, dict) else image)
    return path if root is None else root / path


def _last_touched(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    status = source.stat() if source.is_file() else None
    # The time of the last change of the file itself can't be set back, as that of its content can.
    return f"{source} {status and (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)}".encode()


def _read_content(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    return source.read_bytes() if source.is_file() else b"missing"
