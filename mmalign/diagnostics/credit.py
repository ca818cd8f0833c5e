"""Which words of a response earned its reward: the implicit reward of each token (from r to Q*, arXiv:2404.12358).

beta [log pi(token | before) - log ref(token | before)]; the credits of a response add up to its implicit reward. That they are
the optimal advantage of each token is the paper's claim on a token-level decision process; the telescoping is arithmetic.
"""

from torch import Tensor

from mmalign.errors import UserError


def token_credits(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Compute each token's credit.

    Args:
        policy: (T,) token log-probabilities.
        reference: (T,) the reference's.
        beta: DPO's.

    Returns:
        (T,) float64; positive: the policy holds the token for better than the reference does.

    Raises:
        ValueError: If the lengths differ.
    """
    if policy.shape != reference.shape:
        raise UserError(f"{len(policy)} tokens under the policy and {len(reference)} under the reference; expected the same response")
    return beta * (policy.double() - reference.double())
