"""The frozen reference: the same numbers as the untrained model, before and after the policy has moved."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.adapters import add_lora
from mmalign.models.references import Reference
from mmalign.options.training import LoraOptions
from mmalign.training.trainer import modules_that_stay_in_eval
from tests.tiny_models import build_tiny_llava, pair_rows


def make_batch(processor: object) -> dict[str, object]:
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(3))]
    encoded = [encode_responses(processor, images=r.images, prompt=r.prompt, responses=[r.chosen, r.rejected]) for r in rows]
    return collate_prompts(encoded, pad_token_id=0)


def take_steps(policy: nn.Module, batch: dict[str, object], count: int = 3) -> None:
    policy.train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(count):
        optimizer.zero_grad()
        (-compute_response_logps(policy, batch).token_logps.mean()).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["adapter-off", "copy"])
def test_reference_stays_where_the_policy_began(kind: str) -> None:
    model, processor = build_tiny_llava(scale=1.0)
    batch = make_batch(processor)
    with torch.no_grad():
        before = compute_response_logps(model, batch).token_logps
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8, lora_dropout=0.5)) if kind == "adapter-off" else model
    reference = Reference(policy, kind=kind)
    take_steps(policy, batch)
    with reference.active(policy) as frozen:
        after = compute_response_logps(frozen, batch).token_logps
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert policy.training
    with torch.no_grad():
        assert (compute_response_logps(policy.eval(), batch).token_logps - before).abs().max() > 1e-3


def test_batch_norms_in_eval_mode_stay_so() -> None:
    """The trainer holds them there. A forward pass in train mode would move their statistics, and the reference with them."""
    tower = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
    model, processor = build_tiny_llava(vision=tower, image_size=64)
    batch = make_batch(processor)
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8, lora_dropout=0.5)).train()
    for module in modules_that_stay_in_eval(policy):
        module.eval()
    modes = [module.training for module in policy.modules()]
    assert {True, False} == set(modes)
    reference = Reference(policy, kind="adapter-off")
    before = {name: value.clone() for name, value in policy.named_buffers()}
    with reference.active(policy) as frozen:
        assert not any(module.training for module in frozen.modules())
        compute_response_logps(frozen, batch)
    assert [module.training for module in policy.modules()] == modes
    compute_response_logps(policy, batch)
    assert any("running_mean" in name for name in before)
    for name, value in policy.named_buffers():
        assert torch.equal(value, before[name]), name


def test_a_copy_goes_where_the_policy_went() -> None:
    policy, _ = build_tiny_llava()
    reference = Reference(policy, kind="copy")
    assert reference.model is not None
    policy.to("meta")
    with reference.active(policy) as frozen:
        assert {parameter.device.type for parameter in frozen.parameters()} == {"meta"}


def test_a_weight_that_would_move_the_reference_is_refused() -> None:
    """The projector trained beside an adapter is not switched off with it: a reference with the adapter off would drift."""
    model, _ = build_tiny_llava()
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))
    Reference(policy, kind="adapter-off")
    policy.base_model.model.model.multi_modal_projector.requires_grad_(True)
    message = r"multi_modal_projector.* and 3 more weights train outside the adapter, so a reference with the adapter off would move"
    with pytest.raises(ValueError, match=message):
        Reference(policy, kind="adapter-off")
    with pytest.raises(ValueError, match="needs a policy with a LoRA adapter; set --lora-rank, or use 'copy' or 'cached'"):
        Reference(build_tiny_llava()[0], kind="adapter-off")


def test_a_copied_module_that_trains_with_the_adapter_is_switched_off_with_it() -> None:
    """PEFT's ``modules_to_save``: the projector learns in a copy, so the reference may keep the adapter-off form."""
    model, processor = build_tiny_llava(scale=1.0)
    batch = make_batch(processor)
    with torch.no_grad():
        before = compute_response_logps(model, batch).token_logps
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.q_proj", modules_to_save=["multi_modal_projector"])
    policy = get_peft_model(model, config)
    reference = Reference(policy, kind="adapter-off")
    take_steps(policy, batch)
    moved = [name for name, p in policy.named_parameters() if "multi_modal_projector" in name and p.grad is not None]
    assert moved
    with reference.active(policy) as frozen:
        assert torch.equal(compute_response_logps(frozen, batch).token_logps, before)


def test_the_drift_that_is_refused_is_real() -> None:
    model, processor = build_tiny_llava(scale=1.0)
    batch = make_batch(processor)
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))
    reference = Reference(policy, kind="adapter-off")
    with reference.active(policy) as frozen:
        before = compute_response_logps(frozen, batch).token_logps
    policy.base_model.model.model.multi_modal_projector.requires_grad_(True)
    take_steps(policy, batch)
    with reference.active(policy) as frozen:
        assert (compute_response_logps(frozen, batch).token_logps - before).abs().max() > 1e-3


def test_a_teacher_as_the_reference() -> None:
    policy, processor = build_tiny_llava(seed=0)
    teacher, _ = build_tiny_llava(seed=1)
    batch = make_batch(processor)
    with torch.no_grad():
        expected = compute_response_logps(teacher, batch).token_logps
    reference = Reference(policy, kind="copy", model=teacher)
    with reference.active(policy) as frozen:
        assert torch.equal(compute_response_logps(frozen, batch).token_logps, expected)
    assert not any(p.requires_grad for p in teacher.parameters())
