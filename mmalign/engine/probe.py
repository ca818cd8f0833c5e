"""Before a run: does this model give the same numbers on the engine's rows as on plain ones?

Every model that a user brings is asked once, on rows of the user's own data. A wrong mask or position moves log-probabilities by
0.03 and more; rounding moves them by less than 1e-4 in float32, and by 0.5 in bfloat16 (a model of 30 layers and 49,152 words). So a
model in half precision is asked in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps, unwrap
from mmalign.engine.vision import image_inputs
from mmalign.errors import UserError
from mmalign.models.eval_mode import eval_mode
from mmalign.models.float32 import in_float32
from mmalign.models.picture_tokens import PictureTokens, find_picture_tokens

TOLERANCE = 1e-3
COARSE_TOLERANCE = 0.25
"""Of models that can't be asked in float32; of large ones it is too little, and they then share nothing."""

_ONE_ROW = 10**9
"""Tokens in which all prompts find a place."""

PROBED_ROWS = 2
"""Rows that are asked about: enough for images and padding of several in one batch."""


@dataclass(frozen=True)
class RowChoice:
    """How a model's rows are laid out."""

    shared: bool
    """Whether responses share the row of their prompt."""
    reason: str
    """Why, for the log."""

    def describe(self, row_tokens: int | None) -> str:
        """Say why, and that packing is idle where somebody asked for it: what can't share its prompt's row shares no other."""
        return self.reason if self.shared or row_tokens is None else f"{self.reason}; --row-tokens does nothing"


@torch.no_grad()
def probe_rows(model: nn.Module, encoded: Sequence[EncodedPrompt], *, pad_token_id: int) -> RowChoice:
    """Compare shared rows and the engine's plain rows with the model's own logits.

    Args:
        model: The model, before wrappers; its mode is kept.
        encoded: A few prompts with two or more responses each, of different lengths.
        pad_token_id: The tokenizer's.

    Returns:
        Shared rows where they are exact, else plain ones.

    Raises:
        ValueError: If even plain rows disagree with the model's own logits.
    """
    with eval_mode(model), in_float32(model) as exact:
        expected = [value for prompt in encoded for value in own_logps(model, prompt)]
        tolerance = TOLERANCE if exact else COARSE_TOLERANCE
        plain = float(_differences(model, encoded, expected, pad_token_id=pad_token_id, shared=False).max())
        _check_difference(model, plain, tolerance)
        try:
            shared = float(_differences(model, encoded, expected, pad_token_id=pad_token_id, shared=True).max())
        except UserError as error:
            return RowChoice(False, f"{type(model).__name__} can't share rows: {error}")
        if shared <= tolerance:
            return RowChoice(True, f"responses share their prompt's row (largest difference {shared:.1e})")
        return RowChoice(False, f"shared rows of {type(model).__name__} differ by {shared:.2g} from its own logits")


@torch.no_grad()
def check_rows(model: nn.Module, encoded: Sequence[EncodedPrompt], *, pad_token_id: int, packed: bool = False) -> str:
    """Compare rows of one response each with the model's own logits, where there is no choice of rows.

    Where it can't be asked in float32, the mean over tokens is compared, not the largest difference: rounding sends some tokens to
    other experts.

    Args:
        model: The model, before wrappers; its mode is kept.
        encoded: A few prompts with a response each.
        pad_token_id: The tokenizer's.
        packed: Whether several prompts are to share a row.

    Returns:
        A line for the log.

    Raises:
        ValueError: If the rows disagree with the model's own logits; if packed ones do, or the model can't have them.
    """
    name = type(unwrap(model)).__name__
    with eval_mode(model), in_float32(model) as exact:
        tolerance = TOLERANCE if exact else COARSE_TOLERANCE
        expected = [value for prompt in encoded for value in own_logps(model, prompt)]

        def compare(row_tokens: int | None = None) -> tuple[float, float]:
            """The largest difference, and the one that counts."""
            found = _differences(model, encoded, expected, pad_token_id=pad_token_id, shared=True, row_tokens=row_tokens)
            return float(found.max()), float(found.max() if exact else found.mean())

        largest, counted = compare()
        _check_difference(model, counted, tolerance)
        told = f"log-probabilities are those of {name} itself (largest difference {largest:.1e})"
        if not packed:
            return told
        try:
            largest, counted = compare(row_tokens=_ONE_ROW)
        except UserError as error:
            raise UserError(f"{name} can't pack prompts into rows: {error}; leave --row-tokens out") from None
        if not counted <= tolerance:
            raise UserError(f"packed rows of {name} differ by {largest:.2g} from its own logits; leave --row-tokens out")
        return f"{told}, in packed rows too ({largest:.1e})"


def _check_difference(model: nn.Module, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise UserError(
            f"the engine's log-probabilities of {type(unwrap(model)).__name__} differ by {difference:.2g} from its own logits (tolerance "
            f"{tolerance:g}): this model can't be trained or scored exactly; please report its class"
        )


def own_logps(model: nn.Module, prompt: EncodedPrompt) -> list[Tensor]:
    """Score each response by the model's unchanged forward: one row, all logits. Log-probabilities of scored tokens."""
    device = next(model.parameters()).device
    if prompt.pictures:
        return _own_picture_logps(find_picture_tokens(unwrap(model)), prompt, device)
    values = []
    for i in range(len(prompt.responses)):
        single = prompt.only(i)
        batch = send_to_device(collate_prompts([single], pad_token_id=0, shared=False), device)
        layout, images = batch.pop("layout"), image_inputs(unwrap(model), {"images": batch.pop("images")})
        # No positions are given: the model's own.
        logits = model(**batch, **images, use_cache=False).logits
        chosen = logits.flatten(0, 1)[layout["index"]].float().log_softmax(-1)
        values.append(chosen.gather(-1, layout["target"][:, None]).squeeze(-1))
    return values


def _own_picture_logps(pictures: PictureTokens, prompt: EncodedPrompt, device: torch.device) -> list[Tensor]:
    prefix = torch.tensor([prompt.prefix_ids], device=device)
    values = []
    for ids in prompt.responses:
        row = torch.tensor([ids], device=device)
        codes = row[row >= pictures.first] - pictures.first
        values.append(pictures.own_logits(prefix, row).float().log_softmax(-1).gather(-1, codes[:, None]).squeeze(-1))
    return values


def _differences(
    model: nn.Module,
    encoded: Sequence[EncodedPrompt],
    expected: list[Tensor],
    *,
    pad_token_id: int,
    shared: bool,
    row_tokens: int | None = None,
) -> Tensor:
    """How far each scored token is off."""
    batch = collate_prompts(encoded, pad_token_id=pad_token_id, shared=shared, row_tokens=row_tokens)
    batch = send_to_device(batch, expected[0].device)
    got = compute_response_logps(model, batch).per_response()
    return torch.cat([(a - b).abs() for a, b in zip(got, expected, strict=True)])
