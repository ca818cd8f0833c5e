"""Tokenisation: the prompt is the prompt of generation, the response is what follows it, and only answers are scored."""

import copy
from typing import Any

import pytest

from mmalign.data.encode import encode_chat, encode_responses, encode_row
from mmalign.data.rows import read_chat, read_pair
from mmalign.data.templates import render
from mmalign.errors import UserError
from tests.tiny_models import build_tiny_llava, random_image

IMAGE = random_image(0)


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_tiny_llava()[1]


def pair(processor: Any, **options: Any) -> Any:
    row = read_pair({"images": [IMAGE], "prompt": "what do you see", "chosen": "a dog", "rejected": "a red cat"}, index=0)
    return encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected], **options)


def test_prefix_is_what_generation_starts_from(processor: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what do you see"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "USER: <image>\nwhat do you see ASSISTANT:"
    expected = processor(text=text, images=IMAGE, return_tensors="pt")["input_ids"][0].tolist()
    assert pair(processor).prefix_ids == expected
    assert expected.count(processor.image_token_id) == 4


def test_responses_end_with_eos_and_are_scored_whole(processor: Any) -> None:
    encoded = pair(processor)
    assert [processor.tokenizer.decode(ids) for ids in encoded.responses] == [" a dog</s>", " a red cat</s>"]
    assert all(all(scored) for scored in encoded.scored)


def test_only_assistant_turns_are_scored(processor: Any) -> None:
    messages = [
        {"role": "user", "content": "what is there"},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "is it red"},
        {"role": "assistant", "content": "no"},
    ]
    encoded = encode_chat(processor, read_chat({"images": [IMAGE], "messages": messages}, index=0))
    ids, scored = encoded.responses[0], encoded.scored[0]
    assert processor.tokenizer.decode(ids) == " a dog</s>USER: is it red ASSISTANT: no</s>"
    assert processor.tokenizer.decode([i for i, s in zip(ids, scored, strict=True) if s]) == " a dog</s> no</s>"


def test_over_long_rows_are_refused(processor: Any) -> None:
    length = pair(processor).num_tokens - len(pair(processor).responses[0])
    assert pair(processor, max_length=length)
    with pytest.raises(ValueError, match=f"take {length} tokens .images included., more than max_length {length - 1}"):
        pair(processor, max_length=length - 1)


@pytest.mark.parametrize("changed", ["prompt", "chosen", "rejected"])
def test_half_of_a_surrogate_pair_is_refused(changed: str, processor: Any) -> None:
    raw = {"images": [IMAGE], "prompt": "what do you see", "chosen": "a dog", "rejected": "a red cat"}
    row = read_pair({**raw, changed: f"{raw[changed]} \ud83d"}, index=0)
    with pytest.raises(UserError, match="the text holds half of a surrogate pair"):
        encode_row(processor, row)


def test_processor_without_template_is_refused(processor: Any) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(ValueError, match=r"Bare has no chat template; save one beside it .* or recompose the model$"):
        render(Bare(), [], add_generation_prompt=True)


def test_a_template_of_the_tokenizer_alone_is_told(processor: Any) -> None:
    """As checkpoints have it whose template is a text model's, or was saved by older releases."""
    whole = copy.deepcopy(processor)
    whole.tokenizer.chat_template, whole.chat_template = processor.chat_template, None
    with pytest.raises(ValueError, match=r"the tokenizer has one \(tokenizer_config.json\): where that places images, copy it there"):
        render(whole, [{"role": "user", "content": "hm"}], add_generation_prompt=True)
