"""The probe: right models share rows, models that can't are laid out plainly, wrong numbers are refused."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmalign.engine import attention
from mmalign.engine.probe import own_logps, probe_rows
from tests.engine.test_logps import LLMS, encode, gemma2, plain_token_logps
from tests.tiny_models import QWEN3, build_tiny_llava


@pytest.mark.parametrize("name", LLMS)
def test_supported_models_share_rows(name: str) -> None:
    model, processor = build_tiny_llava(llm=LLMS[name])
    model.train()
    choice = probe_rows(model, encode(processor, 2), pad_token_id=0)
    assert choice.shared, choice.reason
    assert model.training


def test_own_logps_are_the_plain_forwards() -> None:
    model, processor = build_tiny_llava()
    for prompt in encode(processor, 2):
        with torch.no_grad():
            for a, b in zip(own_logps(model, prompt), plain_token_logps(model, prompt), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_model_that_attends_eagerly_shares_rows() -> None:
    """Gemma-2, whose attention bounds its logits, through its own function; its windows are shorter than the prompt."""
    (bounded, processor), (loose, _) = (build_tiny_llava(llm=gemma2(attn_logit_softcapping=cap, sliding_window=8)) for cap in (0.5, 50.0))
    encoded = encode(processor, 2)
    assert bounded.config.get_text_config()._attn_implementation == "eager"
    with torch.no_grad():
        assert (own_logps(bounded, encoded[0])[0] - own_logps(loose, encoded[0])[0]).abs().max() > 0.01
    choice = probe_rows(bounded, encoded, pad_token_id=0)
    assert choice.shared, choice.reason


def test_attention_that_is_not_known_gets_plain_rows() -> None:
    AttentionInterface.register("sdpa_of_mine", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa_of_mine", sdpa_mask)
    model, processor = build_tiny_llava(llm=QWEN3)
    model.set_attn_implementation({"text_config": "sdpa_of_mine"})
    choice = probe_rows(model, encode(processor, 2), pad_token_id=0)
    assert not choice.shared
    assert "'sdpa_of_mine' attention" in choice.reason


def test_a_model_without_eager_attention_is_told() -> None:
    with pytest.raises(ValueError, match="Linear has no eager_attention_forward"):
        AttentionInterface()[attention.SHARED["eager"]](nn.Linear(1, 1))


def test_shared_rows_with_a_wrong_mask_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the row's layout, attention is plain causal: the second response sees the first."""
    model, processor = build_tiny_llava()

    class NoLayout:
        def get(self) -> None:
            return None

        def set(self, layout: Any) -> None:
            return None

        def reset(self, token: Any) -> None:
            return None

    monkeypatch.setattr(attention, "_layout", NoLayout())
    choice = probe_rows(model, encode(processor, 2), pad_token_id=0)
    assert not choice.shared
    assert "differ by" in choice.reason


def test_a_head_that_the_engine_misreads_is_refused() -> None:
    """A forward that changes logits behind the head, unseen: even plain rows are wrong, and nothing may go on."""
    model, processor = build_tiny_llava(llm=QWEN3)
    forward = model.forward

    def sharpened(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    model.forward = sharpened
    with pytest.raises(ValueError, match="differ by .* from its own logits"):
        probe_rows(model, encode(processor, 1), pad_token_id=0)
