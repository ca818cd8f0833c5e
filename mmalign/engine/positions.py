"""Rotary positions: along the row, or on the three axes of the families that place image tokens in time, height and width.

Shape legend: B = rows, N = row length.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.engine.batch import NUM_IMAGES

_GRIDS = ("image_grid_thw", "video_grid_thw")


def find_positions(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Return the ``position_ids`` of a batch's rows: those that each response's tokens have in a plain row of their own.

    Args:
        model: The multimodal LLM.
        batch: From ``collate_prompts``.

    Returns:
        (B, N), or (3, B, N) for families with positions on several axes (M-RoPE).
    """
    layout = batch["layout"]
    compute = getattr(model.base_model, "get_rope_index", None)
    if compute is None:
        return layout["position"]
    if "mm_token_type_ids" not in batch:
        # Rows of text alone: the three axes agree.
        return layout["position"].expand(3, -1, -1)
    grids = _grids_in_row_order(batch)
    positions, _ = compute(
        batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"], attention_mask=batch["attention_mask"], **grids
    )
    return _continue_from_prompts(positions, layout)


def find_prefix_positions(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Return the ``position_ids`` of left-padded rows from ``collate_prefixes``: (B, N), or (3, B, N) for M-RoPE."""
    mask = batch["attention_mask"]
    plain = (mask.cumsum(-1) - 1).clamp_min(0)
    compute = getattr(model.base_model, "get_rope_index", None)
    if compute is None:
        return plain
    if "mm_token_type_ids" not in batch:
        return plain.expand(3, -1, -1)
    grids = {key: value for key, value in batch["images"].items() if key in _GRIDS}
    positions, _ = compute(batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"], attention_mask=mask, **grids)
    return positions.masked_fill(mask == 0, 0)


def _grids_in_row_order(batch: dict[str, Any]) -> dict[str, Tensor]:
    """The images' shapes, those of a prompt as a block, once for every row that its tokens stand in."""
    layout = batch["layout"]
    grids = {key: value for key, value in batch["images"].items() if key in _GRIDS}
    if bool(layout["shared"]):
        return grids
    counts, repeats = layout["image_blocks"][NUM_IMAGES].tolist(), layout["repeats"].tolist()
    blocks = {key: value.split(counts) for key, value in grids.items()}
    return {
        key: torch.cat([block for block, times in zip(parts, repeats, strict=True) for _ in range(times)]) for key, parts in blocks.items()
    }


def _continue_from_prompts(positions: Tensor, layout: dict[str, Tensor]) -> Tensor:
    """Let every response continue where its prompt ended, and every prompt of a packed row begin at 0.

    A prompt with one response is a plain row already, with images in the response too.
    """
    positions = positions.clone()
    for row in range(positions.shape[1]):
        prompt, segment = layout["prompt"][row], layout["segment"][row]
        for number in prompt.unique().tolist():
            if number < 0:
                continue
            own = prompt == number
            start = positions[:, row, own].amin()
            positions[:, row, own] -= start
            if not segment[own].any():
                continue
            prefix = own & (segment == 0)
            responses = own & (segment > 0)
            # Behind an image, the next position is not the number of tokens before.
            after = positions[:, row, prefix].amax() + 1
            positions[:, row, responses] = after + layout["position"][row, responses] - prefix.sum()
    return positions
