"""Before a run: does this model give the same numbers on the engine's rows as on plain ones?

Every model that a user brings is asked once, on rows of the user's own data. A wrong mask or position moves log-probabilities by
0.03 and more; rounding moves them by less than 1e-5 in float32.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps, unwrap
from mmalign.engine.vision import image_inputs

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE_TOLERANCE = 0.25
"""Of half precision and 4-bit weights: rounding alone moves a token by hundredths."""


@dataclass(frozen=True)
class RowChoice:
    """How a model's rows are laid out."""

    shared: bool
    """Whether responses share the row of their prompt."""
    reason: str
    """Why, for the log."""


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
    was_training = model.training
    model.eval()
    try:
        expected = [value for prompt in encoded for value in own_logps(model, prompt)]
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        tolerance = TOLERANCE.get(dtype, COARSE_TOLERANCE)
        plain = _difference(model, encoded, expected, pad_token_id=pad_token_id, shared=False)
        if not plain <= tolerance:
            raise ValueError(
                f"the engine's log-probabilities of {type(model).__name__} differ by {plain:.2g} from its own logits (tolerance "
                f"{tolerance:g}): this model can't be trained or scored exactly; please report its class"
            )
        try:
            shared = _difference(model, encoded, expected, pad_token_id=pad_token_id, shared=True)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            return RowChoice(False, f"{type(model).__name__} can't share rows: {error}")
        if shared <= tolerance:
            return RowChoice(True, f"responses share their prompt's row (largest difference {shared:.1e})")
        return RowChoice(False, f"shared rows of {type(model).__name__} differ by {shared:.2g} from its own logits")
    finally:
        model.train(was_training)


def own_logps(model: nn.Module, prompt: EncodedPrompt) -> list[Tensor]:
    """Score each response by the model's unchanged forward: one row, all logits. Log-probabilities of scored tokens."""
    device = next(model.parameters()).device
    values = []
    for response, scored in zip(prompt.responses, prompt.scored, strict=True):
        single = dataclasses.replace(prompt, responses=[response], scored=[scored])
        batch = send_to_device(collate_prompts([single], pad_token_id=0, shared=False), device)
        layout, images = batch.pop("layout"), image_inputs(unwrap(model), {"images": batch.pop("images")})
        # No positions are given: the model's own.
        logits = model(**batch, **images, use_cache=False).logits
        chosen = logits.flatten(0, 1)[layout["index"]].float().log_softmax(-1)
        values.append(chosen.gather(-1, layout["target"][:, None]).squeeze(-1))
    return values


def _difference(model: nn.Module, encoded: Sequence[EncodedPrompt], expected: list[Tensor], *, pad_token_id: int, shared: bool) -> float:
    batch = send_to_device(collate_prompts(encoded, pad_token_id=pad_token_id, shared=shared), expected[0].device)
    got = compute_response_logps(model, batch).per_response()
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
