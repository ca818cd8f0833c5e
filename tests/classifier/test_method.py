"""The dual-head method: sums by hand, splits of a batch, streams, live and cached teachers, baselines, resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmalign.classifier.augment import fixed_numbers, make_views
from mmalign.classifier.class_logits import ClassLogits
from mmalign.classifier.dual_head import DualHead
from mmalign.classifier.gradients import compute_gradient_cosine
from mmalign.classifier.image_cache import CachedImages
from mmalign.classifier.method import DualHeadMethod
from mmalign.classifier.splits import LabelSplit
from mmalign.classifier.streams import StreamRows
from mmalign.classifier.teachers import ClassifierTeacher
from mmalign.losses.classifier import binary_kl, label_cross_entropy, teacher_kl
from mmalign.options.classifier import ObjectiveOptions
from mmalign.options.training import TrainerOptions
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback, find_checkpoint
from mmalign.training.ema import EmaCallback
from mmalign.training.trainer import MethodTrainer
from tests.tiny_classifiers import CLASSES, build_tiny_classifier
from tests.training.test_trainer import StopAfter

NUMBER, FEATURES = 24, 16


def build_images() -> CachedImages:
    rng = np.random.default_rng(0)
    labels = np.arange(NUMBER, dtype=np.int64) % len(CLASSES)
    pixels = rng.integers(0, 256, (NUMBER, 3, 32, 32), dtype=np.uint8)
    return CachedImages(tuple(f"p{i}" for i in range(NUMBER)), labels, CLASSES, pixels, "none")


def build_teacher_logits(views: int = 1) -> ClassLogits:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(NUMBER, views, FEATURES, generator=generator)
    return ClassLogits(3 * torch.randn(NUMBER, views, 3, generator=generator), features, "drawn")


SPLIT = LabelSplit(np.arange(6), np.arange(6, 24), np.zeros(0, dtype=np.int64))
FORMS = ["dual-head", "single-head", "pcgrad", "sskd", "dhkd", "ce-only", "kd-only", "feature-kd", "fixmatch"]


def build_method(form: str = "dual-head", *, model: DualHead | None = None, **options: Any) -> tuple[DualHead, DualHeadMethod]:
    known = {key: options.pop(key) for key in ("cached", "teacher", "fixed_views") if key in options}
    needs = form not in ("ce-only", "fixmatch")
    heads = "dual" if form in ("dual-head", "sskd", "dhkd") else "single"
    model = model or build_tiny_classifier(heads=heads, teacher_feature_size=FEATURES if form == "feature-kd" else None)
    if needs and "teacher" not in known:
        known.setdefault("cached", build_teacher_logits())
    objective = ObjectiveOptions(**{"form": form, "augmentation": "pad-crop", **options})
    return model, DualHeadMethod(build_images(), objective, preprocessing=model.settings.preprocessing, **known)


def rows_of(number: int, per_label: int = 1, **options: Any) -> StreamRows:
    return StreamRows(SPLIT, **{"num_rows": number, "unlabeled_per_label": per_label, "include_labeled": False, "seed": 0, **options})


def test_streams_pass_every_image_once_a_turn_and_never_mix() -> None:
    rows = rows_of(36, 2)
    labeled = [row["labeled"][0] for row in map(rows.__getitem__, range(36))]
    unlabeled = [place for row in map(rows.__getitem__, range(36)) for place in row["unlabeled"]]
    for turn in range(6):
        assert sorted(index for index, t in labeled if t == turn) == list(range(6))
    for turn in range(4):
        assert sorted(index for index, t in unlabeled if t == turn) == list(range(6, 24))
    assert labeled[:6] != labeled[6:12]
    # Row 30 is the same whoever asks, and in whatever order.
    assert rows_of(36, 2)[30] == rows[30]
    both = rows_of(24, include_labeled=True)
    assert {row["unlabeled"][0][0] for row in map(both.__getitem__, range(24))} == set(range(24))


@pytest.mark.parametrize("form", ["dual-head", "single-head", "pcgrad", "sskd", "dhkd", "kd-only"])
def test_sum_is_the_papers_loss(form: str) -> None:
    """B times [w CE + (1 - w) (w_l mean KD of labelled + w_u mean KD of unlabelled)], with B labelled and 2 B unlabelled images."""
    weights = {"label_weight": 0.3, "labeled_kd_weight": 0.8, "unlabeled_kd_weight": 1.5, "temperature": 3.0, "augmentation": "none"}
    model, method = build_method(form, **weights)
    batch = method.collate([rows_of(8, 2)[i] for i in range(4)])
    assert batch["images"].shape == (12, 3, 32, 32)
    loss = method.compute(model, batch).loss_sum
    views = make_views(batch["images"], None, augmentation="none", side=32)
    preprocessing = model.settings.preprocessing
    output = model(preprocessing.normalize(views))
    ce = label_cross_entropy(output.ce_logits[:4], batch["labels"]).mean()
    measure = binary_kl if form == "dhkd" else teacher_kl
    kd = measure(output.kd_logits, batch["teacher_logits"], temperature=3.0)
    if form == "sskd":
        kd = torch.cat([teacher_kl(output.ce_logits[:4], batch["teacher_logits"][:4], temperature=3.0), kd[4:]])
    both = 0.8 * kd[:4].mean() + 1.5 * kd[4:].mean()
    torch.testing.assert_close(loss, 4 * (both if form == "kd-only" else 0.3 * ce + 0.7 * both))


def test_each_head_of_sskd_has_a_stream_of_its_own() -> None:
    """Nothing of unlabelled images reaches the CE head, nothing of labelled ones the KD head; both reach the backbone."""
    model, method = build_method("sskd", augmentation="none")
    batch = method.collate([rows_of(8, 2)[i] for i in range(4)])
    other = {**batch, "teacher_logits": batch["teacher_logits"].clone()}
    other["teacher_logits"][4:] += torch.arange(3.0)
    found = []
    for each in (batch, other):
        model.zero_grad()
        method.compute(model, each).loss_sum.backward()
        assert model.kd_head is not None
        found.append([head.weight.grad.clone() for head in (model.ce_head, model.kd_head)])
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_batch_add_up(form: str) -> None:
    """In eval mode, where batch norms don't couple images."""
    model, method = (
        build_method(form, augmentation="none", threshold=0.4) if form == "fixmatch" else build_method(form, augmentation="none")
    )
    rows = [rows_of(8, 2)[i] for i in range(4)]
    torch.manual_seed(0)
    whole = method.compute(model, method.collate(rows))
    assert method.num_items(method.collate(rows)) == 4
    if form == "fixmatch":
        return
    parts = [method.compute(model, method.collate(part)) for part in (rows[:1], rows[1:])]
    torch.testing.assert_close(whole.loss_sum, parts[0].loss_sum + parts[1].loss_sum)
    for key, metric in whole.metrics.items():
        torch.testing.assert_close(metric.total, parts[0].metrics[key].total + parts[1].metrics[key].total)


def test_separate_forward_differs_by_batch_norm_alone() -> None:
    losses: dict[str, list[float]] = {}
    for forward in ("concatenated", "separate"):
        model, method = build_method(forward=forward, augmentation="none")
        batch = method.collate([rows_of(8)[i] for i in range(4)])
        losses[forward] = [method.compute(model.train(training), batch).loss_sum.item() for training in (False, True)]
    assert losses["separate"][0] == pytest.approx(losses["concatenated"][0], rel=1e-5)
    assert losses["separate"][1] != pytest.approx(losses["concatenated"][1], rel=1e-3)


def test_live_teacher_equals_its_cached_fixed_views_and_does_not_move() -> None:
    """Two fixed views of each image, scored beforehand as they come; the second turn takes the second view."""
    frozen = build_tiny_classifier(seed=7)
    teacher = ClassifierTeacher(frozen, device=torch.device("cpu"))
    images, numbers = build_images(), fixed_numbers(NUMBER, 2, seed=0)
    stored = torch.from_numpy(images.pixels)
    logits = torch.stack([teacher(make_views(stored, numbers[:, v], augmentation="pad-crop", side=32)).logits for v in (0, 1)], 1)
    model, cached = build_method(cached=ClassLogits(logits, None, "here"), fixed_views=2)
    _, live = build_method(teacher=teacher, model=model)
    rows = [rows_of(12)[i] for i in range(4, 8)]
    assert {turn for row in rows for _, turn in row["labeled"]} == {0, 1}
    batch = cached.collate(rows)
    live_batch = {key: value for key, value in batch.items() if key != "teacher_logits"}
    expected, got = cached.compute(model, batch), live.compute(model, live_batch)
    torch.testing.assert_close(got.loss_sum, expected.loss_sum, rtol=1e-4, atol=1e-5)
    got.loss_sum.backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())


def test_pseudo_labels_ask_no_teacher() -> None:
    model, method = build_method("fixmatch", threshold=0.0)
    output = method.compute(model, method.collate([rows_of(8, 3)[i] for i in range(4)]))
    assert output.metrics["dual_head/sure"].total == 12
    expected = output.metrics["loss/ce"].total + output.metrics["loss/pseudo"].total / 3
    torch.testing.assert_close(output.loss_sum.detach(), expected)


def test_gradient_cosine_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    first, second = weight[0] * 3, weight[0] * -1 + weight[1]
    assert compute_gradient_cosine(first, second, [weight]).item() == pytest.approx(-(0.5**0.5))
    model, method = build_method(gradient_cosine_every=2)
    batch = method.collate([rows_of(8)[i] for i in range(4)])
    counts = [method.compute(model.train(), batch).metrics["dual_head/gradient_cosine"].count for _ in range(3)]
    assert counts == [1.0, 0.0, 1.0]


def test_agreement_counts_where_the_teacher_says_something() -> None:
    teacher = build_teacher_logits()
    teacher.logits[:6] = torch.nan
    model, method = build_method(cached=teacher)
    batch = method.collate([rows_of(8)[i] for i in range(4)])
    assert method.compute(model, batch).metrics["dual_head/teacher_agreement"].count == 4


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("dual-head", {"cached": None}, "form dual-head needs a teacher, and none is given"),
        ("ce-only", {"cached": build_teacher_logits()}, "form ce-only has no use for a teacher, and one is given"),
        ("dual-head", {"fixed_views": 3}, "the teacher's logits are of 1 views and 3 are asked for"),
        ("feature-kd", {"cached": ClassLogits(torch.zeros(NUMBER, 1, 3), None, "x")}, "needs the teacher's features"),
        ("kd-only", {"cached": ClassLogits(torch.full((NUMBER, 1, 3), torch.nan), None, "x")}, "logits are not finite of any"),
        ("dual-head", {"label_weight": 1.5}, r"label_weight is 1.5; expected a share in \[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_named(form: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(form, **options)


def make_trainer(
    folder: Path, *, form: str = "dual-head", checkpoint: Path | None = None, steps: int = 4
) -> tuple[MethodTrainer, EmaCallback]:
    model, method = build_method(form)
    config = TrainerOptions(
        learning_rate=1e-2,
        batch_size=4,
        max_steps=steps,
        logging_steps=1,
        save_steps=2,
        trainer={"train_sampling_strategy": "sequential", "num_train_epochs": 1, "disable_tqdm": True},
    )
    ema = EmaCallback(0.9, checkpoint=checkpoint)
    arguments = build_training_arguments(config, output_dir=folder)
    rows = rows_of(16)
    return MethodTrainer(model=model, args=arguments, train_dataset=rows, method=method, callbacks=[ema, ManifestCallback()]), ema


@pytest.mark.parametrize("form", ["dual-head", "fixmatch", "pcgrad"])
def test_resume_equals_never_having_stopped(tmp_path: Path, form: str) -> None:
    """Weights, batch norms and the moving average, bit for bit; views are drawn in the forward pass."""
    whole, average = make_trainer(tmp_path / "whole", form=form)
    whole.train()
    first, _ = make_trainer(tmp_path / "stopped", form=form)
    first.add_callback(StopAfter(3))
    first.train()
    checkpoint, _ = find_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    second, again = make_trainer(tmp_path / "stopped", form=form, checkpoint=checkpoint)
    second.train(resume_from_checkpoint=str(checkpoint))
    expected, got = (load_file(tmp_path / part / "checkpoint-4" / "model.safetensors") for part in ("whole", "stopped"))
    for key in expected:
        assert torch.equal(expected[key], got[key]), key
    for key, value in average.average.module.state_dict().items():
        assert torch.equal(value, again.average.module.state_dict()[key]), key
    weight = "ce_head.weight"
    assert not torch.equal(average.average.module.state_dict()[weight], expected[weight])
    average.apply(whole.model)
    assert torch.equal(whole.model.ce_head.weight, average.average.module.state_dict()[weight])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns_its_training_images(tmp_path: Path, form: str) -> None:
    trainer, _ = make_trainer(tmp_path, form=form)
    trainer.train()
    log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 4
    assert all(np.isfinite(log))
    assert min(log[1:]) < log[0]
