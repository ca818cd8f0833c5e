"""Rows of training and scoring: pairs, lists and chats, in every form that is read, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_chat, read_items, read_list, read_pair
from tests.formats.form import Form, Section
from tests.formats.pictures import PICTURES


def said(messages: Any) -> list[str]:
    """A conversation in a line a turn, an image as ``[image]``."""
    parts = [["[image]" if part["type"] == "image" else part["text"] for part in message["content"]] for message in messages]
    return [f"{message['role']}: {' '.join(words)}" for message, words in zip(messages, parts, strict=True)]


def _pair(path: Path) -> Any:
    row = read_pair(load_rows(path)[0], index=0, image_root=path.parent)
    return (len(row.images), said(row.prompt), row.chosen, row.rejected, *(() if all(row.ends) else (row.ends,)))


def _list(path: Path) -> Any:
    row = read_list(load_rows(path)[0], index=0, image_root=path.parent)
    return len(row.images), said(row.prompt), row.responses, row.scores


def _items(path: Path) -> Any:
    row = read_items(load_rows(path)[0], index=0, image_root=path.parent)
    return len(row.images), said(row.prompt), [row.response[start:end] for start, end in row.items], row.relevance


def _chat(path: Path) -> Any:
    row = read_chat(load_rows(path)[0], index=0, image_root=path.parent)
    return len(row.images), said(row.messages)


_KINDS: dict[str, Callable[[Path], Any]] = {"pairs": _pair, "lists": _list, "items": _items, "chats": _chat}


def _form(title: str, kind: str, text: str, expected: Any = None, *, refused: str = "", note: str = "") -> Form:
    suffix = "json" if text.startswith("[") else "jsonl"
    return Form(title, f"{kind}.{suffix}", text, _KINDS[kind], expected, refused, note, PICTURES)


ASKED = ["user: [image] What is it?"]
READ = (1, ASKED, "A dog.", "A cat.")

PAIRS = Section(
    "Preference pairs",
    "Parquet, JSON Lines or a JSON list, with the columns of TRL; or a folder of such files, all of one split. Paths start from "
    "`--image-root`; a Parquet file may hold the images.",
    (
        _form(
            "Plain text",
            "pairs",
            '{"images": ["a.png"], "prompt": "What is it?", "chosen": "A dog.", "rejected": "A cat."}',
            READ,
            note="Without a place for them, images stand in front of the first question. `image` may stand for `images`.",
        ),
        _form(
            "Messages",
            "pairs",
            '{"images": ["a.png"], "prompt": [{"role": "user", "content": "What is it?"}],\n'
            ' "chosen": [{"role": "assistant", "content": "A dog."}], "rejected": [{"role": "assistant", "content": "A cat."}]}',
            READ,
        ),
        _form(
            "Messages in parts",
            "pairs",
            '{"images": ["a.png"], "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],\n'
            ' "chosen": "A dog.", "rejected": "A cat."}',
            READ,
            note="Files may mix all forms, row by row. An answer such as 5 or 2024-01-01 stays the text that it is.",
        ),
        _form(
            "The place of an image written into the text",
            "pairs",
            '{"images": ["a.png", "b.png"], "prompt": "Is <image> the same as <image>?", "chosen": "Yes.", "rejected": "No."}',
            (2, ["user: Is  [image]  the same as  [image] ?"], "Yes.", "No."),
            note="Each `<image>` of a question is a place, and the line break behind it belongs to it. In answers it is text.",
        ),
        _form(
            "Parts that number their images",
            "pairs",
            '{"images": ["a.png"], "prompt": [{"role": "user", "content": [{"index": null, "text": "What is it?", "type": "text"},\n'
            '                                                               {"index": 0, "text": null, "type": "image"}]}],\n'
            ' "chosen": "A dog.", "rejected": "A cat."}',
            (1, ["user: What is it? [image]"], "A dog.", "A cat."),
            note="As in llava-instruct-mix-vsft. `index` counts the row's images from 0, and the parts may stand in another order.",
        ),
        _form(
            "Images inside the messages",
            "pairs",
            '{"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}},\n'
            '                                         {"type": "text", "text": "What is it?"}]}],\n'
            ' "chosen": "A dog.", "rejected": "A cat."}',
            READ,
            note='Also `{"type": "image", "image": ...}`, `url`, `path`, `base64`, and data URIs. Addresses are not fetched.',
        ),
        _form(
            "No prompt: what both conversations begin with",
            "pairs",
            '{"images": ["a.png"],\n'
            ' "chosen": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}],\n'
            ' "rejected": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]}',
            READ,
            note="Answers that repeat the prompt are read as well where there is one.",
        ),
        _form(
            "LLaMA-Factory's: the prompt as conversations, an answer a message",
            "pairs",
            '[{"images": ["a.png"], "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}],\n'
            '  "chosen": {"from": "gpt", "value": "A dog."}, "rejected": {"from": "gpt", "value": "A cat."}}]',
            READ,
            note="A message alone stands for a list of one everywhere. A column `system` holds a system prompt.",
        ),
        _form(
            "An answer that has begun",
            "pairs",
            '{"images": ["a.png"], "prompt": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a"}],\n'
            ' "chosen": " dog", "rejected": " cat", "ends": false}',
            (1, [*ASKED, "assistant: It is a"], " dog", " cat", (False, False)),
            note="Answers continue the last words. `ends: false` leaves the end-of-turn tokens out; `ends_chosen` and `ends_rejected` "
            "set it side by side.",
        ),
        _form(
            "Steps of answers",
            "pairs",
            '{"images": ["a.png"], "prompt": "What is it?", "chosen": "It is a dog. It sits.", "rejected": "It is a dog. It flies.",\n'
            ' "ends_chosen": false, "ends_rejected": true, "visits_chosen": 12, "visits_rejected": 4}',
            (1, ASKED, "It is a dog. It sits.", "It is a dog. It flies.", (False, True)),
            note="What `search_pairs.py` writes: the chosen answer goes on, the rejected one is whole. `step_dpo` reads the visits.",
        ),
        _form(
            "Messages stored as text",
            "pairs",
            '{"images": ["a.png"], "prompt": "[{\\"role\\": \\"user\\", \\"content\\": \\"What is it?\\"}]",\n'
            ' "chosen": "A dog.", "rejected": "A cat."}',
            refused="prompt is source text of messages",
        ),
        _form(
            "More places than images",
            "pairs",
            '{"images": ["a.png"], "prompt": "<image>\\n<image>\\nWhat is it?", "chosen": "A dog.", "rejected": "A cat."}',
            refused="prompt has 2 image placeholders for 1 images",
        ),
        _form(
            "Addresses",
            "pairs",
            '{"images": ["https://example.org/a.png"], "prompt": "What is it?", "chosen": "A dog.", "rejected": "A cat."}',
            refused="images are not fetched: download it and name the file",
        ),
        _form(
            "Videos, tool calls, images in answers",
            "pairs",
            '{"prompt": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What is it?"}]}],\n'
            ' "chosen": "A dog.", "rejected": "A cat."}',
            refused="a part of type video in prompt can't be read",
            note="Refused by name are also messages with `tool_calls` or other keys, the role `tool`, and the columns `tools`, "
            "`rejected_images`, `chosen_images`, `videos`, `audios`, `history`. Other columns are named once before training.",
        ),
    ),
)

LISTS = Section(
    "Lists of scored answers",
    "For `train listwise` and `cache-logps`. Objectives of groups (`disco`, `disco_b`, `grpo`) and `cache-logps` take equal texts and "
    "scores too.",
    (
        _form(
            "Responses and scores",
            "lists",
            '{"images": ["a.png"], "prompt": "What is it?", "responses": ["A dog.", "A cat.", "A car."], "scores": [1.0, 0.5, 0.0]}',
            (1, ASKED, ["A dog.", "A cat.", "A car."], [1.0, 0.5, 0.0]),
        ),
        _form(
            "No preference",
            "lists",
            '{"images": ["a.png"], "prompt": "What is it?", "responses": ["A dog.", "A cat."], "scores": [1.0, 1.0]}',
            refused="every response has score 1",
        ),
        _form(
            "Items inside one answer (`train listwise --items`)",
            "items",
            '{"images": ["a.png"], "prompt": "What is it?", "response": "A dog, a cat.", "items": [[2, 5], [9, 12]], "relevance": [1, 0]}',
            (1, ASKED, ["dog", "cat"], [1.0, 0.0]),
        ),
    ),
)

CHATS = Section(
    "Chats",
    "For `train sft`, `train mimic` and `cache-teacher`. Only the assistant's words are trained on.",
    (
        _form(
            "Messages, images in several turns",
            "chats",
            '{"images": ["a.png", "b.png"], "messages": [\n'
            '  {"role": "user", "content": "<image>\\nWhat is it?"}, {"role": "assistant", "content": "A dog."},\n'
            '  {"role": "user", "content": "And here?\\n<image>"}, {"role": "assistant", "content": "A cat."}]}',
            (2, [*ASKED, "assistant: A dog.", "user: And here? [image]", "assistant: A cat."]),
        ),
        _form(
            "LLaVA's conversations",
            "chats",
            json.dumps(
                [
                    {
                        "id": "1",
                        "image": "a.png",
                        "conversations": [
                            {"from": "human", "value": "<image>\nWhat is it?"},
                            {"from": "gpt", "value": "A dog."},
                        ],
                    }
                ]
            ).replace('"conversations": ', '\n  "conversations": '),
            (1, [*ASKED, "assistant: A dog."]),
        ),
        _form(
            "An assistant that begins",
            "chats",
            '{"images": [], "messages": [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "What is it?"},\n'
            '  {"role": "assistant", "content": "A dog."}]}',
            refused="messages begin with an assistant turn",
        ),
    ),
)

SECTIONS = (PAIRS, LISTS, CHATS)
