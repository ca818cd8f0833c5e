"""The images of a training run: found, checked by name, decoded, and split into those with labels and those without."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmalign.classifier.backbone import check_weights
from mmalign.classifier.class_names import check_words, few
from mmalign.classifier.image_cache import CachedImages, cache_images
from mmalign.classifier.labeled_images import LabeledImages, load_labeled_images
from mmalign.classifier.prompts import TEXT_TEACHERS, choose_words
from mmalign.classifier.splits import Indices, LabelSplit, draw_split, load_split, save_split
from mmalign.classifier.student import stored_side
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.options.classifier import ClassifierRunOptions, LabelOptions, Split

SPLIT_FILE = "split.json"


class RunImages(NamedTuple):
    """The decoded images of a training run."""

    train: CachedImages
    split: LabelSplit
    scored: dict[str, tuple[CachedImages, Indices]]
    """validation and test, as far as there are any: images, and which of them count."""


def check_label_choice(options: LabelOptions) -> None:
    """Check what says which images have labels.

    Raises:
        ValueError: If labels are chosen in no way or in several.
    """
    given = [name for name in ("shots", "label_share", "split_file") if getattr(options, name) is not None]
    if len(given) != 1:
        raise UserError(f"{', '.join(given) or 'none'} of --shots, --label-share and --split-file is given; expected one")


def check_choice(options: ClassifierRunOptions) -> None:
    """Check what says which images have labels, and which tune, and that the backbone's weights are there.

    Raises:
        ValueError: If labels are chosen in no way or in several, validation and test images are the same file, or weights are missing.
    """
    check_label_choice(options)
    if options.backbone_weights is not None:
        check_weights(options.backbone_weights)
    if options.validation_data is not None and options.validation_data == options.test_data and options.validation_data.is_file():
        raise UserError(f"{options.test_data} is named for validation and test; the mixing may be tuned on validation images only")


def load_sources(options: ClassifierRunOptions) -> dict[str, LabeledImages]:
    """Find the images of train, and of validation and test as far as they are named, numbered by the training images' classes.

    Raises:
        ValueError: If they can't be found, or show a class that the training images don't have.
    """
    found = {"train": load_labeled_images(options.data, split="train", name=options.set, column=options.label_column)}
    if len(classes := found["train"].classes) < 2:
        raise UserError(f"{options.data} has the classes {', '.join(classes)}; expected at least two, a folder of images for each")
    named: dict[Split, Path | None] = {"validation": options.validation_data, "test": options.test_data}
    for split, path in named.items():
        source = options.data if options.set is not None and path is None else path
        if source is not None:
            data = load_labeled_images(source, split=split, name=options.set if path is None else None, column=options.label_column)
            found[split] = data.with_classes(found["train"].classes, what=f"{source} ({split})")
    return found


def check_names(options: ClassifierRunOptions, sources: Mapping[str, LabeledImages], *, text_init: bool = False) -> list[str]:
    """Check the class names where a text tower reads them.

    Returns:
        What is odd with names and files, in words.

    Raises:
        ValueError: If names tell a text tower nothing, or the table of them lacks a class.
    """
    notes = [note for part in sources.values() for note in part.notes]
    words = choose_words(options, sources["train"].classes)
    if text_init or (options.teacher is not None and options.teacher_kind in TEXT_TEACHERS):
        notes += check_words(words)
    return list(dict.fromkeys(notes))


def decode_images(options: ClassifierRunOptions, sources: Mapping[str, LabeledImages]) -> RunImages:
    """Decode all images, or find them decoded, and choose those with labels.

    Raises:
        ValueError: If too many are broken, or validation and test images are the same.
    """
    train = _decode(options, sources["train"], "rejects.jsonl")
    split = choose_split(options, train, options.out / SPLIT_FILE)
    # Validation first: what is tuned on it counts in the test report.
    scored = {"validation": (train, split.validation)} if len(split.validation) else {}
    for name in ("validation", "test"):
        if name in sources:
            found = _decode(options, sources[name], f"{name}_rejects.jsonl")
            scored[name] = found, np.arange(len(found.ids))
    if "validation" in scored and "test" in scored and scored["validation"][0].fingerprint == scored["test"][0].fingerprint:
        raise UserError("validation and test images are the same; the mixing may be tuned on validation images only")
    return RunImages(train, split, scored)


def check_images(images: RunImages) -> list[str]:
    """Say what is odd with decoded images, in words: classes that no label names, and images of the training data that are scored."""
    train, split = images.train, images.split
    labeled = set(train.labels[split.labeled].tolist())
    bare = [train.classes[label] for label in np.unique(train.labels).tolist() if label not in labeled]
    notes = [f"no image of class {few(bare)} is labelled"] if bare else []
    with_label = {train.digests[i] for i in split.labeled}
    known = with_label | {train.digests[i] for i in split.unlabeled}
    for name, (found, index) in images.scored.items():
        shown = [found.digests[i] for i in index]
        both, taught = (sum(digest in among for digest in shown) for among in (known, with_label))
        if both:
            told = f"{both:,} of {len(shown):,} {name} images are training images too, {taught:,} of them labelled there"
            notes.append(f"{told}: scores on them are not those of new images")
    return notes


def _decode(options: ClassifierRunOptions, data: LabeledImages, rejects: str) -> CachedImages:
    kept = Rejects(options.out / rejects, max_share=options.max_reject_share)
    return cache_images(data, options.cache_folder, side=stored_side(options), rejects=kept)


def choose_split(options: LabelOptions, images: CachedImages, path: Path) -> LabelSplit:
    """Draw the labelled images, or read which they are; kept in ``path``, which wins when the run is resumed."""
    if path.is_file():
        return load_split(path, images.ids)
    if options.split_file is not None:
        split = load_split(options.split_file, images.ids)
    else:
        split = draw_split(
            images.labels,
            num_classes=len(images.classes),
            seed=options.split_seed,
            shots=options.shots,
            share=options.label_share,
            validation_share=options.validation_share,
        )
    save_split(path, split, images.ids, seed=options.split_seed, shots=options.shots, share=options.label_share)
    return split
