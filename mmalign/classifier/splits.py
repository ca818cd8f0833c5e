"""Which images keep their labels: drawn once, disjoint, saved as an index file of image ids.

Shape legend: N = images, C = classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError
from mmalign.files import read_json, write_whole

Indices = NDArray[np.int64]
_LISTS = ("labeled", "unlabeled", "validation")


@dataclass(frozen=True)
class LabelSplit:
    """Disjoint positions in a set of images; what is in none is not used."""

    labeled: Indices
    unlabeled: Indices
    validation: Indices


def draw_split(
    labels: Indices, *, num_classes: int, seed: int, shots: int | None = None, share: float | None = None, validation_share: float = 0.0
) -> LabelSplit:
    """Draw labelled images, the same number of every class; the others are unlabelled.

    Args:
        labels: (N,) class of each image.
        num_classes: C.
        seed: Of the drawing; equal labels and seed give an equal split.
        shots: Images per class; of a smaller class all. Or:
        share: Of the images left by the validation part, in (0, 1]; what can't be divided goes to random classes, one each.
        validation_share: Of each class, held out first for tuning.

    Raises:
        ValueError: If shots and share are both or neither given, or out of range.
    """
    if (shots is None) == (share is None):
        raise UserError(f"shots is {shots} and share {share}; expected one of the two")
    if (shots is not None and shots < 1) or (share is not None and not 0 < share <= 1) or not 0 <= validation_share < 1:
        raise UserError(f"shots is {shots}, share {share}, validation_share {validation_share}; expected shots >= 1, shares in (0, 1]")
    rng = np.random.default_rng(seed)
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
    held = [round(validation_share * len(pool)) for pool in pools]
    validation = [pool[:number] for pool, number in zip(pools, held, strict=True)]
    pools = [pool[number:] for pool, number in zip(pools, held, strict=True)]
    sizes = np.array([len(pool) for pool in pools])
    wanted = np.minimum(shots, sizes) if shots is not None else _balance(round((share or 0) * sizes.sum()), sizes, rng)
    labeled = [pool[:number] for pool, number in zip(pools, wanted, strict=True)]
    rest = [pool[number:] for pool, number in zip(pools, wanted, strict=True)]
    return LabelSplit(*(np.sort(np.concatenate(parts)).astype(np.int64) for parts in (labeled, rest, validation)))


def save_split(path: Path, split: LabelSplit, ids: Sequence[str], **about: Any) -> None:
    """Write the split as lists of image ids, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {name: [ids[i] for i in getattr(split, name)] for name in _LISTS}
    write_whole(path, json.dumps({**about, **lists}, ensure_ascii=False))


def load_split(path: Path, ids: Sequence[str]) -> LabelSplit:
    """Read a split back.

    Raises:
        ValueError: If the file is missing or has another form, names an unknown image, or one in two lists.
    """
    if not path.is_file():
        raise UserError(f"split file not found: {path}")
    values = read_json(path)
    lists = [values.get(name, []) for name in _LISTS] if isinstance(values, dict) and {"labeled", "unlabeled"} <= values.keys() else []
    if not lists or not all(isinstance(part, list) and all(isinstance(image_id, str) for image_id in part) for part in lists):
        raise UserError(f"{path} is no split; expected lists of image ids: labeled, unlabeled and, if there is one, validation")
    place = {image_id: index for index, image_id in enumerate(ids)}
    unknown = [image_id for part in lists for image_id in part if image_id not in place]
    if unknown:
        raise UserError(f"{path} names image {unknown[0]!r}, which the data don't have ({len(unknown)} such images)")
    named = [image_id for part in lists for image_id in part]
    if len(set(named)) != len(named):
        twice = next(image_id for image_id in named if named.count(image_id) > 1)
        raise UserError(f"{path} names image {twice!r} twice; labelled, unlabelled and validation images must be disjoint")
    return LabelSplit(*(np.array(sorted(place[image_id] for image_id in part), dtype=np.int64) for part in lists))


def _balance(total: int, sizes: Indices, rng: np.random.Generator) -> Indices:
    """Deal ``total`` out to classes as evenly as their sizes allow."""
    if total < 1:
        raise UserError(f"the share of {sizes.sum()} images is less than one image; raise it")
    wanted = np.zeros_like(sizes)
    while wanted.sum() < total:
        free = np.flatnonzero(wanted < sizes)
        missing = total - int(wanted.sum())
        if missing >= len(free):
            wanted[free] = np.minimum(wanted[free] + missing // len(free), sizes[free])
        else:
            wanted[rng.permutation(free)[:missing]] += 1
    return wanted
