"""Policy and reference on one batch, each image encoded once where both see it with the same eyes."""

from typing import Any

from torch import nn

from mmalign.engine.logps import ResponseLogps, compute_response_logps, unwrap, unwrap_parallel
from mmalign.engine.vision import encode_frozen_images, vision_is_frozen
from mmalign.models.references import Reference


def compute_policy_and_reference(
    model: nn.Module, inputs: dict[str, Any], reference: Reference | None, *, keep_states: bool = False
) -> tuple[ResponseLogps, ResponseLogps | None]:
    """Run the policy, and the reference without gradient where there is one.

    Args:
        model: The policy, possibly wrapped.
        inputs: From ``collate_prompts``, and nothing else.
        reference: None where its log-probabilities are known, or nobody asks for them.
        keep_states: Keep the policy's last hidden states at the scored positions.
    """
    inner = unwrap(model)
    features = encode_frozen_images(inner, inputs) if vision_is_frozen(inner) else None
    expected = None
    if reference is not None:
        seen = features if reference.shares_frozen_vision else None
        with reference.active(unwrap_parallel(model)) as frozen:
            expected = compute_response_logps(frozen, inputs, features=seen)
    return compute_response_logps(model, inputs, features=features, keep_states=keep_states), expected
