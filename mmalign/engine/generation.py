"""Greedy answers to several questions about the same images: images and shared words run once, then every question's own words.

A prompt's cached keys and values serve all its questions. Families whose prompt attends to its own end (PaliGemma) or whose state is
no list of tokens (linear and convolutional layers) can't share it: ``probe_prefix`` finds them, and each question runs as a whole
row, with its image encoded once all the same.

Shape legend: B = prompts, Q = questions in a batch, P = longest prefix, S = longest rest of a question.
"""

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prefixes
from mmalign.engine.positions import find_prefix_positions
from mmalign.engine.probe import COARSE_TOLERANCE, TOLERANCE, RowChoice
from mmalign.engine.vision import encode_images, feature_inputs, image_inputs
from mmalign.errors import UserError
from mmalign.models.float32 import in_float32


@dataclass(frozen=True)
class _Prefix:
    """What a batch of prefixes left: caches, mask (B, P), and the position after each prefix (B,)."""

    cache: Cache
    mask: Tensor
    next_position: Tensor
    num_axes: int
    """3 for positions in time, height and width, else 0."""


@torch.no_grad()
def generate_greedy(
    model: PreTrainedModel, encoded: Sequence[EncodedPrompt], *, max_new_tokens: int, pad_token_id: int, shared: bool = True
) -> list[list[list[int]]]:
    """Continue every question with the likeliest token, until an end-of-turn token or ``max_new_tokens``.

    Args:
        model: A multimodal LLM in eval mode.
        encoded: From ``encode_questions``; their responses are the rests of the questions.
        max_new_tokens: Longest answer.
        pad_token_id: The tokenizer's.
        shared: Whether questions share their prompt's cache; see ``probe_prefix``.

    Returns:
        For each prompt, for each of its questions, the new ids; an end-of-turn token is left out.
    """
    if not shared:
        return _generate_rows(model, encoded, max_new_tokens=max_new_tokens, pad_token_id=pad_token_id)
    prefix = _run_prefixes(model, encoded, pad_token_id=pad_token_id)
    answers: list[list[list[int]]] = [[[] for _ in prompt.responses] for prompt in encoded]
    groups = _group_questions(encoded, by_length=_counts_tokens(prefix.cache))
    for number, group in enumerate(groups):
        cache = prefix.cache if number == len(groups) - 1 else copy.deepcopy(prefix.cache)
        rests = [encoded[i].responses[j] for i, j in group]
        owner = torch.tensor([i for i, _ in group], device=prefix.mask.device)
        for (i, j), ids in zip(group, _continue(model, prefix, cache, owner, rests, max_new_tokens, pad_token_id), strict=True):
            answers[i][j] = ids
    return answers


@torch.no_grad()
def probe_prefix(model: PreTrainedModel, encoded: EncodedPrompt, *, pad_token_id: int) -> RowChoice:
    """Compare a question's first logits over the cached prefix with those of the model's own forward on the whole row."""
    name = type(model).__name__
    with in_float32(model) as exact:
        try:
            difference = _prefix_difference(model, encoded, pad_token_id=pad_token_id)
        except UserError as error:
            return RowChoice(False, f"questions to {name} can't share their image's cache: {error}")
    if difference <= (TOLERANCE if exact else COARSE_TOLERANCE):
        return RowChoice(True, f"questions share their image's cache (largest difference {difference:.1e})")
    return RowChoice(False, f"questions to {name} can't share their image's cache: first logits differ by {difference:.2g}")


def _prefix_difference(model: PreTrainedModel, encoded: EncodedPrompt, *, pad_token_id: int) -> float:
    row = send_to_device(collate_prefixes([_joined(encoded, 0)], pad_token_id=pad_token_id), model.device)
    del row["layout"]
    row |= image_inputs(model, {"images": row.pop("images")})
    expected = model(**row, use_cache=False).logits[0, -1].float().log_softmax(-1)
    prefix = _run_prefixes(model, [encoded], pad_token_id=pad_token_id)
    cache, owner = copy.deepcopy(prefix.cache), torch.tensor([0], device=model.device)
    cache.batch_select_indices(owner)
    logits, *_ = _run_rests(model, prefix, cache, owner, [encoded.responses[0]], pad_token_id)
    return float((logits[0].float().log_softmax(-1) - expected).abs().max())


def _run_prefixes(model: PreTrainedModel, encoded: Sequence[EncodedPrompt], *, pad_token_id: int) -> _Prefix:
    batch = send_to_device(collate_prefixes(encoded, pad_token_id=pad_token_id), model.device)
    positions = find_prefix_positions(model, batch)
    images = image_inputs(model, batch)
    del batch["images"], batch["layout"]
    out = model(**batch, **images, position_ids=positions, use_cache=True, logits_to_keep=1)
    length = batch["input_ids"].shape[1]
    cache = out.past_key_values
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers) or cache.get_seq_length() != length:
        raise UserError(f"its cache does not hold the {length} tokens of the prompt one by one")
    axes = positions if positions.ndim == 3 else positions[None]
    return _Prefix(cache, batch["attention_mask"], axes.amax((0, 2)) + 1, len(positions) if positions.ndim == 3 else 0)


def _counts_tokens(cache: Cache) -> bool:
    """Whether a layer counts tokens in its cache (a sliding window), so that padding inside a row would move it."""
    return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _group_questions(encoded: Sequence[EncodedPrompt], *, by_length: bool) -> list[list[tuple[int, int]]]:
    """All questions at once, or those of equal length together."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for i, prompt in enumerate(encoded):
        for j, rest in enumerate(prompt.responses):
            groups.setdefault(len(rest) if by_length else 0, []).append((i, j))
    return [groups[key] for key in sorted(groups)]


def _run_rests(
    model: PreTrainedModel, prefix: _Prefix, cache: Cache, owner: Tensor, rests: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the questions' own words; returns the last logits (Q, V), the mask (Q, P + S) and the next position (Q,)."""
    width = max(map(len, rests))
    ids = torch.tensor([[pad_token_id] * (width - len(rest)) + list(rest) for rest in rests], device=owner.device)
    mask = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=owner.device)
    position = prefix.next_position[owner, None] + (mask.cumsum(-1) - 1).clamp_min(0)
    mask = torch.cat([prefix.mask[owner], mask], 1)
    logits = _step(model, ids, mask, position, cache, prefix.num_axes)
    return logits, mask, position[:, -1] + 1


def _continue(
    model: PreTrainedModel, prefix: _Prefix, cache: Cache, owner: Tensor, rests: Sequence[Sequence[int]], max_new_tokens: int, pad: int
) -> list[list[int]]:
    cache.batch_select_indices(owner)
    logits, mask, position = _run_rests(model, prefix, cache, owner, rests, pad)
    ends = torch.tensor(end_tokens(model), device=owner.device, dtype=torch.long)
    chosen: list[Tensor] = []
    running = torch.ones(len(rests), dtype=torch.bool, device=owner.device)
    while True:
        token = logits.argmax(-1)
        running = running & ~torch.isin(token, ends)
        chosen.append(torch.where(running, token, -1))
        if len(chosen) == max_new_tokens or not running.any():
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = _step(model, token[:, None], mask, position[:, None], cache, prefix.num_axes)
        position = position + 1
    return [[token for token in row if token >= 0] for row in torch.stack(chosen, 1).tolist()]


def _step(model: PreTrainedModel, ids: Tensor, mask: Tensor, position: Tensor, cache: Cache, num_axes: int) -> Tensor:
    positions = position.expand(num_axes, -1, -1) if num_axes else position
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )  # fmt: skip
    return out.logits[:, -1]


def end_tokens(model: PreTrainedModel) -> list[int]:
    """List the tokens that end a model's generation."""
    ends = model.generation_config.eos_token_id
    ends = model.config.get_text_config().eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _joined(prompt: EncodedPrompt, number: int) -> EncodedPrompt:
    """The prompt with one question's rest behind it, as one prefix."""
    rest = prompt.responses[number]
    types = {key: [*value, *prompt.response_types[number].get(key, [0] * len(rest))] for key, value in prompt.token_types.items()}
    return EncodedPrompt(
        prefix_ids=[*prompt.prefix_ids, *rest],
        responses=[],
        scored=[],
        token_types=types,
        images=prompt.images,
        num_images=prompt.num_images,
    )


def _generate_rows(
    model: PreTrainedModel, encoded: Sequence[EncodedPrompt], *, max_new_tokens: int, pad_token_id: int
) -> list[list[list[int]]]:
    """Every question as a whole row through the model's own ``generate``; features of an image repeated for its questions."""
    rows = [_joined(prompt, j) for prompt in encoded for j in range(len(prompt.responses))]
    batch = send_to_device(collate_prefixes(rows, pad_token_id=pad_token_id), model.device)
    del batch["images"], batch["layout"]
    once = send_to_device(collate_prefixes(encoded, pad_token_id=pad_token_id), model.device)
    repeats = torch.tensor([len(prompt.responses) for prompt in encoded], device=model.device)
    images = feature_inputs(encode_images(model, once), repeats)
    new = iter(continue_rows(model, {**batch, **images}, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_token_id))
    return [[next(new) for _ in prompt.responses] for prompt in encoded]


@torch.no_grad()
def continue_rows(model: Any, rows: Mapping[str, Any], **options: Any) -> list[list[int]]:
    """Continue whole rows, padded on the left, with stock ``generate``.

    Args:
        model: A multimodal LLM or a text model, in eval mode.
        rows: Its inputs, such as ``batch_prompts`` makes them; moved to its device, pixels to its precision.
        options: Of ``generate``.

    Returns:
        The new ids of each row; an end-of-turn token and what follows it are left out.
    """
    moved = send_to_device(dict(rows), model.device)
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
    out = model.generate(**moved, **options)
    ends = {*end_tokens(model), options.get("pad_token_id")}
    return [_before_end(ids, ends) for ids in out[:, moved["input_ids"].shape[1] :].tolist()]


def _before_end(ids: Sequence[int], ends: Container[int | None]) -> list[int]:
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:first])
