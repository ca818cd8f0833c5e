"""The teacher of ``mmalign classifier train``: loaded, fitted, its logits scored once and kept on disk.

Shape legend: N = images, V = fixed views of each, C = classes, D = feature width.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from mmalign.classifier.augment import fixed_numbers, make_views
from mmalign.classifier.class_logits import ClassLogits, load_class_logits, save_class_logits
from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.image_cache import CachedImages
from mmalign.classifier.open_clip import OpenClipTeacher
from mmalign.classifier.prompts import TEXT_TEACHERS, choose_prompts, choose_words
from mmalign.classifier.splits import Indices, LabelSplit
from mmalign.classifier.teachers import ClassifierTeacher, ImageTeacher, TimmTeacher, TipAdapterTeacher, ZeroShotTeacher
from mmalign.errors import UserError
from mmalign.files import hash_file
from mmalign.models.fingerprint import PROCESSOR
from mmalign.options.classifier import Augmentation, ClassifierRunOptions, TrainClassifierOptions

_SCORING_BATCH = 256
# Views of each labelled image that a few-shot teacher is fitted on, as in Tip-Adapter.
_FIT_VIEWS = 10


class RunTeacher(NamedTuple):
    """The teacher of a run; a form without one has neither."""

    model: ImageTeacher | None = None
    """None where the teacher is a file of logits."""
    cached: ClassLogits | None = None
    """Logits of every training image; None where each view is scored as it comes."""

    def find_feature_width(self, device: torch.device) -> int:
        """Find how wide the teacher's features are, for a student that predicts them.

        Raises:
            ValueError: If the cached teacher has none.
        """
        if self.cached is not None:
            if self.cached.features is None:
                raise UserError("form feature-kd needs the teacher's features, and the file of logits has none")
            return self.cached.features.shape[-1]
        assert self.model is not None
        return self.model(torch.zeros(1, 3, self.model.side, self.model.side, device=device)).features.shape[-1]

    def score_images(self, images: CachedImages, index: Indices, *, trained: bool, device: torch.device) -> Tensor | None:
        """Find the logits of the images at ``index``, to be scored beside the student's; None without a teacher.

        Args:
            images: Decoded images.
            index: Which of them.
            trained: Whether they are the training images, which the cache has.
            device: Where the teacher runs.
        """
        if trained and self.cached is not None:
            return self.cached.logits[index, 0]
        return None if self.model is None else score_teacher(self.model, images, device=device)[0][:, 0][index]


def prepare_teacher(options: TrainClassifierOptions, images: CachedImages, split: LabelSplit, processes: PartialState) -> RunTeacher:
    """Load the teacher, and score the training images where its logits are cached and not yet on disk."""
    if not options.needs_teacher:
        return RunTeacher()
    teacher = load_teacher(options, images, split, device=processes.device)
    if options.teacher_mode == "live":
        return RunTeacher(teacher)
    with processes.main_process_first():
        return RunTeacher(teacher, cache_teacher(options, teacher, images, split, views=options.teacher_views, device=processes.device))


def load_teacher(options: ClassifierRunOptions, images: CachedImages, split: LabelSplit, *, device: torch.device) -> ImageTeacher | None:
    """Load the teacher, and fit a few-shot one on the split's labelled images; None where it is a file of logits."""
    source, kind = options.teacher, options.teacher_kind
    assert source is not None, "checked before"
    if kind == "logits":
        return None
    if kind == "classifier":
        return ClassifierTeacher(load_dual_head(Path(source)), classes=images.classes, what=f"teacher {source}", device=device)
    words = choose_words(options, images.classes)
    if kind == "timm":
        timm_teacher = TimmTeacher(source, classes=images.classes, words=words, device=device)
        if timm_teacher.note:
            print(f"warning: {timm_teacher.note}")
        return timm_teacher
    if kind == "open-clip":
        return OpenClipTeacher(source, classes=words, prompts=choose_prompts(options), device=device)
    zero_shot = ZeroShotTeacher(source, classes=words, prompts=choose_prompts(options), device=device)
    return zero_shot if kind == "zero-shot" else fit_few_shot(options, zero_shot, images, split, device=device)


def fit_few_shot(
    options: ClassifierRunOptions, zero_shot: ZeroShotTeacher, images: CachedImages, split: LabelSplit, *, device: torch.device
) -> TipAdapterTeacher:
    """Fit a teacher on views of the split's labelled images."""
    few_shot = TipAdapterTeacher(zero_shot)
    stored, labels = torch.from_numpy(images.pixels[split.labeled]).to(device), torch.from_numpy(images.labels[split.labeled])
    numbers = fixed_numbers(len(labels), _FIT_VIEWS, seed=options.split_seed)
    views = [make_views(stored, numbers[:, i], augmentation=options.augmentation, side=few_shot.side) for i in range(_FIT_VIEWS)]
    print(f"few-shot teacher: {few_shot.fit(views, labels):.1%} on its {len(labels)} labelled images")
    return few_shot


def cache_teacher(
    options: ClassifierRunOptions,
    teacher: ImageTeacher | None,
    images: CachedImages,
    split: LabelSplit,
    *,
    views: int = 0,
    device: torch.device,
) -> ClassLogits:
    """Read the teacher's logits of so many fixed views of every image (0: its centre); score them first where they are not yet on disk."""
    assert options.teacher is not None, "checked before"
    if teacher is None:
        found = load_class_logits(Path(options.teacher), ids=images.ids, classes=images.classes, digests=images.digests)
        if not found.knows_images:
            print(f"warning: {options.teacher} does not say of which pixels its logits are: images are matched by their ids alone")
        return found
    path = options.cache_folder / f"teacher-{_hash_scoring(options, images, split, views)[:16]}.safetensors"
    if not path.is_file():
        numbers = fixed_numbers(len(images.ids), views, seed=options.split_seed) if views else None
        logits, features = score_teacher(teacher, images, numbers=numbers, augmentation=options.augmentation, device=device)
        save_class_logits(
            path,
            ids=images.ids,
            classes=images.classes,
            logits=logits,
            features=features,
            source=f"{options.teacher_kind} {options.teacher}",
            digests=images.digests,
        )
    return load_class_logits(path, ids=images.ids, classes=images.classes, digests=images.digests)


def _hash_scoring(options: ClassifierRunOptions, images: CachedImages, split: LabelSplit, views: int) -> str:
    """Hash all that the cached logits depend on."""
    what: list[object] = [images.fingerprint, options.teacher_kind, options.teacher, hash_source(options.teacher or ""), views]
    what += [options.augmentation, options.split_seed] if views else []
    if options.teacher_kind in TEXT_TEACHERS:
        what += [list(choose_prompts(options)), list(choose_words(options, images.classes))]
    elif options.class_names is not None:
        # A timm checkpoint's classes may have been matched by them.
        what += [list(choose_words(options, images.classes))]
    what += [split.labeled.tolist(), options.split_seed, options.augmentation] if options.teacher_kind == "few-shot" else []
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def score_teacher(
    teacher: ImageTeacher,
    images: CachedImages,
    *,
    numbers: Tensor | None = None,
    augmentation: Augmentation = "none",
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Run the teacher over all images.

    Args:
        teacher: The teacher.
        images: Decoded images.
        numbers: (N, V, U) behind the fixed views; None for the centre.
        augmentation: Kind of the views.
        device: Where the teacher runs.

    Returns:
        Logits (N, V, C) and features (N, V, D); V is 1 for the centre.
    """
    logits, features = [], []
    with tqdm(total=len(images.ids), desc="teacher's logits", unit="image", leave=False) as bar:
        for start in range(0, len(images.ids), _SCORING_BATCH):
            batch = slice(start, start + _SCORING_BATCH)
            stored = torch.from_numpy(np.array(images.pixels[batch])).to(device)
            drawn = [None] if numbers is None else numbers[batch].unbind(1)
            found = [teacher(make_views(stored, one, augmentation=augmentation, side=teacher.side)) for one in drawn]
            logits.append(torch.stack([one.logits.cpu() for one in found], 1))
            features.append(torch.stack([one.features.cpu() for one in found], 1))
            bar.update(len(stored))
    return torch.cat(logits), torch.cat(features)


def source_path(source: str) -> Path:
    """Where a teacher or a classifier lies; of a hub id there is nothing at it."""
    return Path(source.removeprefix("local-dir:"))


def hash_source(source: str) -> str:
    """Hash the files of a teacher or a classifier: weights, configs, and how images and words are read. Nothing of a hub id."""
    path = source_path(source)
    if path.is_file():
        return hash_file(path)
    names = ("*.safetensors", "open_clip_*.bin", "pytorch_model.bin", "dual_head.json", "open_clip_config.json", "config.json")
    found = [one for name in (*names, *PROCESSOR) for one in sorted(path.glob(name)) if one.is_file()] if path.is_dir() else []
    return hashlib.sha256("".join(hash_file(one) for one in found).encode()).hexdigest()
