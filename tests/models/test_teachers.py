"""Teachers: the prompt ensemble, and the few-shot cache by hand."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmalign.models.load import load_clip
from mmalign.models.teachers import TipAdapterTeacher, ZeroShotTeacher, embed_classes
from tests.tiny_classifiers import CLASSES, save_tiny_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(
        tmp_path_factory.mktemp("clip"), [f"a photo of a {name}. art of the {name}." for name in CLASSES], max_positions=24
    )


def test_prompts_are_averaged_at_unit_length(clip: Path) -> None:
    model, processor = load_clip(str(clip), dtype="float32")
    one, other = (embed_classes(model, processor, classes=CLASSES, prompts=[prompt]) for prompt in ("a photo of a {}.", "art of the {}."))
    both = embed_classes(model, processor, classes=CLASSES, prompts=["a photo of a {}.", "art of the {}."])
    torch.testing.assert_close(both, F.normalize(one + other, dim=-1))
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(3))
    with pytest.raises(ValueError, match=r"prompt 'a photo' has no \{\}"):
        embed_classes(model, processor, classes=CLASSES, prompts=["a photo"])


def test_few_shot_cache_learns_its_shots_and_adds_to_the_zero_shot_logits(clip: Path) -> None:
    zero_shot = ZeroShotTeacher(str(clip), classes=CLASSES, prompts=["a photo of a {}."], device=CPU)
    before = {name: value.clone() for name, value in zero_shot.model.state_dict().items()}
    teacher = TipAdapterTeacher(zero_shot, cache_weight=20.0)
    shots, labels = torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = (zero_shot(shots).logits.argmax(-1) == labels).float().mean().item()
    assert teacher.fit([shots, shots.flip(-1)], labels, epochs=100, learning_rate=0.02) > plain
    # t = zero-shot + a exp(-b (1 - f A^T)) V
    views = torch.rand(2, 3, 28, 28)
    found = zero_shot(views)
    by_hand = torch.stack(
        [
            sum(20 * torch.exp(-5.5 * (1 - f @ key)) * F.one_hot(label, 3) for key, label in zip(teacher.keys, labels, strict=True))
            for f in found.features
        ]
    )
    torch.testing.assert_close(teacher(views).logits, found.logits + by_hand)
    assert not teacher(views).logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in zero_shot.model.state_dict().items())
