"""A batch of text alone runs the layers of a batch with images, in their order: that is where processes with shared-out weights meet."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.training.blank_image import BlankImage
from tests.tiny_families import FAMILIES
from tests.tiny_models import pair_rows, random_image

# Their processors take no text without an image.
WITH_IMAGES_ALONE = ("paligemma", "paligemma2")


def run(model: Any, processor: Any, images: list[Image.Image], *, blank: bool = False) -> tuple[torch.Tensor, list[str], set[str]]:
    """Return the log-probabilities, the layers that FSDP shares out in the order in which they ran, and the weights with a gradient."""
    row = read_pair({**pair_rows(1)[0], "images": images}, index=0)
    encoded = encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen])
    batch = collate_prompts([encoded], pad_token_id=processor.tokenizer.pad_token_id)
    order: list[str] = []
    alone = set(model._no_split_modules or ())
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: order.append(name))
        for name, module in model.named_modules()
        if type(module).__name__ in alone or module is model.get_input_embeddings()
    ]
    model.zero_grad()
    with BlankImage(processor).read_by(model) if blank else nullcontext([]) as zeros:
        sums = compute_response_logps(model, batch).sums
    sum(zeros, sums.sum()).backward()
    for handle in handles:
        handle.remove()
    return sums.detach(), list(dict.fromkeys(order)), {name for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITH_IMAGES_ALONE])
def test_text_alone_runs_what_an_image_runs(name: str) -> None:
    model, processor = FAMILIES[name]()
    _, order, learned = run(model, processor, [random_image(0)])
    plain, without, _ = run(model, processor, [])
    sums, found, found_learned = run(model, processor, [], blank=True)
    torch.testing.assert_close(sums, plain, rtol=0, atol=0)
    assert len(without) < len(order)
    assert found == order
    assert found_learned == learned
