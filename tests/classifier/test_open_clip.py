"""open_clip teachers: a tiny random model of theirs, against the library's own zero-shot classifier."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmalign.classifier.open_clip import OpenClipTeacher
from mmalign.cli import main
from tests.tiny_classifiers import CLASSES, save_part

CPU = torch.device("cpu")
PROMPTS = ("a photo of a {}.", "art of the {}.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in open_clip's own layout, on disk."""
    path = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16, "patch_size": 14},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), path / "open_clip_model.safetensors")
    preprocessing = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    return path


def test_logits_are_those_of_open_clips_own_zero_shot_classifier(folder: Path) -> None:
    teacher = OpenClipTeacher(str(folder), classes=("tabby_cat", "dog", "frog"), prompts=PROMPTS, device=CPU)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    prompts = [lambda name, prompt=prompt: prompt.format(name) for prompt in PROMPTS]
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, ["tabby cat", "dog", "frog"], prompts)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    seen = torch.stack([transform(Image.fromarray(one)) for one in pixels])
    expected = model.logit_scale.exp() * model.eval().encode_image(seen, normalize=True) @ weights
    found = teacher(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert teacher.side == 28
    torch.testing.assert_close(found.logits, expected.detach(), rtol=1e-4, atol=1e-4)
    assert not found.logits.requires_grad


def test_run_caches_the_teachers_logits(folder: Path, tmp_path: Path) -> None:
    save_part(tmp_path / "train.parquet", 12, 0)
    student = ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
    words = [*student, "--max-steps", "1", "--batch-size", "4", "--image-size", "32", "--augmentation", "pad-crop", "--shots", "1"]
    words += ["--teacher", str(folder), "--teacher-kind", "open-clip", "--prompts", *PROMPTS, "--out", str(tmp_path / "out")]
    assert main(["classifier", "train", "--data", str(tmp_path), *words]) == 0
    assert len(list((tmp_path / "out" / "cache").glob("teacher-*.safetensors"))) == 1
    assert 0 <= json.loads((tmp_path / "out" / "classifier.json").read_text())["teacher_accuracy_unlabeled"] <= 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-B-32", "expected ARCHITECTURE/TAG, such as ViT-B-32/openai"),
        ("ViT-B-32/nobody", "ViT-B-32/nobody can't be loaded: .*nobody"),
        ("no-such-net/openai", "no-such-net/openai can't be loaded: .*not found"),
    ],
)
def test_unknown_models_are_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenClipTeacher(source, classes=CLASSES, prompts=PROMPTS, device=CPU)


def test_folder_without_weights_and_damaged_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be loaded: .*config file missing"):
        OpenClipTeacher(str(tmp_path), classes=CLASSES, prompts=PROMPTS, device=CPU)
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match="can't be loaded"):
        OpenClipTeacher(str(tmp_path), classes=CLASSES, prompts=PROMPTS, device=CPU)
    (tmp_path / "open_clip_model.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="can't be loaded"):
        OpenClipTeacher(str(tmp_path), classes=CLASSES, prompts=PROMPTS, device=CPU)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'mmalign\[open-clip\]'"):
        OpenClipTeacher("ViT-B-32/openai", classes=CLASSES, prompts=PROMPTS, device=CPU)
