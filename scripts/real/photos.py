"""Photographs with captions and objects: COCO as its own folders hold it, or as Parquet files with the images inside.

**COCO's own**: ``annotations/{captions,instances}_{train,val}2014.json`` beside ``train2014/`` and ``val2014/``.

**Parquet**: ``train*.parquet`` and ``val*.parquet`` with the columns image, id, coco_id, captions, objects, objects_instances. There
``objects`` are CHAIR's sets, which hold what captions name beside the true instances, and ``objects_instances`` true instances alone,
of some classes; either is null where it is not known.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pyarrow import parquet

from data_tools.coco_objects import choose_finder, list_objects
from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.evaluation.object_words import read_synonyms

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Photo:
    """One photograph and what is known of it."""

    id: str
    """COCO's number, or the data set's own id where that is not known."""
    image: str
    """File name; POPE's for COCO's photographs."""
    split: Split
    captions: tuple[str, ...]
    objects: frozenset[str] | None
    """CHAIR's set: true instances, and what human captions name."""
    instances: frozenset[str] | None
    """True instances alone, of the classes that are known of its split."""

    def present(self, classes: frozenset[str]) -> frozenset[str]:
        """CHAIR's set without what captions alone name among ``classes``, where the true instances of those are known."""
        objects = self.objects or frozenset()
        return objects if self.instances is None else objects - (classes - self.instances)


@dataclass(frozen=True)
class PhotoSet:
    """Photographs of both splits, and where their images are."""

    photos: tuple[Photo, ...]
    images: dict[str, bytes | Path]
    """File name -> image."""
    classes: frozenset[str]
    """Classes that ``instances`` is true about in both splits."""


def read_photos(source: Path, *, words: Path, most: Mapping[Split, int], preferred: frozenset[int], seed: int) -> PhotoSet:
    """Read photographs in a random order.

    Args:
        source: Folder of Parquet files, or COCO's own.
        words: CHAIR's word list, by which captions are read where the source is COCO's own.
        most: Most photographs of each split.
        preferred: COCO ids that come before others, such as POPE's.
        seed: Of the order.

    Raises:
        UserError: If there is neither form.
    """
    found: list[tuple[Photo, bytes | Path]]
    if (source / "annotations").is_dir():
        found = list(_read_coco(source, words))
    elif list(source.glob("train*.parquet")) and list(source.glob("val*.parquet")):
        found = list(_read_parquet(source))
    else:
        raise UserError(
            f"no photographs at {source}; expected COCO's annotations/, train2014/ and val2014/, or train*.parquet and val*.parquet"
        )
    kept = []
    for split in SPLITS:
        mine = sorted((pair for pair in found if pair[0].split == split), key=lambda pair: pair[0].image)
        order = np.random.default_rng([seed, split == "val"]).permutation(len(mine))
        mine = sorted((mine[i] for i in order), key=lambda pair: not (pair[0].id.isdigit() and int(pair[0].id) in preferred))
        kept += mine[: most[split]]
    return PhotoSet(tuple(photo for photo, _ in kept), {photo.image: image for photo, image in kept}, _known_classes(found))


def _known_classes(found: Sequence[tuple[Photo, Any]]) -> frozenset[str]:
    classes = {split: frozenset[str]() for split in SPLITS}
    for photo, _ in found:
        classes[photo.split] |= photo.instances or frozenset()
    return classes["train"] & classes["val"]


def _read_parquet(source: Path) -> Iterator[tuple[Photo, bytes]]:
    for split in SPLITS:
        for path in sorted(source.glob(f"{split}*.parquet")):
            for row in parquet.read_table(path).to_pylist():
                yield _read_row(row, split), row["image"]["bytes"]


def _read_row(row: dict[str, Any], split: Split) -> Photo:
    known = row["coco_id"] is not None
    # A list of one null stands for an unknown one.
    instances = None if row["objects_instances"] in (None, [None]) else frozenset(row["objects_instances"])
    return Photo(
        id=str(row["coco_id"]) if known else row["id"],
        image=coco_name(row["coco_id"], split) if known else f"{row['id']}.jpg",
        split=split,
        captions=tuple(caption.strip() for caption in row["captions"]),
        objects=None if row["objects"] is None else frozenset(row["objects"]),
        instances=instances,
    )


def _read_coco(source: Path, words: Path) -> Iterator[tuple[Photo, Path]]:
    synonyms = read_synonyms(words.read_text(encoding="utf-8"))
    for split in SPLITS:
        files = [source / "annotations" / f"{kind}_{split}2014.json" for kind in ("instances", "captions")]
        if missing := [path.name for path in files if not path.is_file()]:
            raise UserError(f"{source}/annotations has no {', '.join(missing)}; unpack annotations_trainval2014.zip there")
        instances, captions = (json.loads(path.read_text(encoding="utf-8")) for path in files)
        objects = list_objects([instances], [captions], synonyms=synonyms, find=choose_finder("chair", synonyms))
        true = list_objects([instances], [], synonyms=synonyms, find=lambda caption: [])
        said: dict[str, list[str]] = {}
        for caption in captions["annotations"]:
            said.setdefault(str(caption["image_id"]), []).append(caption["caption"].strip())
        for image in instances["images"]:
            number, path = str(image["id"]), source / f"{split}2014" / image["file_name"]
            if number in said and path.is_file():
                name = coco_name(image["id"], split)
                yield Photo(number, name, split, tuple(said[number]), frozenset(objects[number]), frozenset(true[number])), path


def coco_name(number: int, split: str) -> str:
    """COCO's name of a photograph of 2014, which POPE uses."""
    return f"COCO_{split}2014_{number:012d}.jpg"


def small_jpeg(image: bytes | Path, *, long_side: int) -> bytes:
    """A photograph as JPEG bytes, not larger than ``long_side``; as it is where it is small enough."""
    data = image.read_bytes() if isinstance(image, Path) else image
    with Image.open(io.BytesIO(data)) as opened:
        if max(opened.size) <= long_side and opened.format == "JPEG":
            return data
    # Upright: what is saved again has no tag that says how to turn it.
    picture = load_image(data)
    picture.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def photo_row(photo: Photo) -> dict[str, Any]:
    """A photograph as JSON holds it, without its image."""
    sets = {name: None if (value := getattr(photo, name)) is None else sorted(value) for name in ("objects", "instances")}
    return {**asdict(photo), **sets}


def read_photo_row(row: Mapping[str, Any]) -> Photo:
    """Read what ``photo_row`` wrote; other fields are left out."""
    objects, instances = (None if row[name] is None else frozenset(row[name]) for name in ("objects", "instances"))
    return Photo(row["id"], row["image"], row["split"], tuple(row["captions"]), objects, instances)
