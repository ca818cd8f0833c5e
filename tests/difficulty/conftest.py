"""Tiny contrastive models for the scoring tests."""

from pathlib import Path
from typing import Any

import pytest

from mmalign.models.contrastive import build_clip
from tests.tiny_models import build_tokenizer

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24}
VISION = {**TEXT, "image_size": 28, "patch_size": 14}
VISION.pop("max_position_embeddings")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    config = {"projection_dim": 16, "text_config": TEXT, "vision_config": VISION}
    # Its eos has id 2, which CLIP's text tower reads as a legacy mistake.
    with pytest.raises(ValueError, match="eos token has id 2, at which CLIP's text tower would pool elsewhere"):
        build_clip(config, tokenizer=str(folder), seed=0)
    from mmalign.worlds.tokenizer import train_tokenizer

    train_tokenizer(["a red dog. a blue cat."] * 3).save_pretrained(folder)
    model, processor = build_clip(config, tokenizer=str(folder), seed=0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def clip_dir(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for part in clip:
        part.save_pretrained(folder)
    return folder
