"""The probe: right models share rows, models that can't are laid out plainly, wrong numbers are refused."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmalign.data.encode import EncodedPrompt, encode_questions
from mmalign.data.rows import Message
from mmalign.engine import attention, batch
from mmalign.engine.prefix import _prefix_difference, probe_prefix
from mmalign.engine.probe import COARSE_TOLERANCE, check_rows, own_logps, probe_rows
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.methods.teachers import LiveTeacher
from mmalign.models import float32
from mmalign.models.references import Reference
from mmalign.options.methods import MimicLossOptions
from tests.engine.test_families import questions
from tests.engine.test_logps import LLMS, encode, gemma2, plain_token_logps
from tests.tiny_families import FAMILIES
from tests.tiny_models import QWEN3, build_tiny_llava, pair_rows, random_image, random_text


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
    text = gemma2(final_logit_softcapping=None, sliding_window=8)
    (bounded, processor), (loose, _) = (build_tiny_llava(llm={**text, "attn_logit_softcapping": cap}) for cap in (0.5, 50.0))
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


class NoLayout:
    """Attention stays plain causal: a response sees all that stands before it in its row."""

    def get(self) -> None:
        return None

    def set(self, layout: Any) -> None:
        return None

    def reset(self, token: Any) -> None:
        return None


def test_shared_rows_with_a_wrong_mask_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build_tiny_llava()
    monkeypatch.setattr(attention, "_layout", NoLayout())
    choice = probe_rows(model, encode(processor, 2), pad_token_id=0)
    assert not choice.shared
    assert "differ by" in choice.reason


def one_position_late(model: Any) -> None:
    """Make a model read everything behind a cache one position further than it is told."""
    forward = model.forward

    def late(*args: Any, position_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        position_ids = position_ids if past_key_values is None else position_ids + 1
        return forward(*args, position_ids=position_ids, past_key_values=past_key_values, **kwargs)

    model.forward = late


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cache_one_position_off_is_found_in_every_precision(dtype: torch.dtype) -> None:
    model, processor = build_tiny_llava(scale=1.0)
    encoded = questions(processor)[0]
    assert probe_prefix(model.to(dtype), encoded, pad_token_id=0).shared
    one_position_late(model)
    with torch.no_grad():
        # Less than what bfloat16 alone makes of a large model's logits.
        assert 0.02 < _prefix_difference(model, encoded, pad_token_id=0) < 0.1
    choice = probe_prefix(model, encoded, pad_token_id=0)
    assert not choice.shared
    assert "can't share their image's cache: first logits differ by 0.04" in choice.reason


def test_rounding_alone_keeps_no_question_from_the_cache() -> None:
    """A model with logits so large that some of them differ by half in bfloat16, as those of pretrained models do."""
    wide = {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "tie_word_embeddings": False}
    model, processor = build_tiny_llava(llm=QWEN3 | wide)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    model.bfloat16()
    texts = [[f"{random_text(n, n)} {end}" for end in ("dog", "cat is")] for n in range(4, 9)]
    prompts = [[[Message(role="user", content=[{"type": "image"}, {"type": "text", "text": text}])] for text in group] for group in texts]
    encoded = [encode_questions(processor, images=[random_image(0)], prompts=group) for group in prompts]
    with torch.no_grad():
        if max(_prefix_difference(model, one, pad_token_id=0) for one in encoded) < COARSE_TOLERANCE:
            pytest.skip("this processor rounds both alike")
    choices = [probe_prefix(model, one, pad_token_id=0) for one in encoded]
    assert all(choice.shared for choice in choices), choices
    with torch.autocast("cpu", torch.bfloat16):
        assert probe_prefix(model.float(), encoded[1], pad_token_id=0).shared


def sharpened(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that changes logits behind the head."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    return changed


def test_a_head_that_the_engine_misreads_is_refused() -> None:
    """Even plain rows are wrong, and nothing may go on."""
    model, processor = build_tiny_llava(llm=QWEN3)
    model.forward = sharpened(model.forward)
    with pytest.raises(ValueError, match="differ by .* from its own logits"):
        probe_rows(model, encode(processor, 1), pad_token_id=0)


def one_response(encoded: list[EncodedPrompt]) -> list[EncodedPrompt]:
    return [dataclasses.replace(prompt, responses=prompt.responses[:1], scored=prompt.scored[:1]) for prompt in encoded]


def test_plain_rows_are_checked_and_every_module_keeps_its_mode() -> None:
    model, processor = build_tiny_llava()
    model.train()
    model.model.vision_tower.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    told = check_rows(model, one_response(encode(processor, 2)), pad_token_id=0)
    assert told.startswith("log-probabilities are those of LlavaForConditionalGeneration itself (largest difference ")
    assert {name: module.training for name, module in model.named_modules()} == modes
    check_rows(model.to(torch.bfloat16), one_response(encode(processor, 2)), pad_token_id=0)


@pytest.mark.parametrize("name", ["qwen3.5", "lfm2-vl"])
def test_states_that_run_through_the_row_are_found_in_half_precision_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory doesn't hold the weights in float32, what is wrong here is less than rounding may be there."""
    monkeypatch.setattr(float32, "_fit", lambda halves: False)
    model, processor = FAMILIES[name]()
    encoded = encode(processor, 2)
    model.to(torch.bfloat16)
    choice = probe_rows(model, encoded, pad_token_id=0)
    assert not choice.shared
    assert "can't share rows: some of its layers keep a state that runs on through the row" in choice.reason
    with pytest.raises(ValueError, match="can't pack prompts into rows: some of its layers keep a state"):
        check_rows(model, one_response(encoded), pad_token_id=0, packed=True)


def test_packed_rows_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where the mask is wrong, or a state runs through the row from one prompt to the next."""
    model, processor = build_tiny_llava()
    encoded = one_response(encode(processor, 2))
    assert "in packed rows too" in check_rows(model, encoded, pad_token_id=0, packed=True)
    linear, own = FAMILIES["qwen3.5"]()
    with pytest.raises(
        ValueError,
        match=r"can't pack prompts into rows: some of its layers keep a state .*; leave --row-tokens out",
    ):
        check_rows(linear, one_response(encode(own, 2)), pad_token_id=0, packed=True)
    monkeypatch.setattr(attention, "_layout", NoLayout())
    assert "packed" not in check_rows(model, encoded, pad_token_id=0)
    with pytest.raises(ValueError, match="packed rows of LlavaForConditionalGeneration differ by"):
        check_rows(model, encoded, pad_token_id=0, packed=True)


def test_a_row_that_reads_another_rows_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Molmo-2's patches, each row's counted from 0: right row by row, wrong in a batch."""
    model, processor = FAMILIES["molmo2"]()
    encoded = one_response(encode(processor, 2))
    check_rows(model, encoded, pad_token_id=0)
    monkeypatch.setattr(batch, "_continue_indices", lambda prompts: prompts)
    check_rows(model, encoded[:1], pad_token_id=0)
    with pytest.raises(ValueError, match="of Molmo2ForConditionalGeneration differ by .* from its own logits"):
        check_rows(model, encoded, pad_token_id=0)


def test_a_wrong_student_and_a_wrong_teacher_stop_a_run_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    student, processor = FAMILIES["molmo2"]()
    teacher, _ = FAMILIES["molmo2"]()
    chats = [{"images": row["images"], "messages": [*row["prompt"], *row["chosen"]]} for row in pair_rows(2)]
    live = LiveTeacher(Reference(student, kind="copy", model=teacher), processor, student=student, student_processor=processor)
    mimic = MimicMethod(processor, MimicLossOptions(), teacher=live)
    assert "share 356 tokens" in mimic.start(student, chats)
    assert "itself" in SupervisedMethod(processor).start(student, chats)
    with monkeypatch.context() as patch:
        patch.setattr(type(teacher), "forward", sharpened(type(teacher).forward))
        for start in (SupervisedMethod(processor).start, mimic.start):
            with pytest.raises(ValueError, match="differ by"):
                start(student, chats)
    # The student's forward is its own again, the teacher's isn't.
    monkeypatch.setattr(teacher, "forward", sharpened(teacher.forward))
    with pytest.raises(ValueError, match="differ by"):
        mimic.start(student, chats)
