"""Two policies that learn the same pairs and chase each other (OFS-DPO, arXiv:2406.05534, Eq. 3 to 6, second hand).

    lead  = beta * [link(score of the leader - score of the chaser) of the chosen response - the same of the rejected one]
    chase = -log sigmoid(lead)

The leader's loss is its own preference loss + weight * chase, the chaser's is its own - weight * chase; in each the other's scores are
without gradient. Both gradients push the policy's own margin up: the leader is paid for its lead, the chaser for catching up.

Shape legend: B = pairs, R = 2 B responses (chosen, rejected, chosen, ...).
"""

from torch import Tensor
from torch.nn import functional as F

from mmalign.losses.pair_kernel import PairObjective
from mmalign.losses.scores import Logps, ScoredTokens

LARGEST_LEAD = 10.0
"""Beyond it, either way, nothing is paid."""


def compute_lead(objective: PairObjective, leader: Logps, chaser: Logps, tokens: ScoredTokens) -> Tensor:
    """Compute by how much the leader's margin is above the chaser's.

    Args:
        objective: Its score, link and plain beta.
        leader: Of R responses.
        chaser: Of the same.
        tokens: What the log-probabilities belong to.

    Returns:
        (B,).
    """
    linked = objective.link(objective.score(leader, tokens) - objective.score(chaser, tokens))
    return objective.beta * (linked[0::2] - linked[1::2])


def chase_loss(lead: Tensor) -> Tensor:
    """Compute -log sigmoid of (B,) leads."""
    return -F.logsigmoid(lead.clamp(-LARGEST_LEAD, LARGEST_LEAD))


def chase_terms(objective: PairObjective, leader: Logps, chaser: Logps, tokens: ScoredTokens) -> Tensor:
    """Sum what is added to both policies' losses, without its weight.

    Returns:
        (B,) the leader's chase - the chaser's: 0, with the gradient of each with respect to its own policy.
    """
    paid = chase_loss(compute_lead(objective, leader, _still(chaser), tokens))
    return paid - chase_loss(compute_lead(objective, _still(leader), chaser, tokens))


def _still(logps: Logps) -> Logps:
    """The same without gradient; no score reads logits of the other policy."""
    return Logps(logps.sums.detach(), None if logps.token_logps is None else logps.token_logps.detach())
