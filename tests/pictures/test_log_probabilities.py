"""Pictures as answers: the engine's log-probabilities are those of stock Janus on whole rows, in every layout, with gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.encode import EncodedPrompt
from mmalign.data.pictures import encode_caption, encode_pictures
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps, states_of
from mmalign.engine.probe import probe_rows
from mmalign.errors import UserError
from mmalign.models.picture_tokens import find_picture_tokens
from tests.tiny_families import janus, llava
from tests.tiny_models import fill_adapter, random_image, random_text

TOLERANCE = {"rtol": 0, "atol": 1e-5}
LAYOUTS: dict[str, dict[str, Any]] = {"plain": {"shared": False}, "shared": {"shared": True}, "packed": {"shared": True, "row_tokens": 90}}


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    return janus()


def encode(model: Any, processor: Any, counts: tuple[int, ...] = (2, 3, 2)) -> list[EncodedPrompt]:
    """Captions of different length, each with some pictures."""
    pictures, rng = find_picture_tokens(model), torch.Generator().manual_seed(0)
    return [
        encode_pictures(
            processor,
            random_text(i, 3 + 2 * i),
            torch.randint(24, (count, pictures.size), generator=rng).tolist(),
            form=pictures,
        )
        for i, count in enumerate(counts)
    ]


def stock_logps(model: Any, prompt: EncodedPrompt, number: int) -> Tensor:
    """Stock Janus: the row that its ``generate`` builds token by token, as a whole; the generation head's log-softmax."""
    codes = torch.tensor([prompt.responses[number]]) - model.config.text_config.vocab_size
    words = model.get_input_embeddings()(torch.tensor([prompt.prefix_ids]))
    row = torch.cat([words, model.prepare_embeddings_for_image_generation(codes)], 1)
    hidden = model.model.language_model(inputs_embeds=row, use_cache=False).last_hidden_state
    logits = model.model.generation_head(hidden)[:, len(prompt.prefix_ids) - 1 : -1]
    return -F.cross_entropy(logits[0], codes[0], reduction="none")


def gradients(model: Any, sums: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    # Unequal weights, so that swapped pictures can't cancel.
    (sums * torch.linspace(-1.0, 1.0, len(sums))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_they_equal_stock_janus(built: tuple[Any, Any], layout: str) -> None:
    model, processor = built
    encoded = encode(model, processor)
    expected = [stock_logps(model, prompt, i) for prompt in encoded for i in range(len(prompt.responses))]
    plain = gradients(model, torch.stack([value.sum() for value in expected]))
    outcome = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0, **LAYOUTS[layout]))
    got = gradients(model, outcome.sums)
    assert [len(value) for value in expected] == [16] * 7
    for one, other in zip(outcome.per_response(), expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    assert {"model.generation_head.vision_head.weight", "model.generation_embeddings.weight"} <= plain.keys() == got.keys()
    norm = torch.stack([value.norm() for value in plain.values()]).norm()
    assert torch.stack([(got[key] - plain[key]).norm() for key in plain]).norm() < 1e-5 * norm


def test_captions_and_earlier_tokens_matter(built: tuple[Any, Any]) -> None:
    """Else a row that left them out would go unseen."""
    model, processor = built
    pictures = find_picture_tokens(model)
    codes = [[3] * 16, [4, *[3] * 15]]
    rows = [encode_pictures(processor, caption, codes, form=pictures) for caption in ("red dog", "blue cat")]
    with torch.no_grad():
        first, second, third, _ = compute_response_logps(model, collate_prompts(rows, pad_token_id=0)).per_response()
    assert (first[2:] - second[2:]).abs().max() > 1e-3
    assert (first - third).abs().max() > 1e-3


def test_the_probe_asks_for_pictures(built: tuple[Any, Any]) -> None:
    model, processor = built
    choice = probe_rows(model, encode(model, processor)[:2], pad_token_id=0)
    assert choice.shared
    assert "largest difference" in choice.reason


def test_with_an_adapter(built: tuple[Any, Any]) -> None:
    _, processor = built
    config = LoraConfig(r=2, target_modules=r"model\.language_model\..*\.(q_proj|down_proj)")
    model = fill_adapter(get_peft_model(janus()[0], config)).eval()
    encoded = encode(model.get_base_model(), processor)  # type: ignore[operator]
    with torch.no_grad():
        got = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0)).per_response()
        expected = [stock_logps(model.get_base_model(), prompt, i) for prompt in encoded for i in range(len(prompt.responses))]  # type: ignore[operator]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        off = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0)).sums
    assert (off - torch.stack([value.sum() for value in got])).abs().max() > 1e-2


def test_a_divergence_is_over_picture_tokens(built: tuple[Any, Any]) -> None:
    """Against the sum over all 24 tokens, by hand, for another head."""
    model, processor = built
    other, _ = janus()
    with torch.no_grad():
        other.model.generation_head.vision_head.bias.copy_(torch.linspace(-1, 1, 24))
    encoded = encode(model, processor, (2,))
    batch = collate_prompts(encoded, pad_token_id=0)
    with torch.no_grad():
        theirs = compute_response_logps(other, batch, keep_states=True)
        got = compute_response_logps(model, batch, against=states_of(other, theirs, batch["layout"])).divergence
        assert got is not None
        codes = torch.tensor([encoded[0].responses[0]]) - 512
        prefix = torch.tensor([encoded[0].prefix_ids])
        p, q = (find_picture_tokens(one).own_logits(prefix, codes + 512).log_softmax(-1) for one in (other, model))
    torch.testing.assert_close(got[:16], (p.exp() * (p - q)).sum(-1), **TOLERANCE)


def test_words_of_the_same_model_are_scored_as_before(built: tuple[Any, Any]) -> None:
    """A batch of pictures leaves nothing behind."""
    model, processor = built
    text = EncodedPrompt(encode_caption(processor, "a dog", find_picture_tokens(model)), [[5, 6]], [[True, True]], {}, {})
    with torch.no_grad():
        before = compute_response_logps(model, collate_prompts([text], pad_token_id=0, shared=False)).token_logps
        compute_response_logps(model, collate_prompts(encode(model, processor), pad_token_id=0))
        after = compute_response_logps(model, collate_prompts([text], pad_token_id=0, shared=False)).token_logps
        row = torch.tensor([[*text.prefix_ids, 5, 6]])
        logits = model(row).logits[0].log_softmax(-1)
    assert torch.equal(before, after)
    places = len(text.prefix_ids) - 1
    torch.testing.assert_close(after, torch.stack([logits[places, 5], logits[places + 1, 6]]), **TOLERANCE)


def test_captions_begin_pictures_as_the_stock_processor_does(built: tuple[Any, Any]) -> None:
    model, processor = built
    form = find_picture_tokens(model)
    messages = [{"role": "user", "content": [{"type": "text", "text": "a red dog"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    stock = processor(text=prompt, generation_mode="image", return_tensors="pt")["input_ids"][0].tolist()
    ids = encode_caption(processor, "a red dog", form)
    assert ids == stock[len(stock) - len(ids) :]
    assert ids[-1] == processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")
    with pytest.raises(UserError, match="holds <image>"):
        encode_caption(processor, "a <image> dog", form)


def test_tokenizing_finds_the_nearest_direction(built: tuple[Any, Any]) -> None:
    """By the distance between unit vectors, one place after the other; stock ``encode`` takes others where codes differ in length."""
    model, processor = built
    vq = model.model.vqmodel
    with torch.no_grad():
        vq.quantize.embedding.weight.mul_(torch.linspace(0.2, 3.0, 24)[:, None])
        pixels = processor.image_processor([random_image(i) for i in range(2)], return_tensors="pt")["pixel_values"]
        latent = vq.quant_conv(vq.encoder(pixels))
        stock = vq.encode(pixels).image_tokens.view(2, -1)
    got = find_picture_tokens(model).tokenize(pixels)
    assert got.shape == (2, 16)
    units = F.normalize(vq.quantize.embedding.weight.detach(), dim=-1)
    for number, place in ((0, 0), (0, 7), (1, 15)):
        point = F.normalize(latent[number, :, place // 4, place % 4], dim=0)
        assert int(got[number, place]) == int(((units - point) ** 2).sum(-1).argmin())
    assert not torch.equal(got, stock)


def test_decoded_pictures_are_what_the_processor_shows(built: tuple[Any, Any]) -> None:
    model, processor = built
    codes = torch.arange(16)[None] % 24
    tokens = find_picture_tokens(model)
    pixels = tokens.decode(codes)
    assert pixels.shape == (1, 16, 16, 3)
    torch.testing.assert_close(pixels, model.decode_image_tokens(codes))
    (picture,) = tokens.show(processor, pixels)
    assert picture.size == (16, 16)
    # The processor's mean and deviation are one half each.
    expected = ((pixels[0] * 0.5 + 0.5) * 255).clip(0, 255).to(torch.uint8)
    assert torch.equal(torch.as_tensor(np.array(picture)), expected)


def test_a_model_that_draws_nothing_is_named() -> None:
    with pytest.raises(UserError, match="LlavaForConditionalGeneration draws no pictures as tokens"):
        find_picture_tokens(llava()[0])
