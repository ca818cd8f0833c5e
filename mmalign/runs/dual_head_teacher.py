"""The teacher of ``mmalign classifier train``: loaded, fitted, its logits scored once and kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.classifier.augment import fixed_numbers, make_views
from mmalign.classifier.class_logits import ClassLogits, load_class_logits, save_class_logits
from mmalign.classifier.class_names import read_class_names
from mmalign.classifier.image_cache import CachedImages
from mmalign.classifier.labeled_images import COOP_SETS
from mmalign.classifier.open_clip import OpenClipTeacher
from mmalign.classifier.splits import LabelSplit
from mmalign.classifier.teachers import PROMPTS, ImageTeacher, TimmTeacher, TipAdapterTeacher, ZeroShotTeacher, load_classifier_teacher
from mmalign.errors import UserError
from mmalign.files import hash_file
from mmalign.options.classifier import TrainClassifierOptions

# Teachers that read the classes' names.
TEXT_TEACHERS = ("zero-shot", "open-clip", "few-shot")
_SCORING_BATCH = 256
# Views of each labelled image that a few-shot teacher is fitted on, as in Tip-Adapter.
_FIT_VIEWS = 10


def load_teacher(options: TrainClassifierOptions, images: CachedImages, split: LabelSplit, *, device: torch.device) -> ImageTeacher | None:
    """Load the teacher, and fit a few-shot one on the split's labelled images; None where it is a file of logits."""
    assert options.teacher is not None, "checked before"
    if options.teacher_kind == "logits":
        return None
    if options.teacher_kind == "classifier":
        return load_classifier_teacher(Path(options.teacher), classes=images.classes, device=device)
    if options.teacher_kind == "timm":
        teacher = TimmTeacher(options.teacher, classes=images.classes, words=choose_words(options, images.classes), device=device)
        if teacher.note:
            print(f"warning: {teacher.note}")
        return teacher
    words = choose_words(options, images.classes)
    if options.teacher_kind == "open-clip":
        return OpenClipTeacher(options.teacher, classes=words, prompts=choose_prompts(options), device=device)
    zero_shot = ZeroShotTeacher(options.teacher, classes=words, prompts=choose_prompts(options), device=device)
    if options.teacher_kind == "zero-shot":
        return zero_shot
    few_shot = TipAdapterTeacher(zero_shot)
    stored, labels = torch.from_numpy(images.pixels[split.labeled]).to(device), torch.from_numpy(images.labels[split.labeled])
    numbers = fixed_numbers(len(labels), _FIT_VIEWS, seed=options.split_seed)
    views = [make_views(stored, numbers[:, i], augmentation=options.augmentation, side=few_shot.side) for i in range(_FIT_VIEWS)]
    print(f"few-shot teacher: {few_shot.fit(views, labels):.1%} on its {len(labels)} labelled images")
    return few_shot


def choose_prompts(options: TrainClassifierOptions) -> tuple[str, ...]:
    """Find the prompts: named ones, texts, a set's own, or "a photo of a {}."."""
    if not options.prompts:
        return PROMPTS[COOP_SETS[options.set].prompts if options.set is not None else "photo"]
    return tuple(text for prompt in options.prompts for text in PROMPTS.get(prompt, (prompt,)))


def choose_words(options: TrainClassifierOptions, classes: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called in words: the table's names, or their own."""
    return tuple(classes) if options.class_names is None else read_class_names(options.class_names, classes)


def cache_teacher(
    options: TrainClassifierOptions,
    teacher: ImageTeacher | None,
    images: CachedImages,
    split: LabelSplit,
    cache: Path,
    *,
    device: torch.device,
) -> ClassLogits:
    """Read the teacher's logits of every image; score them first where they are not yet on disk."""
    assert options.teacher is not None, "checked before"
    if teacher is None:
        found = load_class_logits(Path(options.teacher), ids=images.ids, classes=images.classes, digests=images.digests)
        if not found.knows_images:
            print(f"warning: {options.teacher} does not say of which pixels its logits are: images are matched by their ids alone")
        return found
    what = [images.fingerprint, options.teacher_kind, options.teacher, hash_teacher(options), options.teacher_views]
    what += [options.augmentation, options.split_seed] if options.teacher_views else []
    if options.teacher_kind in TEXT_TEACHERS:
        what += [list(choose_prompts(options)), list(choose_words(options, images.classes))]
    what += [split.labeled.tolist(), options.split_seed, options.augmentation] if options.teacher_kind == "few-shot" else []
    path = cache / f"teacher-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        logits, features = score_teacher(teacher, images, views=options.teacher_views, augmentation=options, device=device)
        source = f"{options.teacher_kind} {options.teacher}"
        about: dict[str, Any] = {"ids": images.ids, "classes": images.classes, "source": source, "digests": images.digests}
        save_class_logits(path, logits=logits, features=features, **about)
    return load_class_logits(path, ids=images.ids, classes=images.classes, digests=images.digests)


def score_teacher(
    teacher: ImageTeacher, images: CachedImages, *, views: int, augmentation: TrainClassifierOptions | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Run the teacher over all images: logits (N, V, C) and features (N, V, D); the centre where ``views`` is 0."""
    numbers = fixed_numbers(len(images.ids), views, seed=augmentation.split_seed) if views and augmentation is not None else None
    logits, features = [], []
    for start in range(0, len(images.ids), _SCORING_BATCH):
        stored = torch.from_numpy(np.array(images.pixels[start : start + _SCORING_BATCH])).to(device)
        found = []
        for view in range(max(1, views)):
            drawn = None if numbers is None else numbers[start : start + _SCORING_BATCH, view]
            kind = "none" if augmentation is None else augmentation.augmentation
            found.append(teacher(make_views(stored, drawn, augmentation=kind, side=teacher.side)))
        logits.append(torch.stack([one.logits.cpu() for one in found], 1))
        features.append(torch.stack([one.features.cpu() for one in found], 1))
    return torch.cat(logits), torch.cat(features)


def score_beside(
    teacher: ImageTeacher | None, cached: ClassLogits | None, found: CachedImages, index: Any, device: torch.device
) -> Tensor | None:
    """The teacher's logits of the images at ``index``, to stand beside the student's; None without a teacher."""
    if cached is not None:
        return cached.logits[index, 0]
    return None if teacher is None else score_teacher(teacher, found, views=0, augmentation=None, device=device)[0][:, 0][index]


def find_feature_width(cached: ClassLogits | None, teacher: ImageTeacher | None, device: torch.device) -> int:
    """How wide the teacher's features are, for a student that predicts them.

    Raises:
        ValueError: If the cached teacher has none.
    """
    if cached is not None:
        if cached.features is None:
            raise UserError("form feature-kd needs the teacher's features, and the file of logits has none")
        return cached.features.shape[-1]
    assert teacher is not None
    return teacher(torch.zeros(1, 3, teacher.side, teacher.side, device=device)).features.shape[-1]


def hash_teacher(options: TrainClassifierOptions) -> str:
    """Hash the teacher's weights where they are files."""
    path = Path((options.teacher or "").removeprefix("local-dir:"))
    if path.is_file():
        return hash_file(path)
    names = ("*.safetensors", "open_clip_*.bin", "pytorch_model.bin", "dual_head.json", "open_clip_config.json", "config.json")
    weights = [one for name in names for one in sorted(path.glob(name))] if path.is_dir() else []
    return hashlib.sha256("".join(hash_file(one) for one in weights).encode()).hexdigest()
