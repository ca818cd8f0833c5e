"""Steps of responses, and how much each counts by its likeness to the same step of the best response (TPO, arXiv:2410.12854).

Shape legend: K = scored tokens of the batch, R = responses, S = steps of the batch, D = hidden width.
"""

from typing import Literal

import torch
from torch import Tensor

from mmalign.losses.coefficients import step_similarity
from mmalign.losses.scores import ScoredTokens, TokenWeights, at_least_float32, step_weights

StepKind = Literal["whole", "lines", "sentences"]
"""How a response is taken apart; ``whole``: not at all."""


def number_steps(tokens: ScoredTokens, ends: Tensor) -> Tensor:
    """Number the steps of a batch.

    Args:
        tokens: Which response each token belongs to.
        ends: (K,) booleans: the token ends a step. A response's last token, its end of text, belongs to the step before it.

    Returns:
        (K,) the token's step, from 0, in the order of the responses; no step reaches over two of them.
    """
    position, length = tokens.positions(), tokens.lengths()[tokens.response]
    begins = (ends.roll(1) & (position < length - 1)) | (position == 0)
    return begins.long().cumsum(0) - 1


def adaptive_step_weights(tokens: ScoredTokens, *, ends: Tensor, states: Tensor, best: Tensor) -> TokenWeights:
    """Weigh each step by 1 + cosine of its mean hidden state and that of the same step of the best response, without gradient.

    A step that the best response has no counterpart of weighs 1, as if they had nothing in common; this rule is ours.

    Args:
        tokens: Which response each token belongs to.
        ends: (K,) as ``number_steps`` takes them.
        states: (K, D) last-layer hidden states that predict the tokens.
        best: (R,) for each response, the number of its prompt's best one.
    """
    step = number_steps(tokens, ends)
    lengths = torch.bincount(step)
    response = tokens.response[lengths.cumsum(0) - lengths]
    states = at_least_float32(states.detach())
    means = states.new_zeros(len(lengths), states.shape[1]).index_add(0, step, states) / lengths[:, None]
    steps = torch.bincount(response, minlength=tokens.num_responses)
    first = steps.cumsum(0) - steps
    place = torch.arange(len(lengths), device=step.device) - first[response]
    known = place < steps[best[response]]
    counterpart = torch.where(known, first[best[response]] + place, 0)
    return step_weights(step, torch.where(known, step_similarity(means, means[counterpart]), 1.0))
