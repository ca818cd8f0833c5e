"""One step of policy and reference over the same batch; an image that both see alike is encoded once."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from mmalign.engine.divergence import TeacherStates
from mmalign.engine.logps import ResponseLogps, compute_response_logps, states_of, unwrap, unwrap_parallel
from mmalign.engine.vision import ImageFeatures, encode_frozen_images, vision_is_frozen
from mmalign.models.references import Reference


def compute_policy_and_reference(
    model: nn.Module,
    inputs: dict[str, Any],
    reference: Reference | None,
    *,
    keep_states: bool = False,
    keep_logits: bool = False,
    divergence: bool = False,
) -> tuple[ResponseLogps, ResponseLogps | None]:
    """Run the policy, and the reference without gradient where there is one; an image that both see alike is encoded once.

    Args:
        model: The policy, possibly wrapped.
        inputs: From ``collate_prompts``, and nothing else.
        reference: None where its log-probabilities are known, or nobody asks for them.
        keep_states: Keep the policy's last hidden states at the scored positions.
        keep_logits: Keep the scored tokens' own logits, of both.
        divergence: Compute KL(reference, policy) at the scored positions.
    """
    frozen = compute_reference(model, inputs, reference, keep_logits=keep_logits, divergence=divergence)
    policy = compute_policy(model, inputs, frozen, keep_states=keep_states, keep_logits=keep_logits)
    return policy, frozen.reference


@dataclass(frozen=True)
class FrozenPass:
    """What is computed once of a batch, however many policies are compared with it."""

    features: ImageFeatures | None
    """Of images, where no policy changes them."""
    reference: ResponseLogps | None
    states: TeacherStates | None = None
    """The reference's, for policies whose divergence from it is asked for."""


def compute_reference(
    model: nn.Module, inputs: dict[str, Any], reference: Reference | None, *, keep_logits: bool = False, divergence: bool = False
) -> FrozenPass:
    """Encode images whose features stay the same, and run the reference; arguments as in ``compute_policy_and_reference``."""
    inner = unwrap(model)
    features = encode_frozen_images(inner, inputs) if vision_is_frozen(inner) else None
    if reference is None:
        return FrozenPass(features, None)
    seen = features if reference.shares_frozen_vision else None
    with reference.active(unwrap_parallel(model)) as frozen:
        expected = compute_response_logps(frozen, inputs, features=seen, keep_states=divergence, keep_logits=keep_logits)
        return FrozenPass(features, expected, states_of(frozen, expected, inputs["layout"]) if divergence else None)


def compute_policy(
    model: nn.Module, inputs: dict[str, Any], frozen: FrozenPass, *, keep_states: bool = False, keep_logits: bool = False
) -> ResponseLogps:
    """Run a policy on a batch whose reference has run."""
    return compute_response_logps(
        model, inputs, features=frozen.features, keep_states=keep_states, keep_logits=keep_logits, against=frozen.states
    )
