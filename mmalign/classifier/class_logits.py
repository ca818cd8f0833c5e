"""A file of a teacher's logits, keyed by image id: written once, or brought from elsewhere.

Shape legend: N = images, V = fixed views of each, C = classes, D = feature width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmalign.classifier.class_names import match_classes
from mmalign.errors import UserError
from mmalign.files import whole


@dataclass(frozen=True)
class ClassLogits:
    """In the order of the images that they were read for."""

    logits: Tensor
    """(N, V, C) float32."""
    features: Tensor | None
    """(N, V, D) float32, where the file has them."""
    source: str
    knows_images: bool = True
    """Whether the file says of which images it is, beyond their ids."""

    @property
    def taught(self) -> Tensor:
        """(N,) bool: which images the teacher says something of; its logits of the others are not finite."""
        return self.logits.isfinite().all(-1).all(-1)


def save_class_logits(
    path: Path,
    *,
    ids: Sequence[str],
    classes: Sequence[str],
    logits: Tensor,
    source: str,
    features: Tensor | None = None,
    digests: Sequence[str] = (),
) -> None:
    """Write logits (N, C) or (N, V, C), with ids, class names and, if any, digests of the images in the file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"logits": logits.float().contiguous()}
    if features is not None:
        tensors["features"] = features.float().contiguous()
    about = {"ids": json.dumps(list(ids)), "classes": json.dumps(list(classes)), "source": source}
    if digests:
        about["digests"] = json.dumps(list(digests))
    with whole(path) as partial:
        save_file(tensors, partial, metadata=about)


def load_class_logits(path: Path, *, ids: Sequence[str], classes: Sequence[str], digests: Sequence[str] = ()) -> ClassLogits:
    """Read the logits of these images, in the order of these classes.

    Args:
        path: The file.
        ids: Of the images.
        classes: Names; the file has the same ones, in any order.
        digests: Of the decoded images, as ``CachedImages`` has them; compared where the file has them too.

    Raises:
        ValueError: If the file is damaged, knows other classes, lacks an image, or is of another image with the same id.
    """
    if not path.is_file():
        raise UserError(f"teacher logits not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            logits = file.get_tensor("logits").float()
            features = file.get_tensor("features").float() if "features" in file.keys() else None  # noqa: SIM118 not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read as teacher logits: {error}") from error
    missing = [key for key in ("ids", "classes") if key not in about]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)} in its metadata; write it with mmalign.classifier.class_logits")
    known = json.loads(about["classes"])
    columns = match_classes(known, classes, what=str(path))
    place = {image_id: index for index, image_id in enumerate(json.loads(about["ids"]))}
    absent = [image_id for image_id in ids if image_id not in place]
    if absent:
        raise UserError(f"{path} has no logits of image {absent[0]!r} ({len(absent)} such images)")
    if logits.shape[0] != len(place) or logits.shape[-1] != len(known):
        raise UserError(f"{path} holds logits {tuple(logits.shape)} of {len(place)} images and {len(known)} classes")
    order = torch.tensor([place[image_id] for image_id in ids])
    held = json.loads(about.get("digests", "[]"))
    if held and digests:
        _check_digests(path, ids, [held[i] for i in order.tolist()], digests)
    logits, features = (None if t is None else (t[:, None] if t.ndim == 2 else t)[order] for t in (logits, features))
    assert logits is not None
    return ClassLogits(logits[..., torch.from_numpy(columns)], features, about.get("source", path.name), bool(held))


def _check_digests(path: Path, ids: Sequence[str], held: Sequence[str], now: Sequence[str]) -> None:
    stale = [i for i, (one, other) in enumerate(zip(held, now, strict=True)) if one != other]
    if stale:
        first = stale[0]
        raise UserError(
            f"{path} is stale: its logits of {ids[first]!r} are of the image {held[first]}, and the data's is {now[first]} "
            f"({len(stale)} such images); let the teacher score these images again"
        )
