"""Prompts that several rows continue: images and shared words run once, and their cached keys and values serve every row.

Families whose prompt attends to its own end (PaliGemma) or whose state is no list of tokens (linear and convolutional layers) can't
share a prompt's cache: ``probe_prefix`` finds them.

Shape legend: B = prompts, R = rows that continue them, P = longest prefix, S = longest rest, N = tokens so far, V = vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prefixes
from mmalign.engine.growing_cache import grow_in_place
from mmalign.engine.positions import find_prefix_positions
from mmalign.engine.probe import COARSE_TOLERANCE, TOLERANCE, RowChoice
from mmalign.engine.vision import image_inputs
from mmalign.errors import UserError
from mmalign.models.float32 import in_float32


@dataclass(frozen=True)
class Prefix:
    """What a batch of prefixes left."""

    model: PreTrainedModel
    cache: Cache
    mask: Tensor
    """(B, P)"""
    next_position: Tensor
    """(B,) the position after each prefix."""
    num_axes: int
    """3 for positions in time, height and width, else 0."""
    pad_token_id: int

    @property
    def counts_tokens(self) -> bool:
        """Whether a layer counts tokens in its cache (a sliding window), so that padding inside a row would move it."""
        return _has_windows(self.cache)


def counts_tokens(model: PreTrainedModel) -> bool:
    """Whether some of a model's layers have a sliding window, so that rows of one prefix can continue it at equal lengths alone."""
    return _has_windows(DynamicCache(config=model.config))


def _has_windows(cache: Cache) -> bool:
    return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in cache.layers)


@dataclass
class Rows:
    """Rows that continue cached prefixes, each with its own next logits."""

    prefix: Prefix
    cache: Cache
    mask: Tensor
    """(R, N)"""
    position: Tensor
    """(R,) of the next token."""
    logits: Tensor
    """(R, V) of the next token."""

    def select(self, order: Tensor) -> None:
        """Make rows anew from those there are: row i becomes a copy of row ``order[i]``, rows that are not named end."""
        self.cache.batch_select_indices(order)
        self.mask, self.position, self.logits = self.mask[order], self.position[order], self.logits[order]

    def step(self, tokens: Tensor) -> None:
        """Append one token to each row: (R,) ids."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.logits = _forward(self.prefix, tokens[:, None], self.mask, self.position[:, None], self.cache)
        self.position = self.position + 1


@torch.no_grad()
def run_prefixes(model: PreTrainedModel, encoded: Sequence[EncodedPrompt], *, pad_token_id: int) -> Prefix:
    """Run images and prefixes of a batch once.

    Raises:
        ValueError: If the model's cache does not hold the prompts' tokens one by one.
    """
    batch = send_to_device(collate_prefixes(encoded, pad_token_id=pad_token_id), model.device)
    positions = find_prefix_positions(model, batch)
    images = image_inputs(model, batch)
    del batch["images"], batch["layout"]
    out = model(**batch, **images, position_ids=positions, use_cache=True, logits_to_keep=1)
    length = batch["input_ids"].shape[1]
    cache = out.get("past_key_values")
    if (
        not isinstance(cache, Cache)
        or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
        or cache.get_seq_length() != length
    ):
        raise UserError(f"its cache does not hold the {length} tokens of the prompt one by one")
    axes = positions if positions.ndim == 3 else positions[None]
    num_axes = len(positions) if positions.ndim == 3 else 0
    return Prefix(model, cache, batch["attention_mask"], axes.amax((0, 2)) + 1, num_axes, pad_token_id)


def run_rests(prefix: Prefix, owners: Sequence[int], rests: Sequence[Sequence[int]], *, keep: bool = True) -> Rows:
    """Run each row's own words over its prefix.

    Args:
        prefix: From ``run_prefixes``.
        owners: The number of each row's prefix.
        rests: The row's own words.
        keep: Whether the prefix is used again; without it the rows take its cache for themselves.
    """
    cache = copy.deepcopy(prefix.cache) if keep else prefix.cache
    owner = torch.tensor(owners, device=prefix.mask.device)
    cache.batch_select_indices(owner)
    grow_in_place(cache)
    width = max(map(len, rests))
    ids = torch.tensor([[prefix.pad_token_id] * (width - len(rest)) + list(rest) for rest in rests], device=owner.device)
    mask = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=owner.device)
    position = prefix.next_position[owner, None] + (mask.cumsum(-1) - 1).clamp_min(0)
    mask = torch.cat([prefix.mask[owner], mask], 1)
    return Rows(prefix, cache, mask, position[:, -1] + 1, _forward(prefix, ids, mask, position, cache))


def _forward(prefix: Prefix, ids: Tensor, mask: Tensor, position: Tensor, cache: Cache) -> Tensor:
    positions = position.expand(prefix.num_axes, -1, -1) if prefix.num_axes else position
    out = prefix.model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )  # fmt: skip
    return out.logits[:, -1]


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
    row = send_to_device(collate_prefixes([joined(encoded, 0)], pad_token_id=pad_token_id), model.device)
    del row["layout"]
    row |= image_inputs(model, {"images": row.pop("images")})
    expected = model(**row, use_cache=False).logits[0, -1].float().log_softmax(-1)
    rows = run_rests(run_prefixes(model, [encoded], pad_token_id=pad_token_id), [0], [encoded.responses[0]], keep=False)
    return float((rows.logits[0].float().log_softmax(-1) - expected).abs().max())


def joined(prompt: EncodedPrompt, number: int) -> EncodedPrompt:
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
