"""Chat templates as checkpoints have them: conversations are rendered whole, and the answers in them are found."""

import copy
import dataclasses
from typing import Any

import pytest

from mmalign.data.encode import batch_prompts, encode_chat, encode_questions, encode_responses, encode_row
from mmalign.data.rows import read_chat, read_pair
from mmalign.data.templates import describe_end, render, render_answers
from mmalign.errors import UserError
from tests.families.real_forms import build_real_form
from tests.tiny_families import FAMILIES, emu3
from tests.tiny_models import random_image

A = random_image(0)


def pair(**change: Any) -> Any:
    return read_pair({"images": [A], "prompt": "what is it", "chosen": "a dog", "rejected": "a cat", **change}, index=0)


def chat(*turns: str) -> Any:
    messages = [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(turns)]
    return read_chat({"images": [A], "messages": messages}, index=0)


@pytest.fixture(scope="module")
def llava() -> Any:
    return build_real_form("llava")[1]


@pytest.fixture(scope="module")
def qwen() -> Any:
    return build_real_form("qwen2-vl")[1]


@pytest.fixture(scope="module")
def thinking() -> Any:
    return build_real_form("qwen3.5")[1]


@pytest.fixture(scope="module")
def gemma() -> Any:
    return build_real_form("gemma3")[1]


def tokens(processor: Any, ids: list[int]) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(ids)


def answers(processor: Any, row: Any, **options: Any) -> str:
    encoded = encode_chat(processor, row, **options)
    return processor.tokenizer.decode([i for i, counted in zip(encoded.responses[0], encoded.scored[0], strict=True) if counted])


def test_a_template_without_an_end_gets_the_end_token_behind_the_last_answer(llava: Any) -> None:
    encoded = encode_row(llava, pair())
    assert [tokens(llava, ids) for ids in encoded.responses] == [["▁a", "▁dog", "</s>"], ["▁a", "▁cat", "</s>"]]
    kept = encode_row(llava, pair(), answer_end="template")
    assert [tokens(llava, ids) for ids in kept.responses] == [["▁a", "▁dog", "▁"], ["▁a", "▁cat", "▁"]]
    assert encoded.prefix_ids == kept.prefix_ids
    assert tokens(llava, encoded.prefix_ids).count("<s>") == 1
    assert answers(llava, chat("what is it", "a dog", "which one", "red")) == "a dog red</s>"


def test_what_ends_an_answer_is_said(llava: Any, qwen: Any) -> None:
    end = llava.tokenizer.eos_token_id
    assert "</s> is put behind the last one" in str(describe_end(llava, [end], "token"))
    assert "a model trained so does not stop by itself" in str(describe_end(llava, [end], "template"))
    assert "It is none of the tokens that end the model's generation (<unk>)" in str(describe_end(llava, [0], "token"))
    ends = qwen.tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    assert describe_end(qwen, ends, "token") is None
    assert "ends answers with '<|im_end|>', which holds none of the tokens that end" in str(describe_end(qwen, ends[1:], "token"))


@pytest.mark.parametrize("family", ["llava", "llava-next", "gemma3", "pixtral", "idefics3", "qwen2-vl", "lfm2-vl", "janus", "emu3"])
def test_one_begin_token_on_every_path(family: str) -> None:
    """Also where the processor always writes it (Emu3), or a system prompt (Janus); answers are found behind either."""
    _, processor = emu3() if family == "emu3" else build_real_form(family)
    row = pair()
    message = [{"role": "user", "content": [{"type": "image", "image": A}, {"type": "text", "text": "what is it"}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    expected = processor.apply_chat_template(message, **options)["input_ids"][0].tolist()
    assert encode_row(processor, row).prefix_ids == expected
    questions = encode_questions(processor, images=[A], prompts=[row.prompt, row.prompt])
    assert [*questions.prefix_ids, *questions.responses[1]] == expected
    assert batch_prompts(processor, [row.prompt], [[A]])["input_ids"][0].tolist() == expected
    told = encode_chat(processor, chat("what is it", "a dog"))
    assert told.prefix_ids == expected
    said = processor.tokenizer.decode([one for one, scored in zip(told.responses[0], told.scored[0], strict=True) if scored])
    assert "dog" in said
    assert "what" not in said


def test_questions_of_other_length_share_their_image(qwen: Any) -> None:
    prompts = [pair(prompt=words).prompt for words in ("is there a dog", "is there a red star on the table", "what")]
    encoded = encode_questions(qwen, images=[A], prompts=prompts)
    for prompt, rest in zip(prompts, encoded.responses, strict=True):
        text = qwen.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        assert [*encoded.prefix_ids, *rest] == qwen(text=[text], images=[[A]])["input_ids"][0]


BEGUN = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "it is a"}]


def scored_tokens(encoded: Any, number: int) -> list[int]:
    return [token for token, counted in zip(encoded.responses[number], encoded.scored[number], strict=True) if counted]


@pytest.mark.parametrize("family", ["qwen2-vl", "llava", "gemma3", "pixtral", "paligemma"])
def test_begun_words_are_continued(family: str) -> None:
    _, processor = build_real_form(family)
    row = pair(prompt=BEGUN, chosen=" dog", rejected=" cat")
    whole = encode_row(processor, pair(chosen="it is a dog", rejected="it is a cat"))
    begun = encode_row(processor, row)
    unfinished = encode_row(processor, dataclasses.replace(row, ends=(False, False)))
    for i, word in enumerate(("dog", "cat")):
        assert [*begun.prefix_ids, *begun.responses[i]] == [*whole.prefix_ids, *whole.responses[i]]
        first, *end = scored_tokens(begun, i)
        assert processor.tokenizer.decode([first]).strip() == word
        assert end
        assert scored_tokens(unfinished, i) == [first]


def test_a_begun_prompt_is_left_open_for_generation(qwen: Any) -> None:
    prompt = pair(prompt=BEGUN).prompt
    assert render(qwen, prompt, add_generation_prompt=True).endswith("<|im_start|>assistant\nit is a")


def test_thinking_templates(thinking: Any) -> None:
    encoded = encode_row(thinking, pair())
    assert thinking.tokenizer.decode(encoded.prefix_ids).endswith("<|im_start|>assistant\n<think>\n")
    assert thinking.tokenizer.decode(encoded.responses[0]) == "\n</think>\n\na dog<|im_end|>\n"
    reasoned = "<think>\nit has a tail\n</think>\n\na dog"
    assert thinking.tokenizer.decode(encode_row(thinking, pair(chosen=reasoned)).responses[0]).startswith(
        "it has a tail\n</think>\n\na dog<|im"
    )
    # The reasoning of an earlier turn is dropped by the template, and so it is from what is trained on.
    assert answers(thinking, chat("what", reasoned, "which", reasoned)) == "a dog<|im_end|>\nit has a tail\n</think>\n\na dog<|im_end|>\n"


def test_words_that_a_template_trims(gemma: Any) -> None:
    encoded = encode_row(gemma, pair(chosen=" a dog\n"))
    assert gemma.tokenizer.decode(encoded.responses[0]) == "a dog<end_of_turn>\n"
    with pytest.raises(ValueError, match="two responses are the same text once the chat template has trimmed them"):
        encode_row(gemma, pair(chosen=" a dog\n", rejected="a dog"))


@pytest.mark.parametrize("words", ["dog", "assistant", "<think>", "end", "a dog a dog", "USER: what ASSISTANT: a dog", "."])
@pytest.mark.parametrize("family", ["qwen2-vl", "llava", "gemma3", "qwen3.5"])
def test_answers_that_look_like_the_template(family: str, words: str) -> None:
    _, processor = build_real_form(family)
    messages = chat("dog a dog", words, "what", words).messages
    rendered = render_answers(processor, messages, [1, 3])
    for start, stop in rendered.answers:
        assert words.replace("<think>", "") in rendered.text[start:stop]
        assert "what" not in rendered.text[start:stop].replace(words, "")


def test_a_template_that_changes_words_is_refused(qwen: Any) -> None:
    upper = copy.copy(qwen)
    upper.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + (m['content'][-1]['text'] | upper) + '\n' }}{% endfor %}"
    with pytest.raises(ValueError, match="the chat template changes an answer's words"):
        encode_chat(upper, chat("what", "a dog"))
    upper.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="the chat template refuses this conversation: roles must alternate"):
        render(upper, chat("what", "a dog").messages, add_generation_prompt=False)


SOURCE = "writes a message's parts as source text"
TEXT_MODELS = {
    "{{ m['role'] + ': ' }}{{ m['content'] }}": SOURCE,
    "{{ m['role'] + ': ' }}{{ m['content'] | trim }}": SOURCE,
    "{% if m['role'] == 'user' %}{{ m['content'][0]['text'] }}{% else %}{{ m['content'] }}{% endif %}": SOURCE,
    "{{ m['role'] + ': ' + m['content'] }}": "can't read messages in parts .*can only concatenate",
}


@pytest.mark.parametrize("body", TEXT_MODELS)
def test_a_text_models_template_is_refused_by_name(qwen: Any, body: str) -> None:
    text = copy.copy(qwen)
    text.chat_template = f"{{% for m in messages %}}{body}{{{{ '\n' }}}}{{% endfor %}}"
    prompt = pair(images=[]).prompt
    reason = f"the chat template {TEXT_MODELS[body]}.*: it is a text model's; save a multimodal one"
    with pytest.raises(ValueError, match=reason):
        encode_row(text, pair(images=[]))
    with pytest.raises(ValueError, match=reason):
        describe_end(text, [2], "token")
    if "if" not in body:
        with pytest.raises(ValueError, match=reason):
            encode_questions(text, images=[], prompts=[prompt])


LOSING = {
    "user": "{% if c['type'] == 'text' %}{{ c['text'] if m['role'] == 'assistant' else c['content'] }}{% endif %}",
    "system": "{% if m['role'] != 'system' %}{{ c['text'] }}{% endif %}",
}


@pytest.mark.parametrize("role", LOSING)
def test_a_template_that_leaves_out_what_is_asked_is_refused(qwen: Any, role: str) -> None:
    losing = copy.copy(qwen)
    losing.chat_template = (
        f"{{% for m in messages %}}{{{{ m['role'] }}}}: {{% for c in m['content'] %}}{LOSING[role]}{{% endfor %}}{{% endfor %}}"
    )
    turns = [{"role": "system", "content": " be brief\n"}, {"role": "user", "content": " what is it\n"}]
    row = pair(images=[], prompt=turns)
    whole = read_chat({"messages": [*turns, {"role": "assistant", "content": "a dog"}]}, index=0)
    for encode in (
        lambda processor: encode_row(processor, row),
        lambda processor: encode_chat(processor, whole),
        lambda processor: encode_questions(processor, images=[], prompts=[row.prompt]),
        lambda processor: batch_prompts(processor, [row.prompt]),
    ):
        encode(qwen)
        with pytest.raises(
            UserError, match=f"the chat template leaves out words of the {'system' if role == 'system' else '(system|user)'}"
        ):
            encode(losing)


def test_words_that_look_like_parts_are_words(qwen: Any) -> None:
    assert answers(qwen, chat("what is it", "[{'type': 'text', 'text': 'a dog'}] is a part")).startswith("[{'type': 'text'")


@pytest.mark.parametrize("family", FAMILIES)
def test_words_that_mean_an_image_are_refused_by_name(family: str) -> None:
    _, processor = FAMILIES[family]()
    token = processor.all_special_multimodal_tokens[0]
    for change in (
        {"chosen": f"the token {token}"},
        {"prompt": [{"role": "system", "content": f"{token} "}, {"role": "user", "content": "x"}]},
    ):
        if token == "<image>" and "prompt" in change:
            continue
        with pytest.raises(ValueError, match=r"the text of the .* holds .*, which .*Processor reads as an image's place"):
            encode_row(processor, pair(**change))


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("paligemma")])
def test_words_that_the_model_takes_for_an_image_are_refused(family: str) -> None:
    """Whatever the processor says of them: ids that the model itself puts features of an image at."""
    model, processor = FAMILIES[family]()
    token = processor.tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    with pytest.raises(ValueError, match="reads as an image's place"):
        encode_row(processor, pair(chosen=f"the token {token}"))


def test_a_picture_that_the_processor_refuses_is_named(qwen: Any) -> None:
    with pytest.raises(ValueError, match="Qwen2VLProcessor refuses the row: .*aspect ratio"):
        encode_row(qwen, pair(images=[random_image(1, (4, 910))]))


def test_lists_of_one_text_are_allowed_where_no_preference_is_asked_for(qwen: Any) -> None:
    row = pair()
    encoded = encode_responses(qwen, images=row.images, prompt=row.prompt, responses=["a dog", "a dog"])
    assert encoded.responses[0] == encoded.responses[1]
