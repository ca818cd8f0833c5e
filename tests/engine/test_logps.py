"""The engine against plain forward passes: one row a response, full logits, log_softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.head import LogitTransform
from mmalign.engine.logps import compute_response_logps, find_transform
from tests.tiny_models import QWEN3, build_tiny_llava, pair_rows

# Noise measured between the two ways is 2e-6; a wrong mask or position moves log-probabilities by 0.1 and more.
TOLERANCE = {"rtol": 0, "atol": 1e-5}

LLMS: dict[str, dict[str, Any]] = {
    "qwen3": QWEN3,
    "llama": {**QWEN3, "model_type": "llama", "tie_word_embeddings": False},
    "mistral-window": {**QWEN3, "model_type": "mistral", "sliding_window": 8},
    "qwen3-moe": {**QWEN3, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}


@pytest.fixture(params=LLMS, scope="module")
def model_and_processor(request: pytest.FixtureRequest) -> Any:
    return build_tiny_llava(llm=LLMS[request.param])


def encode(processor: Any, num_rows: int = 3) -> list[EncodedPrompt]:
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(num_rows))]
    return [
        encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected, "yes", row.chosen])
        for row in rows
    ]


def plain_token_logps(model: Any, prompt: EncodedPrompt) -> list[Tensor]:
    """One unpadded forward a response, full logits, nothing of the engine."""
    values = []
    for response in prompt.responses:
        ids = torch.tensor([prompt.prefix_ids + response])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.images).logits[0]
        logps = torch.log_softmax(logits.float(), -1)[len(prompt.prefix_ids) - 1 : -1]
        values.append(logps.gather(-1, torch.tensor(response)[:, None]).squeeze(-1))
    return values


@pytest.mark.parametrize("shared", [True, False])
def test_equals_plain_forward(model_and_processor: Any, shared: bool) -> None:
    model, processor = model_and_processor
    encoded = encode(processor)
    expected = [value for prompt in encoded for value in plain_token_logps(model, prompt)]
    got = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0, shared=shared))
    assert len(got.per_response()) == len(expected)
    for a, b in zip(got.per_response(), expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    torch.testing.assert_close(got.sums, torch.stack([value.sum() for value in expected]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_equal_plain_forward(model_and_processor: Any, shared: bool) -> None:
    model, processor = model_and_processor
    encoded = encode(processor, 2)
    batch = collate_prompts(encoded, pad_token_id=0, shared=shared)

    def gradients(sums: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        # Unequal weights, so that swapped responses can't cancel.
        (sums * torch.arange(1.0, len(sums) + 1)).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(torch.stack([value.sum() for prompt in encoded for value in plain_token_logps(model, prompt)]))
    got = gradients(compute_response_logps(model, batch).sums)
    assert got.keys() == plain.keys()
    # Against the whole gradient's norm where a weight's own is next to nothing: key biases have none in exact arithmetic.
    floor = 1e-3 * torch.stack([value.norm() for value in plain.values()]).norm()
    for name in plain:
        error = (got[name] - plain[name]).norm() / plain[name].norm().clamp_min(floor)
        assert error < 1e-5, (name, error)


def test_the_image_matters(model_and_processor: Any) -> None:
    model, processor = model_and_processor
    encoded = encode(processor, 1)
    batch = collate_prompts(encoded, pad_token_id=0)
    before = compute_response_logps(model, batch).sums
    batch["images"]["pixel_values"] = batch["images"]["pixel_values"].flip(-1)
    assert (compute_response_logps(model, batch).sums - before).abs().max() > 1e-3


def test_plain_forward_is_itself_after_shared_rows(model_and_processor: Any) -> None:
    model, processor = model_and_processor
    prompt = encode(processor, 1)[0]
    compute_response_logps(model, collate_prompts([prompt], pad_token_id=0))
    ids = torch.tensor([prompt.prefix_ids + prompt.responses[0]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.images).logits
    assert logits.shape == (1, ids.shape[1], model.config.get_text_config().vocab_size)
    model.set_attn_implementation({"text_config": "sdpa"})
    again = model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.images).logits
    torch.testing.assert_close(logits, again, rtol=0, atol=0)


def gemma2(**values: Any) -> dict[str, Any]:
    sizes = {key: QWEN3[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")}
    return {**sizes, "model_type": "gemma2", "vocab_size": 512, "num_key_value_heads": 2, "query_pre_attn_scalar": 16, **values}


def test_only_classes_that_cap_their_logits_are_capped() -> None:
    """LLaVA's forward leaves a Gemma-2 text config's cap unused; PaliGemma's applies it."""
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = gemma2(final_logit_softcapping=2.0)
    config = PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=64, image_token_index=5, vocab_size=512)
    capped = PaliGemmaForConditionalGeneration(config).eval()
    assert find_transform(capped).softcap == 2.0
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        logits = capped(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits
    assert logits.abs().max() <= 2.0
    # Others may have joined what compose refuses.
    llava, processor = build_tiny_llava(llm=gemma2(final_logit_softcapping=None))
    llava.config.get_text_config().final_logit_softcapping = 2.0
    assert find_transform(llava) == LogitTransform()
    encoded = encode(processor, 1)
    expected = plain_token_logps(llava, encoded[0])
    got = compute_response_logps(llava, collate_prompts(encoded, pad_token_id=0))
    for a, b in zip(got.per_response(), expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_a_capped_model_gives_capped_numbers() -> None:
    """Through PaliGemma's own forward, text only; its config is as it was afterwards."""
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = gemma2(final_logit_softcapping=4.0, initializer_range=0.1)
    config = PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=64, image_token_index=5, vocab_size=512)
    model = PaliGemmaForConditionalGeneration(config).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    position = torch.arange(1, 6)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.tensor([[0, 0, 1, 1, 1]])}
    with torch.no_grad():
        logits = model(**inputs, position_ids=position).logits[0]
        expected = torch.log_softmax(logits, -1)[1:4].gather(-1, ids[0, 2:, None]).squeeze(-1)
        layout = {
            "segment": torch.tensor([[0, 0, 1, 1, 1]]), "position": position, "index": torch.tensor([1, 2, 3]), "target": ids[0, 2:],
            "response": torch.zeros(3, dtype=torch.long), "repeats": torch.tensor([1]), "shared": torch.tensor(True),
        }  # fmt: skip
        got = compute_response_logps(model, {**inputs, "images": {}, "layout": layout}).token_logps
    torch.testing.assert_close(got, expected, **TOLERANCE)
    uncapped = torch.log_softmax(4.0 * torch.atanh(logits / 4.0), -1)[1:4].gather(-1, ids[0, 2:, None]).squeeze(-1)
    assert (uncapped - expected).abs().max() > 0.01
    assert model.config.get_text_config().final_logit_softcapping == 4.0
