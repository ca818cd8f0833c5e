"""Teachers: the prompt ensemble, and the few-shot cache by hand."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch.nn import functional as F

from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.prompts import embed_classes
from mmalign.classifier.teachers import ClassifierTeacher, TimmTeacher, TipAdapterTeacher, ZeroShotTeacher
from mmalign.errors import UserError
from mmalign.models.load import load_clip
from tests.tiny_classifiers import CLASSES, build_tiny_classifier, save_tiny_clip

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


def save_timm(folder: Path, number: int, **about: Any) -> str:
    """Save a timm classifier as people upload them; its logit of class number i is i, whatever it sees."""
    model = timm.create_model("mobilenetv3_small_050", num_classes=number)
    head = model.get_classifier()
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.arange(number))
    save_for_hf(model, str(folder), model_config={"num_classes": number, **about}, safe_serialization=True)
    return f"local-dir:{folder}"


def says(source: str, classes: tuple[str, ...], words: tuple[str, ...] = ()) -> tuple[list[int], str]:
    teacher = TimmTeacher(source, classes=classes, words=words, device=CPU)
    return [round(value) for value in teacher(torch.rand(1, 3, 32, 32)).logits[0].tolist()], teacher.note


def test_timm_teachers_are_matched_by_their_own_names(tmp_path: Path) -> None:
    """Timm sorts folders as numbers, and mmalign as text."""
    order = [str(i) for i in range(1, 13)]
    source = save_timm(tmp_path / "a", 12, label_names=order)
    classes = tuple(sorted(order))
    assert says(source, classes) == ([order.index(name) for name in classes], "")
    # As older uploads have them: a mapping of the logit's number.
    source = save_timm(tmp_path / "b", 3, label_names={"2": "cat", "0": "dog", "1": "frog"})
    assert says(source, CLASSES) == ([2, 0, 1], "")
    with pytest.raises(ValueError, match=r"alone has frog \(1\), the data alone have zebra \(1\)"):
        says(source, ("cat", "dog", "zebra"))
    # A mapping to the logit's number, and names that are numbers.
    assert says(save_timm(tmp_path / "c", 3, label_names={"cat": 2, "dog": 0, "frog": 1}), CLASSES) == ([2, 0, 1], "")
    assert says(save_timm(tmp_path / "d", 3, label_names=[2, 0, 1]), ("0", "1", "2")) == ([1, 2, 0], "")
    with pytest.raises(ValueError, match=r"knows 3 classes and the data have cat, dog \(2\)"):
        says(source, ("cat", "dog"))


def test_timm_teachers_are_matched_by_what_their_names_mean(tmp_path: Path) -> None:
    about = {"n01484850": "great white shark, white shark", "n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}
    source = save_timm(tmp_path / "a", 3, label_names=list(about), label_descriptions=about)
    assert says(source, ("n01440764", "n01443537", "n01484850"))[0] == [1, 2, 0]
    assert says(source, ("goldfish", "great_white_shark", "tench"))[0] == [2, 0, 1]
    assert says(source, ("0", "1", "2"), ("tench", "goldfish", "white shark"))[0] == [1, 2, 0]


def test_timm_teachers_without_names(tmp_path: Path) -> None:
    """Of as many classes as an ImageNet has, and data that have its names, the order is known; else it is taken on trust, aloud."""
    given, note = says(save_timm(tmp_path / "a", 3), CLASSES)
    assert given == [0, 1, 2]
    assert "does not name its classes: its logits are taken to be in the data's order, cat, dog, frog (3)" in note
    source, wordnet = save_timm(tmp_path / "b", 1000), timm.data.ImageNetInfo("imagenet-1k").label_names()
    assert says(source, tuple(wordnet[::-1])) == (list(range(999, -1, -1)), "")
    assert "does not name its classes" in says(source, tuple(f"class {i}" for i in range(1000)))[1]


def test_a_number_of_classes_is_no_answer_to_which_they_are(tmp_path: Path) -> None:
    source = save_timm(tmp_path / "a", 3, label_names=list(CLASSES))
    with pytest.raises(UserError, match=r"given num_classes 3 and no classes; expected classes=, the data's class names"):
        TimmTeacher(source, num_classes=3, device=CPU)


def test_a_classifiers_logits_come_in_the_datas_order(tmp_path: Path) -> None:
    for heads in ("dual", "single"):
        model = build_tiny_classifier(heads=heads)
        model.save_pretrained(tmp_path / heads)
        views = torch.rand(2, 3, 32, 32)
        own = ClassifierTeacher(model, device=CPU)(views).logits
        other = ClassifierTeacher(load_dual_head(tmp_path / heads), classes=("frog", "cat", "dog"), device=CPU)(views).logits
        torch.testing.assert_close(other, own[:, [2, 0, 1]])
    with pytest.raises(ValueError, match=r"the data alone have zebra \(1\)"):
        ClassifierTeacher(load_dual_head(tmp_path / "dual"), classes=("cat", "dog", "zebra"), device=CPU)
