"""Rows: TRL's forms are accepted, each fault has its message."""

from typing import Any

import pytest

from mmalign.data.rows import check_columns, read_chat, read_list, read_pair
from mmalign.errors import UserError
from tests.tiny_models import random_image

PLAIN = {"images": [random_image(0)], "prompt": "What is it?", "chosen": "a dog", "rejected": "a cat"}
CONVERSATIONAL = {
    "id": 7,
    "image": random_image(0),
    "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]}],
    "chosen": [{"role": "assistant", "content": "a dog"}],
    "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}],
    "source": "RLHF-V",
}
LLAVA_STYLE = {**PLAIN, "prompt": "<image>\nWhat is it?"}


@pytest.mark.parametrize("raw", [PLAIN, CONVERSATIONAL, LLAVA_STYLE])
def test_all_forms_read_alike(raw: dict[str, Any]) -> None:
    row = read_pair(raw, index=3)
    assert row.prompt == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert (row.chosen, row.rejected) == ("a dog", "a cat")


@pytest.mark.parametrize("raw", [{"images": []}, {"images": None}, {"images": [PLAIN["images"][0]]}, {}])
def test_an_image_is_found_under_either_name(raw: dict[str, Any]) -> None:
    row = read_pair({"prompt": "What is it?", "chosen": "a dog", "rejected": "a cat", "image": PLAIN["images"][0], **raw}, index=0)
    assert [image.tobytes() for image in row.images] == [PLAIN["images"][0].tobytes()]


def test_a_system_prompt_in_a_column_of_its_own_stands_in_front() -> None:
    system, user = (
        {"role": role, "content": [{"type": "text", "text": words}]} for role, words in (("system", "Be brief."), ("user", "?"))
    )
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}
    pair = {"system": "Be brief.", "prompt": "?", "chosen": "a dog", "rejected": "a cat"}
    assert read_pair(pair, index=0).prompt == [system, user]
    assert read_pair({**pair, "system": ""}, index=0).prompt == [user]
    for turns in ([user, answer], [system, user, answer]):
        assert read_chat({"system": "Be brief.", "messages": turns}, index=0).messages == [system, user, answer]
    with pytest.raises(UserError, match="a system prompt in the column system and another one in its messages"):
        read_chat({"system": "Be long.", "messages": [system, user, answer]}, index=0)


def test_id_and_source() -> None:
    assert (read_pair(PLAIN, index=3).id, read_pair(PLAIN, index=3).source) == ("3", "all")
    assert (read_pair(CONVERSATIONAL, index=3).id, read_pair(CONVERSATIONAL, index=3).source) == ("7", "RLHF-V")


def test_text_only_pair_has_no_placeholder() -> None:
    row = read_pair({**PLAIN, "images": []}, index=0)
    assert row.images == []
    assert row.prompt[0]["content"] == [{"type": "text", "text": "What is it?"}]


def test_the_row_itself_is_left_as_it_was() -> None:
    raw = {**PLAIN, "prompt": [{"role": "user", "content": [{"type": "text", "text": "<image>\nHm?"}]}]}
    read_pair(raw, index=0)
    assert raw["prompt"] == [{"role": "user", "content": [{"type": "text", "text": "<image>\nHm?"}]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": " \n"}, "chosen is empty"),
        ({"rejected": ""}, "rejected is empty"),
        ({"rejected": "a dog"}, "chosen and rejected are the same text"),
        ({"chosen": None}, "chosen is a NoneType; expected text or one assistant message"),
        ({"chosen": [{"role": "user", "content": "x"}]}, "chosen must be one assistant message"),
        ({"images": [b"junk"]}, "not an image that Pillow can read"),
        ({"images": ""}, "image path is empty; a row without an image has null there"),
        ({"images": ["a\0.png"]}, r"image path 'a\\x00.png' holds a zero byte"),
        ({"images": ["http://[a/b.png"]}, r"image 'http://\[a/b.png' is an address"),
        ({"images": ["file://[a/b.png"]}, r"image path '\[a/b.png' is relative"),
        ({"image": random_image(1)}, "the row has images, and others under image; expected all of its images in one of them"),
        ({"history": [["What?", "That."]]}, "the row has history: the turns before stand apart from the conversation"),
        ({"audios": ["a.wav"]}, "the row has audios: sound can't be read"),
        ({"images": ["//[a: b.png"]}, r"image path '//\[a: b.png' is absolute"),
        ({"prompt": []}, "prompt is an empty list; expected text or a list of messages"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}] * 2}]}, "prompt has 2 image placeholders for 1 images"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "no user turn to place them in"),
    ],
)
def test_faults_of_a_pair(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pair({**PLAIN, **change}, index=0)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "x"}], "must hold a user turn and end with an assistant turn"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}], "assistant turn is empty"),
    ],
)
def test_faults_of_a_chat(messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_chat({"images": [random_image(0)], "messages": messages}, index=0)


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match="pairs.parquet has no column chosen; it has prompt, rejected. Needed: prompt, chosen, rejected"):
        check_columns(["prompt", "rejected"], ["prompt", "chosen", "rejected"], what="pairs.parquet")


SCORED = {"images": [random_image(0)], "prompt": "What is it?", "responses": ["a dog", "a cat", "a sofa"], "scores": [1, 0.5, 0.0]}


def test_lists_in_both_forms() -> None:
    turns = [[{"role": "assistant", "content": text}] for text in SCORED["responses"]]
    for raw in (SCORED, {**SCORED, "responses": turns}):
        row = read_list(raw, index=2)
        assert (row.id, row.responses, row.scores) == ("2", ["a dog", "a cat", "a sofa"], [1.0, 0.5, 0.0])
        assert row.prompt == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["a dog"], "scores": [1.0]}, "row has 1 responses and 1 scores; expected two or more"),
        ({"scores": [1.0, 0.5]}, "row has 3 responses and 2 scores"),
        ({"scores": [1.0, None, 0.0]}, "scores hold None; expected finite numbers"),
        ({"scores": [1, 10**400, 0]}, "scores hold 10+; expected finite numbers"),
        ({"scores": [1.0, float("nan"), 0.0]}, "scores hold nan; expected finite numbers"),
        ({"scores": [1.0, float("inf"), 0.0]}, "scores hold inf; expected finite numbers"),
        ({"scores": [1.0, 1.0, 1.0]}, "every response has score 1: there is no preference to learn"),
        ({"responses": ["a dog", "a cat", "a dog"]}, "two responses are the same text"),
        ({"responses": ["a dog", " ", "a cat"]}, "response 1 is empty"),
    ],
)
def test_lists_that_cant_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_list({**SCORED, **change}, index=0)


def turn(role: str, words: str) -> dict[str, str]:
    return {"from": role, "value": words}


@pytest.mark.parametrize(
    "raw",
    [
        {"conversations": [turn("human", "<image>\nWhat is it?")], "chosen": turn("gpt", "a dog"), "rejected": turn("gpt", "a cat")},
        {"prompt": {"role": "user", "content": "What is it?"}, "chosen": {"role": "assistant", "content": "a dog"}, "rejected": "a cat"},
        {
            "prompt": {"role": ["user"], "content": ["What is it?"]},
            "chosen": "a dog",
            "rejected": {"role": ["assistant"], "content": ["a cat"]},
        },
        {"prompt": {"from": ["human"], "value": ["What is it?"], "weight": []}, "chosen": "a dog", "rejected": "a cat"},
    ],
    ids=["LLaMA-Factory", "one message", "key by key", "a key that is empty"],
)
def test_a_message_alone_and_messages_stored_key_by_key(raw: dict[str, Any]) -> None:
    row = read_pair({"images": [random_image(0)], **raw}, index=0)
    assert row.prompt == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert (row.chosen, row.rejected) == ("a dog", "a cat")


def test_messages_stored_key_by_key_are_as_many_of_each() -> None:
    with pytest.raises(ValueError, match="messages stored key by key differ in number: 2 role, 1 content"):
        read_pair({**PLAIN, "prompt": {"role": ["user", "assistant"], "content": ["What is it?"]}}, index=0)


def test_a_list_of_responses_takes_messages_alone() -> None:
    responses = [{"role": "assistant", "content": "a dog"}, [{"role": "assistant", "content": "a cat"}], "no"]
    assert read_list({"prompt": "What is it?", "responses": responses, "scores": [2, 1, 0]}, index=0).responses == ["a dog", "a cat", "no"]


def test_an_answer_that_has_not_begun_is_no_turn_of_the_prompt() -> None:
    begun = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": ""}]
    assert read_pair({**PLAIN, "prompt": begun}, index=0) == read_pair(PLAIN, index=0)
    scored = {"images": [], "responses": ["a dog", "a cat"], "scores": [1, 0]}
    assert read_list({**scored, "prompt": begun}, index=0) == read_list({**scored, "prompt": begun[:1]}, index=0)
    with pytest.raises(ValueError, match="prompt holds no words"):
        read_pair({**PLAIN, "prompt": begun[1:]}, index=0)
