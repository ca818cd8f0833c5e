"""The classifier with two heads: what each head learns from, checkpoints, text initialisation, export."""

import dataclasses
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from mmalign.classifier.backbone import read_tower_config
from mmalign.classifier.dual_head import DualHead, DualHeadConfig, Mixing, Preprocessing, load_dual_head
from mmalign.classifier.export import MixedClassifier, export_classifier
from mmalign.classifier.student import init_heads_from_text, load_pretrained_backbone
from mmalign.errors import UserError
from mmalign.losses.classifier import label_cross_entropy, mix_probabilities, teacher_kl
from mmalign.models.contrastive import build_clip
from mmalign.worlds.tokenizer import train_tokenizer
from tests.tiny_classifiers import CLASSES, RESNET, build_tiny_classifier

SHAPES: list[dict[str, Any]] = [
    {},
    {"kd_head": "cosine"},
    {"ce_head": "mlp", "kd_head": "mlp"},
    {"heads": "single"},
    {"tower": True, "kd_head": "cosine"},
]
MIXING = Mixing(ce_head_weight=0.3, kd_head_temperature=0.7, source="here")


def draw_images(size: int, *, number: int = 4) -> torch.Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_each_head_has_its_own_teacher() -> None:
    """The CE head gets no gradient from the KD loss, nor the KD head from labels: permuting labels leaves its gradient as it is."""
    model = build_tiny_classifier()
    assert model.kd_head is not None
    pixels, teacher = draw_images(32), torch.randn(4, 3)
    grads = []
    for labels in (torch.tensor([0, 1, 2, 0]), torch.tensor([2, 0, 1, 1])):
        model.zero_grad()
        output = model(pixels)
        (label_cross_entropy(output.ce_logits, labels) + teacher_kl(output.kd_logits, teacher, temperature=2.0)).sum().backward()
        grads.append([parameter.grad.clone() for head in (model.kd_head, model.ce_head) for parameter in head.parameters()])
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    assert not torch.allclose(grads[0][2], grads[1][2])
    model.zero_grad()
    teacher_kl(model(pixels).kd_logits, teacher, temperature=2.0).sum().backward()
    assert all(parameter.grad is None for parameter in model.ce_head.parameters())
    assert next(model.backbone.parameters()).grad is not None


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_checkpoint_gives_the_same_numbers(tmp_path: Path, options: dict[str, Any]) -> None:
    model = build_tiny_classifier(**options)
    model.set_mixing(MIXING)
    model.save_pretrained(tmp_path)
    loaded = load_dual_head(tmp_path)
    assert loaded.settings.mixing == MIXING
    assert loaded.settings.classes == CLASSES
    assert loaded.settings.preprocessing == model.settings.preprocessing
    pixels = draw_images(model.settings.preprocessing.image_size)
    for expected, got in zip(model(pixels)[:3], loaded(pixels)[:3], strict=True):
        assert torch.equal(expected, got)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["dual_head.json", "model.safetensors"]


def test_mixture_of_the_checkpoint() -> None:
    model = build_tiny_classifier()
    model.set_mixing(MIXING)
    output = model(draw_images(32))
    expected = mix_probabilities(output.ce_logits, output.kd_logits, ce_head_weight=0.3, kd_head_temperature=0.7)
    assert torch.equal(model.mix(output), expected)
    assert (expected - output.ce_logits.softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("options", "file_format"),
    [
        *[pytest.param(options, "torch", marks=pytest.mark.slow) for options in SHAPES[1:]],
        *[pytest.param(options, "onnx", marks=pytest.mark.slow) for options in SHAPES[1:]],
        (SHAPES[0], "torch"),
        (SHAPES[0], "onnx"),
    ],
    ids=str,
)
def test_exported_file_gives_the_mixed_probabilities(tmp_path: Path, options: dict[str, Any], file_format: Any) -> None:
    """Any batch size, images before normalisation; read back by torch.export or onnxruntime alone."""
    model = build_tiny_classifier(**options)
    model.set_mixing(MIXING)
    path = tmp_path / f"model.{file_format}"
    assert export_classifier(model, path, file_format=file_format) <= 1e-4
    preprocessing = model.settings.preprocessing
    images = draw_images(preprocessing.image_size, number=5)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    with torch.no_grad():
        expected = model.mix(model((images - mean) / std))
    if file_format == "torch":
        got = torch.export.load(path).module()(images)
    else:
        runtime = pytest.importorskip("onnxruntime")
        got = torch.from_numpy(runtime.InferenceSession(str(path)).run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert json.loads((tmp_path / f"model.{file_format}.json").read_text())["classes"] == list(CLASSES)


def test_a_full_disk_is_an_error_of_the_export(tmp_path: Path) -> None:
    """PyTorch's own writer of files aborts the process."""
    handler, (size, most) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))
    try:
        with pytest.raises(OSError, match=r"model\.torch"):
            export_classifier(build_tiny_classifier(), tmp_path / "model.torch", file_format="torch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        signal.signal(signal.SIGXFSZ, handler)
    assert not any(tmp_path.iterdir())


def test_linear_heads_are_stacked_into_one_matrix() -> None:
    model = build_tiny_classifier()
    plain = MixedClassifier(model)
    assert plain.kd_head is None
    assert plain.ce_head.weight.shape[0] == 2 * len(CLASSES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    folder = tmp_path_factory.mktemp("clip")
    train_tokenizer(["a photo of a cat, a dog, a frog"]).save_pretrained(folder)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24}
    vision = {**{key: value for key, value in text.items() if key != "max_position_embeddings"}, "image_size": 28, "patch_size": 14}
    model, processor = build_clip({"projection_dim": 16, "text_config": text, "vision_config": vision}, tokenizer=str(folder), seed=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model.eval()


def test_text_start_with_the_same_encoder_is_the_zero_shot_teacher(clip: tuple[Path, CLIPModel]) -> None:
    folder, whole = clip
    architecture, values = read_tower_config(str(folder))
    config = DualHeadConfig(
        library="transformers",
        architecture=architecture,
        backbone=values,
        classes=CLASSES,
        preprocessing=Preprocessing(image_size=28, resize_size=28),
        heads="dual",
        ce_head="linear",
        kd_head="cosine",
    )
    model = DualHead(config).eval()
    load_pretrained_backbone(model, str(folder))
    text = torch.randn(3, 16)
    init_heads_from_text(model, text)
    pixels = draw_images(28)
    with torch.no_grad():
        image = whole.get_image_features(pixel_values=pixels).pooler_output
        teacher = 100 * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()
        torch.testing.assert_close(model(pixels).kd_logits, teacher, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(model(pixels).ce_logits, image @ F.normalize(text, dim=-1).t(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, r"can't take images of 32 x 32 pixels .*: '{img_size: 32}'"),
        ("resnet10t", {**RESNET, "in_chans": 1}, "can't take images of 32 x 32 pixels"),
        ("resnet10t", {**RESNET, "features_only": True}, "gives features of shape list; expected one vector per image"),
        ("resnet10t", {**RESNET, "global_pool": ""}, r"gives features of shape \(1, 16, 1, 1\); expected one vector per image"),
        ("resnet10t", {**RESNET, "num_classes": 7}, "got multiple values for keyword argument 'num_classes'"),
        ("resnet10t", {"channels": [4, 8, 8, 16], "stem_width:4": None}, "'stem_width:4' without a value; .* with the space"),
    ],
)
def test_backbones_that_give_no_vector_are_named(architecture: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tiny_classifier(architecture=architecture, backbone=values)


def test_a_tower_refuses_images_of_another_size() -> None:
    with pytest.raises(UserError, match=r"can't take images of 32 x 32 pixels \(.*28\*28"):
        build_tiny_classifier(tower=True, preprocessing=Preprocessing(image_size=32, resize_size=32))


def test_bad_models_are_named(tmp_path: Path) -> None:
    model = build_tiny_classifier()
    with pytest.raises(ValueError, match=r"text embeddings are \(3, 7\) and the head's weight \(3, 16\)"):
        init_heads_from_text(model, torch.randn(3, 7))
    with pytest.raises(ValueError, match=r"timm has no model 'resnet10x'.*near it: .*resnet"):
        DualHead(dataclasses.replace(model.settings, architecture="resnet10x"))
    with pytest.raises(ValueError, match=r"classes are cat, cat; expected at least two, all different"):
        dataclasses.replace(model.settings, classes=("cat", "cat"))
    with pytest.raises(ValueError, match=r"no classifier at .*: expected a folder with dual_head.json"):
        load_dual_head(tmp_path)
    model.save_pretrained(tmp_path)
    dataclasses.replace(model.settings, classes=(*CLASSES, "horse"))
    values = json.loads((tmp_path / "dual_head.json").read_text())
    (tmp_path / "dual_head.json").write_text(json.dumps({**values, "classes": [*CLASSES, "horse"]}))
    with pytest.raises(ValueError, match=r"model.safetensors does not fit dual_head.json"):
        load_dual_head(tmp_path)
