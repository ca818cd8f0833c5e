"""Folders of images as people have them: split folders in any spelling, class folders, and what lies beside them."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmalign.classifier.class_names import few
from mmalign.data.images import SUFFIXES
from mmalign.errors import UserError

# What a split is called in the wild, by the name that mmalign says.
_SPLITS = {
    "train": ("train", "training", "trainset", "trainval"),
    "validation": ("validation", "valid", "val", "valset", "dev", "development"),
    "test": ("test", "testing", "testset"),
    # Which of the two it is, only its maker knows.
    "evaluation": ("eval", "evaluation"),
}
_PLAIN_WORDS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "split"}
# Files and folders that systems leave behind, beside those whose names begin with a dot or two underscores.
_LEFTOVERS = {"thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


UNLABELED = "unlabelled"
"""What the one class is called where images have none."""


class ClassFolders(NamedTuple):
    """The class folders of a split."""

    folder: Path
    """Where they lie."""
    classes: tuple[str, ...]
    files: list[list[Path]]
    """Images of each class."""
    notes: tuple[str, ...]
    """What was skipped, in words."""


def find_split(name: str) -> str | None:
    """Say which split a name means: train, validation, test, evaluation, or None. "Training", "val_images" and "Test-Set" are splits."""
    words = set(_words(name))
    return next((split for split, names in _SPLITS.items() if words - _PLAIN_WORDS and words - _PLAIN_WORDS <= set(names)), None)


def find_class_folders(source: Path, split: str) -> ClassFolders:
    """Find the class folders of a split below ``source``, or in ``source`` itself where no split folders lie in it.

    Raises:
        ValueError: If the split isn't there, images have no class, or there are none.
    """
    if not source.is_dir():
        raise UserError(f"no images at {source}: expected a folder of images for each class, or a data set's file")
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and not is_hidden(path)]
    splits = _split_folders(folders)
    if not splits:
        return _read_classes(source, folders, split)
    mine = [path for path, name in splits.items() if name == split]
    if len(mine) != 1:
        what = f"nothing for split {split!r}" if not mine else f"{' and '.join(path.name for path in mine)} for split {split!r}"
        named = ", ".join(path.name for path in splits)
        raise UserError(f"{source} has {named} and {what}; name the folder itself, such as {(mine or list(splits))[-1]}")
    inside = [path for path in sorted(mine[0].iterdir()) if path.is_dir() and not is_hidden(path)]
    found = _read_classes(mine[0], inside, split)
    beside = [path.name for path in folders if path not in splits]
    notes = (f"skipped folders beside the splits of {source}: {', '.join(beside)}",) if beside else ()
    return found._replace(notes=(*notes, *found.notes))


def find_loose_images(source: Path) -> ClassFolders | None:
    """Find images in a folder itself, none of which has a class; None where there are none, or images of folders below are beside them."""
    if not source.is_dir() or any(
        _is_image(file) for path in source.iterdir() if path.is_dir() and not is_hidden(path) for file in _walk(path)
    ):
        return None
    images = _loose_images(source)
    return ClassFolders(source, (UNLABELED,), [images], ()) if images else None


def is_hidden(path: Path) -> bool:
    """Whether a file or folder was left behind by a system or a program: ``.ipynb_checkpoints``, ``__MACOSX``, ``Thumbs.db``."""
    return path.name.startswith((".", "__")) or path.name.lower() in _LEFTOVERS


def _words(name: str) -> list[str]:
    # valImages, seg_train, train2017
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _split_folders(folders: list[Path]) -> dict[Path, str]:
    """Tell split folders from class folders: a split holds folders, and a class that is called "train" holds images."""
    plain = {path: split for path in folders if (split := find_split(path.name)) is not None and _holds_folders(path)}
    if plain:
        return plain
    # "seg_train" is a split beside "seg_test", and "train_station" a class beside "airport".
    loosely = {path: _find_prefix(path.name) for path in folders if _holds_folders(path)}
    if len({split for split in loosely.values() if split is not None}) > 1:
        return {path: split for path, split in loosely.items() if split is not None}
    flat = [path.name for path in folders if find_split(path.name) is not None]
    if flat and len(flat) == len(folders):
        raise UserError(
            f"{', '.join(flat)} in {folders[0].parent} hold images without a folder for each class; "
            "expected class folders, or a table that has labels"
        )
    return {}


def _find_prefix(name: str) -> str | None:
    """Say which split a part of a name begins like; None if it is like none or several."""
    starts = {"train": "train", "val": "validation", "test": "test", "eval": "evaluation"}
    found = {split for start, split in starts.items() if any(word.startswith(start) for word in _words(name))}
    return found.pop() if len(found) == 1 else None


def _holds_folders(path: Path) -> bool:
    return any(inside.is_dir() and not is_hidden(inside) for inside in path.iterdir())


def _read_classes(folder: Path, folders: list[Path], split: str) -> ClassFolders:
    if len(folders) == 1 and _holds_folders(folders[0]) and not any(map(_is_image, folders[0].iterdir())):
        raise UserError(
            f"{folder} has the one folder {folders[0].name}, which holds folders; name the folder whose folders are classes, "
            f"such as {folders[0]}"
        )
    inner = [[inside for inside in path.iterdir() if inside.is_dir()] for path in folders]
    splits = {find_split(inside.name) for found in inner for inside in found} - {None}
    if len(splits) > 1:
        raise UserError(
            f"the class folders of {folder} hold splits ({', '.join(sorted(map(str, splits)))}), which would be read as one; "
            "move the splits above the classes, such as train/CLASS and test/CLASS"
        )
    files = [_walk(path) for path in folders]
    images = [[path for path in found if _is_image(path)] for found in files]
    if not any(images):
        raise UserError(f"no images at {folder} for split {split!r}: expected a folder of images for each class, or a data set's file")
    others = [path for found in files for path in found if not _is_image(path)]
    loose = _loose_images(folder)
    broken = [path.name for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    notes = []
    if broken:
        notes.append(f"skipped links of {folder} that lead nowhere: {', '.join(broken)}")
    if repeated := _find_repeated(inner):
        notes.append(
            f"the classes {few([path.name for path in folders])} each hold the folders {few(repeated)}, whose images are read as one "
            f"class; if these are the classes, name one folder, such as {folders[0]}"
        )
    if others:
        notes.append(f"skipped {_count(others)} that mmalign doesn't read as images, such as {others[0].relative_to(folder)}")
    if loose:
        notes.append(f"skipped {_count(loose)} beside the class folders, such as {loose[0].name}: they have no class")
    return ClassFolders(folder, tuple(path.name for path in folders), images, tuple(notes))


def _find_repeated(inner: list[list[Path]]) -> list[str]:
    """Names of folders that each of several classes holds, no more and no less: they may be the classes, and those above parts of a set."""
    names = [sorted(path.name for path in found if not is_hidden(path)) for found in inner]
    return names[0] if len(names) > 1 and len(names[0]) > 1 and all(own == names[0] for own in names) else []


def _loose_images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not is_hidden(path) and _is_image(path)]


def _walk(folder: Path) -> list[Path]:
    """List the files below a folder, links to folders followed, those of hidden folders left out."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        # A link to a folder above would be followed for ever.
        folders[:] = [name for name in folders if not is_hidden(Path(name)) and os.path.realpath(Path(place, name)) not in seen]
        found += [path for path in (Path(place, name) for name in files) if not is_hidden(path)]
    return sorted(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _count(paths: Iterable[Path]) -> str:
    kinds = Counter(path.suffix.lower() or "no suffix" for path in paths)
    return f"{kinds.total()} files ({', '.join(f'{kind}: {number}' for kind, number in kinds.most_common())})"
