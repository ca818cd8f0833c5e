"""Objectives over the answers that a policy sampled to one prompt, held near that policy.

A new one is a function here and a name in ``GROUP_OBJECTIVES``. The reference is the policy that sampled. ``docs/objectives.md`` holds
each one's formula and what was read in the authors' code.

Shape legend: R = responses of the batch, K = scored tokens.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.coefficients import standardize
from mmalign.losses.list_kernel import ListBatch, ListObjective, pad_lists
from mmalign.losses.listwise import discriminative_loss, surrogate_loss
from mmalign.losses.policy_gradient import clipped_surrogates, mean_ratios, squared_hinge_kl, token_log_ratios
from mmalign.losses.scores import MEAN

ResponseScore = Literal["logl", "ratio"]
"""Of a response under the policy alone: the mean of its tokens' log-probabilities, or of their ratios to the old ones."""


def _discriminative(*, score: ResponseScore, temperature: float | None, kl_limit: float, kl_weight: float) -> ListObjective:
    if not (kl_limit >= 0 and kl_weight >= 0):
        raise UserError(f"kl_limit is {kl_limit} and kl_weight {kl_weight}; expected 0 or more of each")

    def loss(values: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return discriminative_loss(values, scores, mask, temperature=temperature)

    def ratios(batch: ListBatch) -> Tensor:
        return mean_ratios(batch.policy, batch.old, batch.tokens)

    def constraint(batch: ListBatch) -> Tensor:
        return squared_hinge_kl(token_log_ratios(batch.policy, batch.old), limit=kl_limit, strength=kl_weight, mean=batch.mean)

    return ListObjective(
        loss=loss,
        beta=1.0,
        score=MEAN,
        compares=score == "ratio",
        values=ratios if score == "ratio" else None,
        constraint=constraint if kl_weight else None,
        sampled=True,
        binary=True,
    )


def disco(
    *, score: ResponseScore = "logl", temperature: float | None = None, kl_limit: float = 1e-4, kl_weight: float = 1000.0
) -> ListObjective:
    """Right responses above wrong ones, the likeliest wrong ones first, near the policy that sampled them (DisCO, arXiv:2505.12366).

    The temperature is the paper's if not given: 10 for ``logl``, 1 for ``ratio``. The reference is the old policy.
    """
    temperature = {"logl": 10.0, "ratio": 1.0}[score] if temperature is None else temperature
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; expected a positive number; its limit at infinity is disco_b")
    return _discriminative(score=score, temperature=temperature, kl_limit=kl_limit, kl_weight=kl_weight)


def disco_b(*, score: ResponseScore = "logl", kl_limit: float = 1e-4, kl_weight: float = 1000.0) -> ListObjective:
    """``disco`` with all wrong responses alike: the difference of two means."""
    return _discriminative(score=score, temperature=None, kl_limit=kl_limit, kl_weight=kl_weight)


def grpo(
    *, variant: Literal["grpo", "dr", "dapo"] = "grpo", clip_low: float = 0.2, clip_high: float | None = None, max_tokens: float = 256.0
) -> ListObjective:
    """Advantages within a group of samples, by clipped ratios of tokens (GRPO, arXiv:2402.03300), without a KL term.

    ``dr`` (arXiv:2503.20783) divides by no deviation, and each response's sum by ``max_tokens`` instead of its length. ``dapo``
    (arXiv:2503.14476) averages over the tokens of the prompt's group and clips at 0.28 above.
    """
    high = clip_high if clip_high is not None else 0.28 if variant == "dapo" else clip_low
    if not (0 < clip_low < 1 and high > 0):
        raise UserError(f"clip_low is {clip_low} and clip_high {high}; expected clip_low in (0, 1) and clip_high above 0")
    if not max_tokens > 0:
        raise UserError(f"max_tokens is {max_tokens}; expected a positive number: the longest response that is sampled")

    def values(batch: ListBatch) -> Tensor:
        scores, mask = pad_lists(batch.scores.to(batch.policy.sums), batch.counts)
        advantages = standardize(scores, mask, epsilon=None if variant == "dr" else 1e-4)[mask]
        log_ratios = token_log_ratios(batch.policy, batch.old)
        promises = clipped_surrogates(log_ratios, advantages[batch.tokens.response], low=clip_low, high=high)
        return batch.tokens.sums(promises) / _group_lengths(batch, variant, max_tokens)

    return ListObjective(loss=surrogate_loss, beta=1.0, score=MEAN, values=values, sampled=True)


def _group_lengths(batch: ListBatch, variant: str, max_tokens: float) -> Tensor | float:
    """What a response's sum over tokens is divided by: its length, a constant, or the mean length of its prompt's responses."""
    lengths = batch.tokens.lengths()
    if variant == "dr":
        return max_tokens
    if variant == "grpo":
        return lengths.clamp(min=1)
    padded, _ = pad_lists(lengths, batch.counts)
    return (padded.sum(1).clamp(min=1) / batch.counts.to(lengths.device)).repeat_interleave(batch.counts.to(lengths.device))


GROUP_OBJECTIVES: dict[str, Callable[..., ListObjective]] = {"disco": disco, "disco_b": disco_b, "grpo": grpo}
