"""Two adapters that chase each other: roles by hand, passes against models of one adapter, and what can't chase."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel

from mmalign.engine.logps import compute_response_logps
from mmalign.methods.chasing import ChasingMethod
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.responses import model_inputs
from mmalign.models.adapter_pair import ADAPTERS, FAST, SLOW, adapter_parameters, add_slow_adapter, compute_with, exchange_adapters
from mmalign.models.adapters import add_lora
from mmalign.models.references import Reference
from mmalign.options.methods import PreferenceOptions
from mmalign.options.training import LoraOptions
from mmalign.training.chasing import Chase
from tests.tiny_models import build_tiny_llava, fill_adapter, pair_rows

NUM_PAIRS = 3


def chasing(**options: Any) -> PreferenceOptions:
    return PreferenceOptions(model="m", data="d", out="o", chasing=True, **{"lora_rank": 4, **options})  # type: ignore[arg-type]


def build_policy() -> tuple[PeftModel, Any]:
    """Two adapters of different weights."""
    model, processor = build_tiny_llava(seed=0)
    policy = add_lora(model, LoraOptions(lora_rank=4))
    add_slow_adapter(policy)
    fill_adapter(policy)
    return policy.train(), processor


def make_batch(method: PreferenceMethod) -> dict[str, Any]:
    rows = Dataset.from_list(pair_rows(NUM_PAIRS)).cast_column("images", List(ImageFeature(decode=False)))
    return method.collate(list(method.prepare(rows)))


def test_the_one_with_the_lower_loss_of_the_interval_takes_the_lead() -> None:
    chase = Chase(2)

    def step(number: int, *losses: tuple[float, float]) -> str:
        for pair in losses:
            chase.watch(*map(torch.tensor, pair))
        chase.step(number)
        return chase.leader

    assert step(1, (0.5, 0.6), (0.5, 0.1)) == FAST
    assert chase.sums == pytest.approx({FAST: 1.0, SLOW: 0.7})
    assert step(2, (0.2, 0.6)) == FAST, "1.2 is below 1.3 over both steps, though the slow one was below in the first"
    assert chase.sums == {FAST: 0.0, SLOW: 0.0}
    assert step(3, (0.5, 0.6)) == FAST
    assert step(4, (0.5, 0.3)) == SLOW
    assert (chase.chaser, chase.num_changes) == (FAST, 1)
    assert step(5) == SLOW
    assert step(6, (0.4, 0.4)) == SLOW, "a tie changes nothing"
    assert step(8, (0.4, 0.41)) == FAST
    assert chase.num_changes == 2


def test_adapters_begin_alike_both_train_and_change_places() -> None:
    model, _ = build_tiny_llava(seed=0)
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_dropout=0.1))
    before = [weight.clone() for weight in policy.parameters() if weight.requires_grad]
    add_slow_adapter(policy)
    fast, slow = (adapter_parameters(policy, name) for name in ADAPTERS)
    assert {id(weight) for weight in policy.parameters() if weight.requires_grad} == {id(weight) for weight in [*fast, *slow]}
    for wanted, one, other in zip(before, fast, slow, strict=True):
        assert torch.equal(one, wanted)
        assert torch.equal(other, wanted)
    fill_adapter(policy)
    kept = [[weight.clone() for weight in weights] for weights in (fast, slow)]
    exchange_adapters(policy)
    for weights, wanted_ones in zip((slow, fast), kept, strict=True):
        assert all(torch.equal(*pair) for pair in zip(weights, wanted_ones, strict=True))
    for name in (SLOW, FAST, SLOW):
        compute_with(policy, name)
        assert policy.active_adapter == name
        assert all(weight.requires_grad for weight in [*fast, *slow])


@pytest.mark.parametrize("leader", ADAPTERS)
def test_both_passes_and_their_gradients_are_those_of_one_adapter_alone(leader: Any) -> None:
    """Each against a model that has that adapter alone, whose loss is DPO's and the chase with the other's numbers as constants."""
    policy, processor = build_policy()
    method = ChasingMethod(processor, chasing(chasing_weight=0.5), reference=Reference(policy, kind="adapter-off"))
    method.chase.leader = leader
    batch, encoded = make_batch(method), []
    (tower,) = (module for name, module in policy.named_modules() if name.endswith("vision_tower"))
    hook = tower.register_forward_pre_hook(lambda module, args, kwargs: encoded.append(module), with_kwargs=True)
    output = method.compute(policy, batch)
    output.loss_sum.backward()
    hook.remove()
    assert len(encoded) == 1, "images are encoded once, for the reference and both adapters"

    alone, found = {}, {}
    for name in ADAPTERS:
        model = copy.deepcopy(policy)
        model.zero_grad()
        compute_with(model, name)
        alone[name] = model
        found[name] = compute_response_logps(model, model_inputs(batch))
    with torch.no_grad(), Reference(policy, kind="adapter-off").active(policy) as frozen:
        reference = compute_response_logps(frozen, model_inputs(batch)).sums
    gap = {name: (logps.sums - reference).view(-1, 2) for name, logps in found.items()}
    margin = {name: 0.1 * (value[:, 0] - value[:, 1]) for name, value in gap.items()}
    own = {name: torch.nn.functional.softplus(-value).sum() for name, value in margin.items()}
    assert output.loss_sum.item() == pytest.approx(sum(value.item() for value in own.values()), abs=1e-4)
    assert abs(own[FAST].item() - own[SLOW].item()) > 0.01
    chaser = method.chase.chaser
    lead = margin[leader] - margin[chaser]
    assert output.metrics["chasing/lead"].total.item() == pytest.approx(lead.sum().item(), abs=1e-4)
    assert output.metrics["chasing/role"].total.item() == NUM_PAIRS * ADAPTERS.index(leader)
    assert output.metrics["rewards/margin"].total.item() == pytest.approx(margin[leader].sum().item(), abs=1e-4)
    assert output.metrics["loss/slow"].total.item() == pytest.approx(own[SLOW].item(), abs=1e-4)
    for name, other, sign in ((leader, chaser, 1), (chaser, leader, -1)):
        paid = torch.nn.functional.softplus(-sign * (margin[name] - margin[other].detach())).sum()
        (own[name] + sign * 0.5 * paid).backward()
        pairs = zip(adapter_parameters(policy, name), adapter_parameters(alone[name], name), strict=True)
        for weight, wanted in pairs:
            assert wanted.grad is not None
            torch.testing.assert_close(weight.grad, wanted.grad, rtol=1e-3, atol=1e-4)


def test_the_reference_is_the_base_with_both_off() -> None:
    policy, processor = build_policy()
    method = ChasingMethod(processor, chasing(), reference=Reference(policy, kind="adapter-off"))
    batch = make_batch(method)
    pairs = method.read_both(policy, batch)
    with torch.no_grad():
        base = compute_response_logps(build_tiny_llava(seed=0)[0], model_inputs(batch)).sums
    for name in ADAPTERS:
        assert pairs[name].reference is not None
        torch.testing.assert_close(pairs[name].reference.sums, base, rtol=1e-5, atol=1e-4)  # type: ignore[union-attr]
    assert all(weight.requires_grad for name in ADAPTERS for weight in adapter_parameters(policy, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "--chasing trains two LoRA adapters on a frozen base; set --lora-rank"),
        ({"reference": "cached"}, "the model with both adapters off; leave --reference cached out"),
        ({"reference": "copy"}, "leave --reference copy out"),
        ({"reference_model": "teacher"}, "leave --reference-model out"),
        ({"reference_quantization": "nf4"}, "leave --reference-quantization out"),
        ({"reference_update": "every:5"}, "leave --reference-update out"),
        ({"train_projector": True}, "leave --train-projector out"),
        ({"gradient_checkpointing": True}, "leave it out with --chasing"),
        ({"trainer": {"gradient_checkpointing": True}}, "leave it out with --chasing"),
        ({"chasing_weight": -0.1}, "chasing_weight is -0.1; expected at least 0"),
        ({"chasing_weight": math.nan}, "chasing_weight is nan; expected a finite number"),
        ({"chasing_steps": 0}, "chasing_steps is 0; expected at least 1"),
        ({"chasing_rate": 0.0}, "chasing_rate is 0.0; expected a share of the learning rate"),
        ({"chasing": False, "chasing_rate": 0.5}, "only one adapter trains; add --chasing"),
    ],
)
def test_what_cannot_chase(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chasing(**options) if "chasing" not in options else PreferenceOptions(model="m", data="d", out="o", **options)  # type: ignore[arg-type]


def test_objectives_without_a_reference_chase_too() -> None:
    policy, processor = build_policy()
    method = ChasingMethod(processor, chasing(objective=["simpo"]), reference=None)
    output = method.compute(policy, make_batch(method))
    output.loss_sum.backward()
    assert all(weight.grad is not None for name in ADAPTERS for weight in adapter_parameters(policy, name))


def test_both_passes_go_through_a_wrapper_of_several_processes(tmp_path: Path) -> None:
    """Two forward passes before one backward pass; DDP, which counts each weight's gradient, gives the loss and gradients without it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = []
        for wrapped in (False, True):
            policy, processor = build_policy()
            method = ChasingMethod(processor, chasing(), reference=Reference(policy, kind="adapter-off"))
            batch = make_batch(method)
            model = DistributedDataParallel(policy, find_unused_parameters=False) if wrapped else policy
            for _ in range(2):
                output = method.compute(model, batch)
                output.loss_sum.backward()
            found.append([output.loss_sum, *(weight.grad for name in ADAPTERS for weight in adapter_parameters(policy, name))])
        for one, other in zip(*found, strict=True):
            assert one is not None
            torch.testing.assert_close(one, other)
    finally:
        torch.distributed.destroy_process_group()
