"""Conversations as people write them: every form is read to the same messages, and what has no place in them is refused by name."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from mmalign.data.messages import place_images, read_messages
from mmalign.data.rows import read_chat, read_list, read_pair, unused_columns
from tests.formats.pictures import PICTURES
from tests.tiny_models import random_image

A, B = random_image(0), random_image(1)
SEE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [text(words)]}


def pair(**change: Any) -> dict[str, Any]:
    return {"images": [A], "prompt": "what is it", "chosen": "a dog", "rejected": "a cat", **change}


URI = "data:image/png;base64," + base64.b64encode(PICTURES["a.png"]).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image_url", "image_url": URI, "text": None},
        {"type": "image_url", "image_url": {"url": URI, "detail": "low"}},
        {"type": "image", "image": URI},
        {"type": "image", "url": URI},
        {"type": "image", "base64": URI.partition(",")[2]},
        {"type": "image", "image": {"bytes": PICTURES["a.png"], "path": None}, "text": None},
        {"type": "image", "image": A},
        {"image": A},
    ],
)
def test_an_image_inside_a_message_is_the_rows_image(part: dict[str, Any]) -> None:
    row = read_pair({"prompt": [user(part, text("what is it"))], "chosen": "a dog", "rejected": "a cat"}, index=0)
    assert [image.tobytes() for image in row.images] == [A.tobytes()]
    assert row.prompt == [user(SEE, text("what is it"))]


BASE64 = base64.b64encode(PICTURES["a.png"]).decode()


@pytest.mark.parametrize(
    "value",
    [
        BASE64,
        f"data:image/png;charset=utf-8;base64,{base64.encodebytes(PICTURES['a.png']).decode()}",
        {"base64": BASE64},
        {"bytes": BASE64, "path": "a.png"},
        {"type": "image", "image": URI},
        {"url": URI},
        {"image": {"bytes": PICTURES["a.png"], "path": None}},
    ],
)
def test_an_image_of_the_column_may_have_any_form_that_one_in_a_message_has(value: Any) -> None:
    for images in (value, [value]):
        assert [image.tobytes() for image in read_pair(pair(images=images), index=0).images] == [A.tobytes()]


@pytest.mark.parametrize("name", ["a.png", "a#1.png", "a?b.png", "a b.png", "a%20b.png", "R0lGOD.png"])
def test_a_file_address_names_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    A.save(tmp_path / "few" / name)
    written = name.replace("%", "%25")
    for address in (
        name,
        f"file:{tmp_path}/few/{written}",
        f"file://{tmp_path}/few/{written}",
        f"file://localhost{tmp_path}/few/{written}",
    ):
        row = read_pair(pair(images=[f"few/{name}" if address == name else address]), index=0, image_root=tmp_path)
        assert [image.tobytes() for image in row.images] == [A.tobytes()]
    assert read_pair(pair(images=[f"file://few/{written}"]), index=0, image_root=tmp_path).images[0].tobytes() == A.tobytes()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<image>\nwhat is it", [SEE, text("what is it")]),
        ("what is it\n<image>", [text("what is it"), SEE]),
        ("is <image> red", [text("is "), SEE, text(" red")]),
        ([text("is"), SEE, text("red")], [text("is"), SEE, text("red")]),
        ([text("is it red"), SEE], [text("is it red"), SEE]),
        ("what is it", [SEE, text("what is it")]),
    ],
)
def test_an_image_stands_where_it_was_put(content: Any, expected: list[Any]) -> None:
    placed, images = place_images(read_messages([{"role": "user", "content": content}], "prompt"), [A])
    assert placed == [user(*expected)]
    assert images == [A]


def test_images_of_a_column_and_of_parts_come_in_the_order_of_their_places() -> None:
    prompt = [user({"type": "image", "image": B}, SEE, text("<image>\nwhich is red"))]
    placed, images = place_images(read_messages(prompt, "prompt"), [A, A])
    assert images == [B, A, A]
    assert placed == [user(SEE, SEE, SEE, text("which is red"))]


def test_parts_may_number_the_images() -> None:
    """The form of llava-instruct-mix-vsft, where a text part's number is null."""
    first, second = ({"type": "image", "index": number, "text": None} for number in (0, 1))
    asked = user(second, {"type": "text", "index": None, "text": "before or behind"}, first)
    placed, images = place_images(read_messages([asked], "prompt"), [A, B])
    assert images == [B, A]
    assert placed == [user(SEE, text("before or behind"), SEE)]
    for wrong in ([first, first], [first, {**second, "index": 2}], [first, SEE]):
        with pytest.raises(ValueError, match="the image parts of prompt have the indices .*; expected each of the row's 2 images once"):
            place_images(read_messages([user(*wrong)], "prompt"), [A, B])
    with pytest.raises(ValueError, match="an image part of prompt has the index '0'; expected a number"):
        read_messages([user({**first, "index": "0"})], "prompt")


def test_answers_keep_their_words() -> None:
    messages = [user(SEE, text("how")), assistant("write <image> in it"), user(text("and <image>")), assistant("<image>")]
    row = read_chat({"images": [A, B], "messages": messages}, index=0)
    assert row.messages == [*messages[:2], user(text("and "), SEE), messages[3]]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (pair(images=[A, A], prompt="<image>\nwhat"), "prompt has 1 image placeholders for 2 images"),
        (pair(images=[A, A], prompt="<image><image><image>what"), "prompt has 3 image placeholders for 2 images"),
        (pair(images=[], prompt="<image>what"), "prompt has 1 image placeholders for 0 images"),
        (pair(prompt=[user({"type": "image", "image": B}, text("what"))]), "has 0 image placeholders beside 1 that hold their own for 1"),
        (pair(prompt=[user({"type": "video", "video": "a.mp4"}, text("what"))]), "a part of type video in prompt can't be read"),
        (pair(prompt=[user({"type": "input_audio", "input_audio": {"data": "x"}})]), "a part of type input_audio in prompt can't be read"),
        (pair(prompt=[user({"type": "image", "image": "x", "max_pixels": 99})]), "a part of type image in prompt has max_pixels"),
        (pair(prompt=[user('{"type": "text", "text": "x"}')]), "prompt holds a str where a part with its type belongs"),
        (pair(prompt=['{"role": "user", "content": "x"}']), "prompt holds a str where a message with role and content belongs"),
        (pair(prompt='[{"role": "user", "content": "x"}]'), "prompt is source text of messages"),
        (pair(chosen='[{"role": "assistant", "content": "x"}]'), "chosen is source text of messages"),
        (pair(prompt=[{"role": "user", "content": '[{"type": "text", "text": "x"}]'}]), "prompt is source text of messages"),
        (pair(prompt=str([{"role": "user", "content": "it's"}])), "prompt is source text of messages"),
        (pair(chosen=str({"content": "x", "role": "assistant"})), "chosen is source text of messages"),
        (pair(prompt=[{"role": "user", "content": str([SEE, text("x")])}]), "prompt is source text of messages"),
        (
            pair(prompt="[{'content': 'x', 'role': 'user'}\n {'content': 'y', 'role': 'assistant'}]"),
            "ast.literal_eval where Python wrote it",
        ),
        (pair(prompt=[{**user(text("x")), "tool_calls": [{"id": 1}]}]), "a message of prompt has tool_calls, which can't be used"),
        (pair(prompt=[user(text("x")), {"role": "tool", "content": "x"}]), "a message of prompt has the role 'tool'"),
        (pair(prompt=[{"role": "user"}]), "a message of prompt has no content; it has role"),
        (pair(prompt=[{"role": "user", "content": None, "name": None}]), "a message of prompt has no content; it has role"),
        (pair(prompt=[{"role": "user", "content": 5}]), "the content of a message of prompt is a int"),
        (pair(chosen=[{"role": "assistant", "content": [SEE, text("x")]}]), "an assistant turn of chosen holds an image"),
        (pair(images=["https://example.org/a.png"]), "is an address, and images are not fetched"),
        (pair(images=["s3://bucket/a.png"]), "is an address, and images are not fetched"),
        (pair(images=["oss://bucket/a.png"]), "is an address, and images are not fetched"),
        (pair(images=[{"path": "https://example.org/a.png", "bytes": None}]), "is an address, and images are not fetched"),
        (pair(images=[{"bytes": "####", "path": None}]), "an image's base64 text is damaged"),
        (pair(images=["data:image/png;base64,####"]), "an image's base64 text is damaged"),
        (pair(rejected_images=[B]), "the row has rejected_images: the rejected response was written about other images"),
        (pair(tools=[{"name": "search"}]), "the row has tools: the prompt was written with tools"),
        (pair(ends="no"), "ends is 'no'; expected true or false"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_pair(raw, index=0)


def test_empty_columns_and_keys_that_arrow_fills_in_are_nothing() -> None:
    filled = {"type": "text", "text": "what is it", "image_url": {"url": None}, "video": None}
    raw = pair(prompt=[{"role": "user", "content": [filled], "tool_calls": None, "name": ""}], tools=[], rejected_images=None)
    assert read_pair(raw, index=0).prompt == [user(SEE, text("what is it"))]


def test_jsons_own_texts_are_answers() -> None:
    boxes = '[{"label": "dog", "box": [1, 2, 3, 4]}]'
    assert read_pair(pair(chosen=boxes), index=0).chosen == boxes
    assert read_pair(pair(prompt="{broken"), index=0).prompt[0]["content"][1] == text("{broken")


TURNS = [user(SEE, text("what is it")), assistant("a dog"), user(text("which one"))]


@pytest.mark.parametrize("number", [1, 3])
def test_what_both_conversations_begin_with_is_the_prompt(number: int) -> None:
    prompt = TURNS[:number]
    whole = {"images": [A], "chosen": [*prompt, assistant("red")], "rejected": [*prompt, assistant("blue")]}
    for raw in (whole, {**whole, "prompt": prompt}, {**whole, "prompt": prompt, "rejected": "blue"}):
        row = read_pair(raw, index=0)
        assert (row.prompt, row.chosen, row.rejected) == (prompt, "red", "blue")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (
            {"chosen": "Human: x Assistant: y", "rejected": "Human: x Assistant: z"},
            "the row has no prompt, and chosen or rejected is plain",
        ),
        ({"chosen": [TURNS[0], assistant("a")], "rejected": [TURNS[0], assistant("a")]}, "are the same conversation"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "the row has no prompt, and chosen and rejected begin with different"),
        ({"chosen": [*TURNS, assistant("a")], "rejected": [TURNS[0], assistant("b")]}, "chosen must be one assistant message; it has 3"),
        ({"prompt": "other", "chosen": [TURNS[0], assistant("a")], "rejected": "b"}, "does not begin with the prompt"),
    ],
)
def test_pairs_without_one_prompt_are_refused(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_pair({"images": [A], **raw}, index=0)


def test_answers_that_do_not_end() -> None:
    assert read_pair(pair(ends=False), index=0).ends == (False, False)
    assert read_pair(pair(ends_rejected=False), index=0).ends == (True, False)
    assert read_pair(pair(ends=False, ends_chosen=True), index=0).ends == (True, False)
    assert not read_list({"prompt": "x", "responses": ["a", "b"], "scores": [0, 1], "ends": False}, index=0).ends


def test_llava_files_are_chats() -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "<image>\nwhat is it"}, {"from": "gpt", "value": "a dog"}]
    row = read_chat({"id": 7, "image": A, "conversations": turns}, index=0)
    assert row.messages == [{"role": "system", "content": [text("Be brief.")]}, user(SEE, text("what is it")), assistant("a dog")]
    with pytest.raises(ValueError, match="messages begin with an assistant turn"):
        read_chat({"messages": [assistant("hello"), user(text("x")), assistant("y")]}, index=0)


def test_columns_that_nothing_reads_are_named() -> None:
    columns = ["id", "images", "prompt", "chosen", "rejected", "gap_fused", "difficulty", "tools", "category", "ends"]
    assert unused_columns(columns, ("chosen", "rejected")) == ["category"]
