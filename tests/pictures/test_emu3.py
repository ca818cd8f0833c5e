"""Emu3, whose picture tokens are words: log-probabilities, pictures and codes are those of stock Emu3 under its constraint."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.data.pictures import caption_words, encode_caption, encode_pictures, leave_caption_out
from mmalign.engine.batch import collate_prompts
from mmalign.engine.choosing import Sampling
from mmalign.engine.logps import compute_response_logps
from mmalign.engine.probe import probe_rows
from mmalign.errors import UserError
from mmalign.models.picture_tokens import find_picture_tokens
from tests.families.matrix import Family, check_dpo, check_generation, check_labels, check_scoring
from tests.pictures.conftest import draw_captions
from tests.tiny_families import emu3
from tests.tiny_models import random_image, random_text

SIDE = 32
CAPTIONS = [random_text(i, 2 + 2 * i) for i in range(3)]
LAYOUTS: dict[str, dict[str, Any]] = {"plain": {"shared": False}, "shared": {"shared": True}, "packed": {"shared": True, "row_tokens": 90}}


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    return emu3()


def prompts(processor: Any, captions: list[str]) -> Any:
    """Stock prompts of pictures of 4 x 4 tokens, padded on the left."""
    options = {"return_for_image_generation": True, "image_area": SIDE**2, "padding": True, "padding_side": "left"}
    return processor(text=captions, return_tensors="pt", **options)


def visual_words(model: Any) -> list[int]:
    """Of each code."""
    return [model.config.vocabulary_map[f"<|visual token {code:06d}|>"] for code in range(24)]


def stock_logps(model: Any, processor: Any, caption: str, codes: list[int]) -> Tensor:
    """Stock Emu3's logits of the whole row of words, of which its constraint leaves picture tokens alone."""
    words, end = visual_words(model), model.config.vocabulary_map["<|extra_200|>"]
    prompt = prompts(processor, [caption])["input_ids"][0].tolist()
    rows = [[*[words[code] for code in codes[start : start + 4]], end] for start in range(0, 16, 4)]
    ids = torch.tensor([[*prompt, *[word for row in rows for word in row]]])
    logps = model(input_ids=ids).logits[0][:, words].log_softmax(-1)
    places = [len(prompt) - 1 + number + number // 4 for number in range(16)]
    return logps[places, codes]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_equal_stock_emu3(built: tuple[Any, Any], layout: str) -> None:
    model, processor = built
    tokens = find_picture_tokens(model, side=SIDE)
    codes = torch.randint(24, (3, 2, 16), generator=torch.Generator().manual_seed(0)).tolist()
    encoded = [encode_pictures(processor, caption, pair, form=tokens) for caption, pair in zip(CAPTIONS, codes, strict=True)]
    expected = [stock_logps(model, processor, caption, one) for caption, pair in zip(CAPTIONS, codes, strict=True) for one in pair]
    weights = torch.linspace(-1.0, 1.0, 6)
    gradients = []
    outcome = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0, **LAYOUTS[layout]))
    for sums in (torch.stack([value.sum() for value in expected]), outcome.sums):
        model.zero_grad()
        (sums * weights).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for one, other in zip(outcome.per_response(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    plain, got = gradients
    assert {"lm_head.weight", "model.text_model.embed_tokens.weight"} <= plain.keys() == got.keys()
    norm = torch.stack([value.norm() for value in plain.values()]).norm()
    assert torch.stack([(got[key] - plain[key]).norm() for key in plain]).norm() < 1e-5 * norm
    assert probe_rows(model, encoded[:2], pad_token_id=0).shared


def constraint(model: Any, processor: Any) -> Any:
    """What may stand at each place of a picture of 4 x 4 tokens, as the model's own documentation has it."""
    tokenizer = processor.tokenizer
    begin = tokenizer.convert_tokens_to_ids("<|image token|>")
    behind = [tokenizer.convert_tokens_to_ids(name) for name in ("<|extra_201|>", "<|image end|>", "</s>")]

    def allowed(_: int, ids: Tensor) -> list[int]:
        place = len(ids) - int((ids == begin).nonzero()[0, 0])
        if place > 4 * 5:
            return [behind[place - 21]]
        return [tokenizer.convert_tokens_to_ids("<|extra_200|>")] if place % 5 == 0 else model.vocabulary_mapping.image_tokens

    return allowed


draw = functools.partial(draw_captions, side=SIDE, guidance=3.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_likeliest_pictures_are_those_of_stock_generate(built: tuple[Any, Any], guidance: float) -> None:
    """Captions of different length; without one stands the prompt of an empty caption. Pixels are those of stock's decoding too."""
    model, processor = built
    inputs, empty = prompts(processor, CAPTIONS), prompts(processor, [""] * 3)
    inputs.pop("image_sizes")
    guided = {"negative_prompt_ids": empty["input_ids"], "negative_prompt_attention_mask": empty["attention_mask"]}
    guided["guidance_scale"] = guidance
    allowed = constraint(model, processor)
    stock = model.generate(**inputs, **guided, max_new_tokens=23, do_sample=False, prefix_allowed_tokens_fn=allowed)
    drawn = stock[:, inputs["input_ids"].shape[1] :]
    got = draw(built, CAPTIONS, guidance=guidance)
    words = torch.tensor(visual_words(model))[got]
    assert torch.equal(drawn[:, :20].view(3, 4, 5)[..., :4].flatten(1), words)
    assert len({tuple(row) for row in got.tolist()}) == 3
    assert not torch.equal(got, draw(built, CAPTIONS, guidance=4.0 - guidance))
    tokens = find_picture_tokens(model, side=SIDE)
    pixels = tokens.decode(got)
    torch.testing.assert_close(pixels, model.decode_image_tokens(image_tokens=drawn, height=4, width=4))
    shown = processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")["pixel_values"]
    assert [np.array(image).tolist() for image in tokens.show(processor, pixels)] == [np.array(image).tolist() for image in shown]
    assert shown[0].size == (SIDE, SIDE)


def test_a_sampled_picture_is_the_same_in_every_batch(built: tuple[Any, Any]) -> None:
    together = draw(built, CAPTIONS, decoding=Sampling(1.0, answers=2)).view(3, 2, -1)
    for number, caption in enumerate(CAPTIONS):
        assert torch.equal(together[number], draw(built, [caption], decoding=Sampling(1.0, answers=2), seeds=[number]))
    assert torch.equal(draw(built, CAPTIONS, decoding=Sampling(1e-4)), draw(built, CAPTIONS))


def test_codes_are_those_of_stock_emu3_for_the_middle_square(built: tuple[Any, Any]) -> None:
    """A picture that is a square already, and the middle of a wide one of the same height."""
    model, processor = built
    tokens = find_picture_tokens(model, side=SIDE)
    wide = random_image(3, (SIDE, 64))
    pictures = [random_image(0, (SIDE, SIDE)), wide, wide.crop((16, 0, 48, SIDE))]
    codes = tokens.tokenize(tokens.read_pixels(processor, pictures))
    seen = processor.image_processor([pictures[0], pictures[2]], return_tensors="pt")
    stock = model.model.get_image_tokens(seen["pixel_values"], seen["image_sizes"]).view(2, 4, 5)
    assert torch.equal(torch.tensor(visual_words(model))[codes[[0, 2]]], stock[..., :4].flatten(1).long())
    assert torch.equal(codes[1], codes[2])
    assert not torch.equal(codes[0], codes[1])


def test_prompts_are_those_of_the_stock_processor(built: tuple[Any, Any]) -> None:
    model, processor = built
    tokens = find_picture_tokens(model, side=SIDE)
    ids = encode_caption(processor, "a red dog", tokens)
    assert ids == prompts(processor, ["a red dog"])["input_ids"][0].tolist()
    assert leave_caption_out(processor, ids, tokens) == prompts(processor, [""])["input_ids"][0].tolist()
    # The caption's own asterisk and number go with it, those of the size stay.
    odd = encode_caption(processor, "4*4 dogs", tokens)
    assert processor.tokenizer.decode([one for one, gone in zip(odd, caption_words(processor, odd), strict=True) if gone]) == "4*4 dogs"
    assert processor.tokenizer.decode(encode_caption(processor, "a", find_picture_tokens(model))).endswith("90*90<|image token|>")


def test_sides_that_are_no_whole_tokens_are_refused(built: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="picture_side is 30; expected a multiple of 8"):
        find_picture_tokens(built[0], side=30)


@pytest.mark.parametrize("check", [check_labels, check_dpo, check_scoring, check_generation])
def test_words_about_images_of_one_size(built: tuple[Any, Any], check: Callable[[Family], None]) -> None:
    check(Family("emu3", *built, Path()))
