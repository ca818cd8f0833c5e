"""Encoded prompts to one batch: rows in which responses share their prompt, or plain padded rows.

A shared row is ``[images, prompt | response 0 | response 1 | ...]``. Each response sees the prompt and itself, and its positions
continue from the prompt, so that the numbers are those of separate rows (see ``attention.py``). A plain row holds one response.
Packed rows hold several prompts, each with its responses and blind to the others.

Shape legend: B = rows, N = padded row length, K = scored tokens in the batch, P = prompts, R = responses in the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.vision import PATCH_INDICES

PADDING = -1
"""Segment of padding tokens. Segment 0 is the prompt, segment n the n-th response; a lone response is of its prompt's segment."""

NUM_IMAGES = 1
"""Row of ``image_blocks`` that counts each prompt's images."""

_LAYOUT_KEYS = ("segment", "prompt", "position", "plain_index")


@dataclass(frozen=True)
class _Block:
    """One prompt with some of its responses, as it lies in a row."""

    prompt: int
    responses: range

    def length(self, encoded: Sequence[EncodedPrompt]) -> int:
        prompt = encoded[self.prompt]
        return len(prompt.prefix_ids) + sum(len(prompt.responses[i]) for i in self.responses)


def collate_prompts(
    encoded: Sequence[EncodedPrompt], *, pad_token_id: int, shared: bool = True, row_tokens: int | None = None
) -> dict[str, Any]:
    """Lay encoded prompts out as rows.

    Args:
        encoded: Prompts with their responses.
        pad_token_id: Fills the rows up; padding is masked.
        shared: One row per prompt with all its responses behind it; False gives one plain row per response.
        row_tokens: Pack shared rows: several prompts in a row of at most this many tokens. None: one prompt a row.

    Returns:
        ``input_ids``, ``attention_mask`` and token types, each (B, N); ``images``: the processor's tensors, concatenated in the
        order of the rows; ``layout``: ``segment``, ``prompt`` (number in the batch), ``position`` (in the plain row) and
        ``plain_index`` (the same, counted from where the prompt starts in its row), each (B, N); the scored tokens' ``index``
        into B * N of the hidden state that predicts them, their ``target`` id and ``response`` number, each (K,), and where prompts
        have items the ``item`` in its response, -1 where none; ``shared``; ``pictures`` where responses are such; and in the order of
        ``encoded``, which packed rows and images leave: ``repeats`` (P,), responses of each prompt, and ``image_blocks`` (4, P), see
        ``ImageFeatures``.
    """
    if shared:
        blocks = [_Block(number, range(len(prompt.responses))) for number, prompt in enumerate(encoded)]
        rows = [[block] for block in blocks] if row_tokens is None else _pack(blocks, encoded, row_tokens)
    else:
        rows = [[_Block(number, range(i, i + 1))] for number, prompt in enumerate(encoded) for i in range(len(prompt.responses))]
    laid = [_lay(row, encoded) for row in rows]
    length = max(len(row["input_ids"]) for row in laid)
    # Masks of some back ends are faster, and never slower, on lengths divisible by 8.
    length = -(-length // 8) * 8
    fill = {"input_ids": pad_token_id, "segment": PADDING, "prompt": PADDING}
    padded = {key: _pad([row[key] for row in laid], length, fill.get(key, 0)) for key in laid[0] if key != "sources"}
    layout: dict[str, Any] = {key: padded.pop(key) for key in _LAYOUT_KEYS}
    layout |= _scored_tokens(rows, laid, encoded, length)
    layout["repeats"] = torch.tensor([len(prompt.responses) for prompt in encoded])
    layout["shared"] = torch.tensor(shared)
    if any(prompt.pictures for prompt in encoded):
        assert all(prompt.pictures for prompt in encoded), "a batch is scored by one head"
        layout["pictures"] = torch.tensor(True)
    layout["image_blocks"] = _image_blocks(encoded)
    order = dict.fromkeys(block.prompt for row in rows for block in row)
    return {
        **padded,
        "attention_mask": (layout["segment"] != PADDING).long(),
        "images": concatenate_images([encoded[number].images for number in order if encoded[number].images]),
        "layout": layout,
    }


def collate_prefixes(encoded: Sequence[EncodedPrompt], *, pad_token_id: int) -> dict[str, Any]:
    """Lay prompts without their responses out as rows, padded on the left, as generation continues from them.

    Returns:
        ``input_ids``, ``attention_mask`` and token types, each (B, N); ``images``; ``layout`` with ``image_blocks``.
    """
    length = max(len(prompt.prefix_ids) for prompt in encoded)

    def pad(values: Sequence[int], fill: int) -> list[int]:
        return [fill] * (length - len(values)) + list(values)

    names = sorted(_type_names(encoded))
    types = {key: [pad(p.token_types.get(key, [0] * len(p.prefix_ids)), 0) for p in encoded] for key in names}
    return {
        "input_ids": torch.tensor([pad(prompt.prefix_ids, pad_token_id) for prompt in encoded]),
        "attention_mask": torch.tensor([pad([1] * len(prompt.prefix_ids), 0) for prompt in encoded]),
        **{key: torch.tensor(value) for key, value in types.items()},
        "images": concatenate_images([prompt.images for prompt in encoded if prompt.images]),
        "layout": {"image_blocks": _image_blocks(encoded)},
    }


def _pack(blocks: Sequence[_Block], encoded: Sequence[EncodedPrompt], row_tokens: int) -> list[list[_Block]]:
    """Spread prompts over rows of at most ``row_tokens``, or of the longest prompt's length, by as many rows as leave the least padding.

    The longest prompt is placed first, each in the row with the fewest tokens so far: rows come out about equally long, and the longest
    sets the padding of all.
    """
    lengths = [block.length(encoded) for block in blocks]
    order = sorted(range(len(blocks)), key=lambda number: -lengths[number])
    limit = max(row_tokens, *lengths)
    best: tuple[int, list[list[_Block]]] | None = None
    for num_rows in range(max(1, -(-sum(lengths) // limit)), len(blocks) + 1):
        if best is not None and num_rows * max(lengths) >= best[0]:
            break
        rows: list[list[_Block]] = [[] for _ in range(num_rows)]
        totals = [0] * num_rows
        for number in order:
            smallest = totals.index(min(totals))
            rows[smallest].append(blocks[number])
            totals[smallest] += lengths[number]
        if max(totals) <= limit and (best is None or num_rows * max(totals) < best[0]):
            best = num_rows * max(totals), rows
    assert best is not None, "a row for each prompt is short enough"
    return best[1]


def _lay(row: Sequence[_Block], encoded: Sequence[EncodedPrompt]) -> dict[str, list[int]]:
    """Concatenate a row's prompts and responses; ``sources`` is the place of the token before each, -1 in the prompts."""
    laid: dict[str, list[int]] = {key: [] for key in ("input_ids", *_LAYOUT_KEYS, "sources")}
    # A text-only prompt may lack the token types that its neighbours have.
    type_names = sorted(_type_names(encoded))
    laid |= {key: [] for key in type_names}
    for block in row:
        prompt, start = encoded[block.prompt], len(laid["input_ids"])
        num_prefix = len(prompt.prefix_ids)
        _extend(laid, prompt.prefix_ids, block.prompt, 0, range(num_prefix), start)
        laid["sources"] += [-1] * num_prefix
        for key in type_names:
            laid[key] += prompt.token_types.get(key, [0] * num_prefix)
        # A lone response hides from nothing, and the prompt's images may see those behind them (Molmo-2).
        for number, i in enumerate(block.responses, start=int(len(block.responses) > 1)):
            ids, begin = prompt.responses[i], len(laid["input_ids"])
            _extend(laid, ids, block.prompt, number, range(num_prefix, num_prefix + len(ids)), start)
            laid["sources"] += [start + num_prefix - 1, *range(begin, begin + len(ids) - 1)]
            for key in type_names:
                laid[key] += prompt.response_types[i].get(key, [0] * len(ids)) if prompt.response_types else [0] * len(ids)
    return laid


def _type_names(encoded: Sequence[EncodedPrompt]) -> set[str]:
    return {key for prompt in encoded for key in prompt.token_types}


def _extend(laid: dict[str, list[int]], ids: Sequence[int], prompt: int, segment: int, position: range, start: int) -> None:
    laid["input_ids"] += ids
    laid["prompt"] += [prompt] * len(ids)
    laid["segment"] += [segment] * len(ids)
    laid["position"] += position
    laid["plain_index"] += [start + value for value in position]


def _scored_tokens(
    rows: Sequence[Sequence[_Block]], laid: Sequence[dict[str, list[int]]], encoded: Sequence[EncodedPrompt], length: int
) -> dict[str, Tensor]:
    """Find, for each scored token, the hidden state that predicts it. Responses come out in the order of the prompts."""
    first_response = [0]
    for prompt in encoded:
        first_response.append(first_response[-1] + len(prompt.responses))
    found: list[tuple[int, int, int, int]] = []
    for number, (row, tokens) in enumerate(zip(rows, laid, strict=True)):
        at = 0
        for block in row:
            prompt = encoded[block.prompt]
            first = first_response[block.prompt]
            told = [at + i for i, counts in enumerate(prompt.scored_prefix) if counts]
            found += [(first, number * length + place - 1, tokens["input_ids"][place], -1) for place in told]
            at += len(prompt.prefix_ids)
            for i in block.responses:
                items = prompt.items[i] if prompt.items else [-1] * len(prompt.scored[i])
                for scored, item in zip(prompt.scored[i], items, strict=True):
                    if scored:
                        found.append((first + i, number * length + tokens["sources"][at], tokens["input_ids"][at], item))
                    at += 1
    found.sort(key=lambda item: item[0])
    columns = torch.tensor(found, dtype=torch.long).view(-1, 4)
    asked = any(prompt.items for prompt in encoded)
    return {"response": columns[:, 0], "index": columns[:, 1], "target": columns[:, 2], **({"item": columns[:, 3]} if asked else {})}


def _pad(values: Sequence[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([value + [fill] * (length - len(value)) for value in values])


def _image_blocks(encoded: Sequence[EncodedPrompt]) -> Tensor:
    """Count for each prompt what a sequence of features may run over: prompts, images, tiles (rows of pixels), image tokens."""
    tiles = [len(prompt.images["pixel_values"]) if prompt.images else 0 for prompt in encoded]
    name = "mm_token_type_ids"
    types = [[prompt.token_types, *prompt.response_types] for prompt in encoded]
    tokens = [sum(value == 1 for part in parts for value in part.get(name, [])) for parts in types]
    return torch.tensor([[int(bool(prompt.images)) for prompt in encoded], [prompt.num_images for prompt in encoded], tiles, tokens])


def concatenate_images(prompts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate image inputs in the order of the prompts, which is the order of the image tokens.

    Images cut into different numbers of tiles, or of different size, are filled up with zeros: the families that have such
    images read their true number and size from the companions of ``pixel_values``.

    Args:
        prompts: What the processor made of each prompt's images, without prompts that have none.
    """
    if not prompts:
        return {}
    if PATCH_INDICES in prompts[0]:
        prompts = _continue_indices(prompts)
    return {key: _concatenate([images[key] for images in prompts]) for key in prompts[0]}


def _continue_indices(prompts: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Count each prompt's patches from those of the prompts before it; pixels are (crops, patches of a crop, values)."""
    continued, before = [], 0
    for images in prompts:
        index = images[PATCH_INDICES]
        continued.append({**images, PATCH_INDICES: torch.where(index < 0, index, index + before)})
        before += images["pixel_values"].shape[:2].numel()
    return continued


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].ndim < 2 or len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    sizes = [max(dims) for dims in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *sizes)
    at = 0
    for tensor in tensors:
        padded[(slice(at, at + len(tensor)), *(slice(0, size) for size in tensor.shape[1:]))] = tensor
        at += len(tensor)
    return padded
