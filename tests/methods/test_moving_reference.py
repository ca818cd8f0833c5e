"""References that follow the policy: by hand on a small module, and exactly the policy's numbers of before on a real model."""

from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from torch import nn

from mmalign.methods.preference import PreferenceMethod
from mmalign.models.adapters import add_lora, freeze_parts
from mmalign.models.moving_reference import MovingReference
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions, PreferenceOptions
from mmalign.options.training import LoraOptions, ReferenceUpdate
from tests.tiny_models import build_tiny_llava, fill_adapter, pair_rows


def update(text: str) -> ReferenceUpdate:
    return ReferenceUpdate.parse(text)


def scalar(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(value)
    return module


def moved(text: str, steps: int) -> float:
    """A reference at 1, a policy at 3."""
    policy = scalar(1.0)
    reference = MovingReference(policy, update(text))
    policy.weight.data.fill_(3.0)
    for number in range(1, steps + 1):
        reference.step(policy, number)
    return reference.anchor["weight"].item()


def test_an_average_by_hand() -> None:
    """0.99 * 1 + 0.01 * 3, and 3 - 2 * 0.99^10."""
    assert moved("ema:0.99", 1) == pytest.approx(1.02, abs=1e-6)
    assert moved("ema:0.99", 10) == pytest.approx(1.191235849982, abs=1e-6)


def test_every_few_steps() -> None:
    assert [moved("every:3", steps) for steps in (1, 2, 3)] == [1.0, 1.0, 3.0]


def test_when_the_step_has_gone_too_far() -> None:
    """Means over the tokens of all micro-batches of a step: (0.1 + 0.2 + 0.0 + 0.3) / 4 = 0.15."""
    policy = scalar(1.0)
    reference = MovingReference(policy, update("kl:0.14"))
    policy.weight.data.fill_(3.0)

    def step(*gaps: list[float]) -> float:
        for gap in gaps:
            reference.watch(torch.tensor(gap), torch.zeros(len(gap)))
        reference.step(policy, 1)
        return reference.anchor["weight"].item()

    assert step([0.1, 0.1], [0.2]) == 1.0
    assert step([0.1, 0.2, 0.0], [0.3]) == 3.0
    policy.weight.data.fill_(5.0)
    assert step() == 3.0, "what was watched in an earlier step counts no more"
    assert reference.num_updates == 1


@pytest.mark.parametrize("text", ["every", "every:0", "every:1.5", "ema:1", "ema:0", "kl:-1", "kl:nan", "kl:inf", "often:3", "every:inf"])
def test_what_cant_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="expected none, every:N, ema:D or kl:K"):
        PreferenceOptions(model="m", data="d", out="o", reference_update=text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "cached"}, "leave --reference cached out"),
        ({"reference": "adapter-off", "lora_rank": 4}, "leave --reference adapter-off out"),
        ({"reference_model": "teacher"}, "leave --reference model out"),
        ({"reference_quantization": "nf4"}, "leave --reference-quantization out"),
    ],
)
def test_references_that_cannot_move(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceOptions(model="m", data="d", out="o", reference_update="ema:0.9", **options)  # type: ignore[arg-type]


def test_half_precision_is_not_averaged() -> None:
    with pytest.raises(ValueError, match=r"averages weights, and these are torch.bfloat16"):
        MovingReference(scalar(1.0).to(torch.bfloat16), update("ema:0.9"))
    MovingReference(scalar(1.0).to(torch.bfloat16), update("every:2"))


def batch_for(method: PreferenceMethod) -> dict[str, Any]:
    rows = Dataset.from_list(pair_rows(3)).cast_column("images", List(ImageFeature(decode=False)))
    return method.collate(list(method.prepare(rows)))


@pytest.mark.parametrize("kind", ["full", "frozen tower", "adapter"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_the_reference_is_the_policy_of_before(kind: str, autocast: bool) -> None:
    """After a step of training: losses and gradients are those against a deep copy that was made before it."""
    losses, gradients = [], []
    for moving in (False, True):
        policy, processor = build_tiny_llava(seed=0)
        if kind == "frozen tower":
            freeze_parts(policy, ["vision_tower"])
        model: nn.Module = fill_adapter(add_lora(policy, LoraOptions(lora_rank=4))) if kind == "adapter" else policy
        reference = MovingReference(model, update("every:9")) if moving else Reference(model, kind="copy")
        method = PreferenceMethod(processor, PairLossOptions(), reference=reference)
        batch = batch_for(method)
        with torch.no_grad():
            for number, weight in enumerate(w for w in model.parameters() if w.requires_grad):
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = method.compute(model, batch).loss_sum
        loss.backward()
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters()), "the policy has its own weights again"
        losses.append(loss.item())
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(3 * 0.693147, abs=1e-3)
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.equal(value, gradients[1][name]), name


def test_a_reference_that_has_moved_is_the_policy() -> None:
    policy, processor = build_tiny_llava(seed=0)
    reference = MovingReference(policy, update("every:1"))
    method = PreferenceMethod(processor, PairLossOptions(), reference=reference)
    with torch.no_grad():
        policy.get_output_embeddings().weight += 0.1
        batch = batch_for(method)
        assert method.compute(policy, batch).loss_sum.item() != pytest.approx(3 * 0.693147, abs=1e-4)
        reference.step(policy, 1)
        assert method.compute(policy, batch).loss_sum.item() == pytest.approx(3 * 0.693147, abs=1e-4)
