"""States on the way to log-probabilities: those of the model's own plain forward, in every family and layout."""

from typing import Any

import pytest
import torch

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.diagnostics.information import token_information_entropy
from mmalign.diagnostics.layers import trace_layers
from mmalign.engine.batch import collate_prompts
from mmalign.engine.hidden_states import compute_response_states, read_output_head
from mmalign.engine.logps import compute_response_logps
from tests.tiny_families import FAMILIES, PLAIN_ROWS
from tests.tiny_models import build_tiny_llava, pair_rows


def encode(processor: Any, number: int = 3) -> list[EncodedPrompt]:
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(number))]
    return [encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected]) for row in rows]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_states_give_the_log_probabilities(name: str) -> None:
    """The final states through the head, and the last layer's through norm and head, are the log-probabilities; no hook stays."""
    model, processor = FAMILIES[name]()
    batch = collate_prompts(encode(processor), pad_token_id=0, shared=name not in PLAIN_ROWS)
    expected = compute_response_logps(model, batch).token_logps
    found = compute_response_states(model, batch, layers=True)
    assert torch.equal(found.logps.token_logps, expected)
    head, target = read_output_head(model), batch["layout"]["target"][:, None]
    assert found.layers is not None
    for logits in (head.logits(found.final), head.lens(found.layers[-1])):
        torch.testing.assert_close(logits.log_softmax(-1).gather(-1, target)[:, 0], expected, rtol=0, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules() if type(module) is torch.nn.Linear)
    layers = model.get_decoder().layers
    assert len(found.layers) == len(layers)


@torch.no_grad()
def test_states_equal_the_models_own_hidden_states() -> None:
    model, processor = build_tiny_llava()
    encoded = encode(processor, 1)
    batch = collate_prompts(encoded, pad_token_id=0, shared=False)
    found = compute_response_states(model, batch, layers=True)
    pixels = batch["images"]["pixel_values"].repeat(2, 1, 1, 1)
    rows = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    own = model(**rows, pixel_values=pixels, output_hidden_states=True).hidden_states
    assert found.layers is not None
    # The library's list starts with the embeddings and ends with the normed last state.
    torch.testing.assert_close(found.layers[0], own[1].flatten(0, 1)[batch["layout"]["index"]], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.final, own[-1].flatten(0, 1)[batch["layout"]["index"]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_information_of_two_models_is_the_naive_one() -> None:
    (model, processor), (other, _) = build_tiny_llava(), build_tiny_llava(seed=1)
    batch = collate_prompts(encode(processor), pad_token_id=0)
    mine, theirs = (compute_response_states(m, batch).final for m in (model, other))
    heads = read_output_head(model), read_output_head(other)
    q = (heads[0].logits(mine).double().softmax(-1) / heads[1].logits(theirs).double().softmax(-1)).double()
    q = q / q.sum(-1, keepdim=True)
    naive = -(q * q.log()).sum(-1)
    torch.testing.assert_close(token_information_entropy(mine, heads[0], theirs, heads[1]), naive, rtol=0, atol=1e-4)
    same = token_information_entropy(mine, heads[0], mine, heads[0])
    torch.testing.assert_close(same, torch.full_like(same, torch.tensor(512.0).double().log().item()))


@torch.no_grad()
def test_a_layer_that_does_nothing_moves_nothing() -> None:
    model, processor = build_tiny_llava()
    states = compute_response_states(model, collate_prompts(encode(processor), pad_token_id=0), layers=True)
    assert states.layers is not None
    repeated = torch.stack([states.layers[0], states.layers[0], states.layers[1]])
    trace = trace_layers(repeated, read_output_head(model))
    assert trace.length[0] == pytest.approx(0, abs=1e-3)
    assert trace.length[1] > 0.1
    assert trace.exponent[0] == trace.exponent[1]
