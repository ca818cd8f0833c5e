"""Encoded prompts to one batch: rows in which responses share their prompt, or plain padded rows.

A shared row is ``[images, prompt | response 0 | response 1 | ...]``. Each response sees the prompt and itself, and its positions
continue from the prompt, so that the numbers are those of separate rows (see ``attention.py``). A plain row holds one response.

Shape legend: B = rows, N = padded row length, K = scored tokens in the batch, R = responses in the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt

PADDING = -1
"""Segment of padding tokens. Segment 0 is the prompt, segment n the n-th response."""

# What a response's tokens are in the per-token inputs of the families that have them: text (Gemma-3, Qwen-VL), or the
# suffix that PaliGemma attends to causally, which its processor marks by 1.
RESPONSE_TOKEN_TYPE = 0


def collate_prompts(encoded: Sequence[EncodedPrompt], *, pad_token_id: int, shared: bool = True) -> dict[str, Any]:
    """Lay encoded prompts out as rows.

    Args:
        encoded: Prompts with their responses.
        pad_token_id: Fills the rows up; padding is masked.
        shared: One row a prompt with all its responses behind it; False gives one plain row a response.

    Returns:
        ``input_ids``, ``attention_mask`` and token types, each (B, N); ``images``: the processor's tensors, concatenated;
        ``layout``: ``segment`` and ``position`` (B, N), the scored tokens' ``index`` into B * N of the hidden state that
        predicts them, their ``target`` id and ``response`` number, each (K,), and ``repeats`` (B,): responses a prompt.
    """
    rows = [_row(prompt, range(len(prompt.responses))) for prompt in encoded]
    if not shared:
        rows = [_row(prompt, [i]) for prompt in encoded for i in range(len(prompt.responses))]
    length = max(len(row["input_ids"]) for row in rows)
    # Masks of some back ends are faster, and never slower, on lengths divisible by 8.
    length = -(-length // 8) * 8
    fill = {"input_ids": pad_token_id, "segment": PADDING}
    padded = {key: _pad([row[key] for row in rows], length, fill.get(key, 0)) for key in rows[0] if key != "scored"}
    segment, position = padded.pop("segment"), padded.pop("position")
    layout = {"segment": segment, "position": position, **_scored_tokens(rows, length)}
    layout["repeats"] = torch.tensor([len(prompt.responses) for prompt in encoded])
    return {
        **padded,
        "attention_mask": (segment != PADDING).long(),
        "images": _concatenate_images(encoded),
        "layout": layout,
    }


def _row(prompt: EncodedPrompt, responses: Sequence[int]) -> dict[str, list[int]]:
    """Concatenate one prompt with some of its responses, and note which tokens are scored."""
    num_prefix = len(prompt.prefix_ids)
    row = {
        "input_ids": list(prompt.prefix_ids),
        "segment": [0] * num_prefix,
        "position": list(range(num_prefix)),
        "scored": [0] * num_prefix,
        **{key: list(value) for key, value in prompt.token_types.items()},
    }
    for number, i in enumerate(responses, start=1):
        ids = prompt.responses[i]
        row["input_ids"] += ids
        row["segment"] += [number] * len(ids)
        row["position"] += range(num_prefix, num_prefix + len(ids))
        row["scored"] += [int(value) for value in prompt.scored[i]]
        for key in prompt.token_types:
            row[key] += [RESPONSE_TOKEN_TYPE] * len(ids)
    return row


def _scored_tokens(rows: Sequence[dict[str, list[int]]], length: int) -> dict[str, Tensor]:
    """Find, for each scored token, the hidden state that predicts it: the token before it, or the prompt's last one."""
    index, target, response = [], [], []
    first_response = 0
    for number, row in enumerate(rows):
        segment, num_prefix = row["segment"], row["segment"].count(0)
        for i, scored in enumerate(row["scored"]):
            if scored:
                source = i - 1 if segment[i - 1] == segment[i] else num_prefix - 1
                index.append(number * length + source)
                target.append(row["input_ids"][i])
                response.append(first_response + segment[i] - 1)
        first_response += max(segment)
    return {"index": torch.tensor(index), "target": torch.tensor(target), "response": torch.tensor(response)}


def _pad(values: Sequence[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([value + [fill] * (length - len(value)) for value in values])


def _concatenate_images(encoded: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Concatenate image inputs in the order of the prompts, which is the order of the image tokens."""
    with_images = [prompt.images for prompt in encoded if prompt.images]
    if not with_images:
        return {}
    return {key: torch.cat([images[key] for images in with_images]) for key in with_images[0]}
