"""List the objects of COCO's 2014 images, which CHAIR and Object HalBench score against, from COCO's own annotations.

    python data_tools/coco_objects.py annotations/ --words chair/synonyms.txt --out chair/coco2014_objects.json.gz
    python data_tools/coco_objects.py annotations/ --words hal/synonyms_refine.txt --out hal/objects.json --benchmark object-halbench

The folder is that of annotations_trainval2014.zip: instances_{train,val}2014.json and captions_{train,val}2014.json. An image holds the
categories of its instances and what its captions name, read as the benchmark reads captions: CHAIR makes words singular by rule, Object
HalBench by WordNet. OUT maps each image's number to its objects; `mmalign evaluate` finds it beside the word list by its name.
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_tools.program import run_program
from mmalign.errors import UserError

PARTS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """Options of ``coco_objects.py``."""

    annotations: Path = field(metadata={"positional": True})
    """folder of COCO's instances_*2014.json and captions_*2014.json"""
    words: Path
    """the benchmark's word list: synonyms.txt or synonyms_refine.txt"""
    out: Path
    """file to write: a name with 'objects' that ends in .json or .json.gz"""
    benchmark: Literal["chair", "object-halbench"] = "chair"
    """whose way of reading captions"""


def run(options: ObjectOptions) -> None:
    """Write the objects of every image.

    Raises:
        ValueError: If an annotation file is missing, or ``out`` has a name that the benchmark would not find.
    """
    from mmalign.evaluation.object_words import read_synonyms

    if "objects" not in options.out.name or not options.out.name.endswith((".json", ".json.gz")):
        raise UserError(f"--out is {options.out.name}; expected a name with 'objects' that ends in .json or .json.gz")
    files = [options.annotations / f"{kind}_{part}2014.json" for kind in ("instances", "captions") for part in PARTS]
    missing = [path.name for path in (*files, options.words) if not path.is_file()]
    if missing:
        raise UserError(f"{options.annotations} has no {', '.join(missing)}; unpack annotations_trainval2014.zip, and name the word list")
    synonyms = read_synonyms(options.words.read_text(encoding="utf-8"), strip=options.benchmark == "object-halbench")
    find = choose_finder(options.benchmark, synonyms)
    objects = list_objects(map(_read, files[:2]), map(_read, files[2:]), synonyms=synonyms, find=find)
    text = json.dumps(objects).encode()
    # No time in the archive: the same annotations give the same bytes.
    options.out.write_bytes(gzip.compress(text, mtime=0) if options.out.suffix == ".gz" else text)
    print(f"{sum(map(len, objects.values())):,} objects in {len(objects):,} images: {options.out}")


def choose_finder(benchmark: str, synonyms: Mapping[str, str]) -> Callable[[str], list[str]]:
    """Return what finds the objects of a caption."""
    if benchmark == "chair":
        from mmalign.evaluation.chair import find_objects
        from mmalign.evaluation.object_words import build_double_words

        return partial(find_objects, synonyms=synonyms, double_words=build_double_words(), variant="original")
    from mmalign.evaluation.object_halbench import build_own_double_words, find_noun_objects

    return partial(find_noun_objects, synonyms=synonyms, double_words=build_own_double_words(synonyms))


def list_objects(
    instances: Iterable[Mapping[str, Any]],
    captions: Iterable[Mapping[str, Any]],
    *,
    synonyms: Mapping[str, str],
    find: Callable[[str], list[str]],
) -> dict[str, list[str]]:
    """List the objects of each image, by the alphabet; an image without any has an empty list.

    Args:
        instances: COCO's files of instances.
        captions: COCO's files of captions.
        synonyms: Word -> object.
        find: Finds the objects of a caption.

    Raises:
        ValueError: If a category is no word of ``synonyms``.
    """
    objects: dict[str, set[str]] = {}
    for part in instances:
        names = {category["id"]: category["name"] for category in part["categories"]}
        unknown = sorted(name for name in names.values() if name not in synonyms)
        if unknown:
            raise UserError(f"the word list has no {', '.join(unknown)}, which COCO's instances hold; expected the benchmark's own list")
        for image in part["images"]:
            objects.setdefault(str(image["id"]), set())
        for instance in part["annotations"]:
            objects.setdefault(str(instance["image_id"]), set()).add(synonyms[names[instance["category_id"]]])
    for part in captions:
        for caption in part["annotations"]:
            objects.setdefault(str(caption["image_id"]), set()).update(find(caption["caption"]))
    return {image: sorted(names) for image, names in objects.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, ObjectOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
