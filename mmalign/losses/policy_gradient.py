"""What the policy has become since it sampled: ratios of its tokens' probabilities to the old ones, and how far it may go.

Shape legend: K = scored tokens, R = responses.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.losses.scores import MEAN, Logps, ScoredTokens, at_least_float32


def token_log_ratios(policy: Logps, old: Logps) -> Tensor:
    """(K,) log pi - log pi_old."""
    assert policy.token_logps is not None, "asked for by token"
    assert old.token_logps is not None, "asked for by token"
    return at_least_float32(policy.token_logps) - at_least_float32(old.token_logps)


def mean_ratios(policy: Logps, old: Logps, tokens: ScoredTokens) -> Tensor:
    """(R,) mean of pi / pi_old over the tokens of each response."""
    ratios = token_log_ratios(policy, old).exp()
    return MEAN(Logps(tokens.sums(ratios)), tokens)


def clipped_surrogates(log_ratios: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Compute min(rho A, clip(rho, 1 - low, 1 + high) A) of each token, (K,): nothing is gained beyond the bounds (PPO, arXiv:1707.06347).

    Args:
        log_ratios: (K,) log rho.
        advantages: (K,) A, that of the token's response; without gradient.
        low: Of 1, that rho may fall.
        high: That it may rise.
    """
    ratios, advantages = log_ratios.exp(), advantages.detach()
    return torch.minimum(ratios * advantages, ratios.clamp(1 - low, 1 + high) * advantages)


def squared_hinge_kl(log_ratios: Tensor, *, limit: float, strength: float, mean: Callable[[Tensor], Tensor] = torch.mean) -> Tensor:
    """Compute strength / 2 max(0, K - limit)^2, K = mean of log pi_old - log pi: an estimate of KL(pi_old, pi) (DisCO, arXiv:2505.12366).

    Its gradient is strength max(0, K - limit) times K's: as written in the authors' code, whose logged value is another.

    Args:
        log_ratios: (K,) log pi - log pi_old of tokens that pi_old sampled.
        limit: The paper's delta.
        strength: The paper's beta.
        mean: Over the tokens of the micro-batch, or of those of all processes.

    Returns:
        A scalar.
    """
    return strength / 2 * torch.relu(mean(-log_ratios) - limit).square()
