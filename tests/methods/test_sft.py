"""Supervised training: chats in packed rows, and what can't be packed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.methods.sft import SupervisedMethod
from mmalign.options.methods import ChatOptions, SftOptions
from mmalign.options.training import RouterOptions
from mmalign.training.router import RouterLosses
from tests.methods.test_router import build_sparse, chats, gradients
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava, random_image

TURNS = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "A dog and a cat."}]
LATER = [{"role": "user", "content": [{"type": "text", "text": "And here?"}, {"type": "image"}]}, TURNS[1]]


@pytest.mark.parametrize("name", ["llava_qwen3", "qwen2.5-vl", "gemma3", "molmo2"])
def test_packed_rows_give_the_same_loss_and_gradients(name: str) -> None:
    """Two turns, an image in the second of them, and no image; Molmo-2's images see those of later turns."""
    model, processor = build_tiny_llava() if name == "llava_qwen3" else FAMILIES[name]()
    rows = chats(4)
    rows[0]["messages"] += TURNS
    rows[2] = {
        "images": [*rows[2]["images"], random_image(7)],
        "messages": [_marked(rows[2]["messages"][0]), rows[2]["messages"][1], *LATER],
    }
    rows[3]["images"] = []
    plain, packed = SupervisedMethod(processor), SupervisedMethod(processor, ChatOptions(row_tokens=10_000))
    batches = plain.collate(rows), packed.collate(rows)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 1]
    assert plain.num_items(batches[0]) == packed.num_items(batches[1])
    expected, got = (method.compute(model, batch) for method, batch in zip((plain, packed), batches, strict=True))
    torch.testing.assert_close(got.loss_sum, expected.loss_sum, rtol=1e-5, atol=0)
    wanted, found = gradients(model, expected), gradients(model, got)
    norm = torch.stack([grad.norm() for grad in wanted.values()]).norm()
    assert norm > 1e-3
    assert wanted.keys() == found.keys()
    for key, grad in wanted.items():
        assert (found[key] - grad).norm() < 1e-5 * norm, key
    assert "in packed rows too" in packed.start(model, rows)
    assert "packed" not in plain.start(model, rows)


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": message["content"]}]}


def test_padding_falls() -> None:
    _, processor = build_tiny_llava()
    rows = chats(12)
    rows[0]["messages"] += 4 * TURNS
    shares = [
        float((SupervisedMethod(processor, options).collate(rows)["attention_mask"] == 0).float().mean())
        for options in (ChatOptions(), ChatOptions(row_tokens=400))
    ]
    assert shares[0] > 0.3 > 0.1 > shares[1]


def test_a_sparse_models_router_losses_are_the_same() -> None:
    model, processor = build_sparse()
    losses = RouterLosses(RouterOptions(balance_weight=0.5, router_z_weight=0.25))
    methods = SupervisedMethod(processor), SupervisedMethod(processor, ChatOptions(row_tokens=10_000))
    plain, packed = (losses.compute(method, model, method.collate(chats())).loss_sum for method in methods)
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=0)


def test_a_model_whose_state_runs_through_the_row_is_refused() -> None:
    model, processor = FAMILIES["qwen3.5"]()
    with pytest.raises(
        ValueError,
        match=r"can't pack prompts into rows: some of its layers keep a state .*; leave --row-tokens out",
    ):
        SupervisedMethod(processor, ChatOptions(row_tokens=200)).start(model, chats(2))


def test_rows_of_no_length_and_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="row_tokens is 0; expected a number of tokens"):
        ChatOptions(row_tokens=0)
    with pytest.raises(ValueError, match="--row-tokens packs chats, and --pictures trains on a picture per row"):
        SftOptions(model="a", data=[Path("b")], out=Path("c"), pictures=True, row_tokens=64)
