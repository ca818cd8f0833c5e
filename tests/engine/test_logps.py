"""The engine against plain forward passes: one row a response, full logits, log_softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
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
    torch.testing.assert_close(got.sums(), torch.stack([value.sum() for value in expected]), rtol=0, atol=1e-4)


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
    got = gradients(compute_response_logps(model, batch).sums())
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
    before = compute_response_logps(model, batch).sums()
    batch["images"]["pixel_values"] = batch["images"]["pixel_values"].flip(-1)
    assert (compute_response_logps(model, batch).sums() - before).abs().max() > 1e-3


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
