"""The sampler of pictures: every caption is read once, and its pictures are drawn token by token, with guidance or without.

Shape legend: B = captions, R = pictures, C = picture tokens that there are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.choosing import Decoding, answer_seeds
from mmalign.engine.pictures import drawing
from mmalign.engine.prefix import Rows, run_prefixes, run_rests
from mmalign.models.picture_tokens import PictureTokens


@torch.no_grad()
def draw_pictures(
    model: PreTrainedModel,
    pictures: PictureTokens,
    captions: Sequence[Sequence[int]],
    *,
    without: Sequence[Sequence[int]],
    decoding: Decoding,
    seeds: Sequence[int],
    guidance: float,
    pad_token_id: int,
) -> Tensor:
    """Draw pictures of captions.

    Args:
        model: In eval mode, without wrappers.
        pictures: How it draws.
        captions: Word ids up to where a picture begins; see ``data.pictures.encode_caption``.
        without: The same without the captions; see ``data.pictures.leave_caption_out``.
        decoding: ``Greedy`` or ``Sampling``; its ``answers`` are pictures per caption.
        seeds: One for each caption; with its number each picture has one of its own, and is the same in every batch, up to rounding.
        guidance: Logits are u + guidance (c - u), with the caption (c) and without (u); 1 asks for c alone.
        pad_token_id: The tokenizer's.

    Returns:
        (R, tokens of a picture) codes, those of a caption side by side.
    """
    rows = [list(ids) for ids in (captions if guidance == 1 else [*captions, *without])]
    encoded = [EncodedPrompt(ids[:-1], [ids[-1:]], [[False]], {}, {}) for ids in rows]
    own = answer_seeds(torch.tensor(list(seeds), device=model.device), decoding.answers)
    with drawing(model, pictures):
        prefix = run_prefixes(model, encoded, pad_token_id=pad_token_id)
        begun = run_rests(prefix, range(len(rows)), [ids[-1:] for ids in rows], keep=False)
        if decoding.answers > 1:
            begun.select(torch.arange(len(rows), device=model.device).repeat_interleave(decoding.answers))
        return _continue(begun, pictures, decoding, own, guidance)


def _continue(rows: Rows, pictures: PictureTokens, decoding: Decoding, seeds: Tensor, guidance: float) -> Tensor:
    """Choose each picture's next token, and show it to its rows: with the caption and, behind all of those, without."""
    codes: list[Tensor] = []
    while True:
        logits = rows.logits if guidance == 1 else _guide(rows.logits, guidance)
        codes.append(decoding.choose(logits, seeds, len(codes)))
        if len(codes) == pictures.size:
            return torch.stack(codes, 1)
        shown = codes[-1].repeat(len(rows.logits) // len(logits)) + pictures.first
        rows.step(shown)
        if pictures.row_end is not None and len(codes) % pictures.columns == 0:
            rows.step(torch.full_like(shown, pictures.row_end))


def _guide(logits: Tensor, guidance: float) -> Tensor:
    """(2R, C) to (R, C)."""
    with_caption, without = logits.chunk(2)
    return without + (with_caption - without) * guidance
