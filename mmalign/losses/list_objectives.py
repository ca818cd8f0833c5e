"""List objectives by name.

Shape legend: B = prompts, N = most responses of a prompt.
"""

from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.coefficients import anchored_target
from mmalign.losses.group_objectives import GROUP_OBJECTIVES
from mmalign.losses.list_kernel import ListObjective
from mmalign.losses.listwise import RankedBy, in_context_ranking_loss, lambda_loss, list_cross_entropy, plackett_luce_loss
from mmalign.losses.reasoning_steps import StepKind
from mmalign.losses.registry import Registry
from mmalign.losses.scores import SequenceScore, sequence_score

LIST_OBJECTIVES: "Registry[ListObjective]" = Registry("list")


@LIST_OBJECTIVES.register("adpo")
def adpo(*, temperature: float = 10.0, score_temperature: float = 0.5, score: SequenceScore = "sum") -> ListObjective:
    """Cross-entropy of softmax(h / temperature) to softmax(z-scores / score_temperature) (ADPO, arXiv:2510.18913).

    The paper's temperature of 0.8 is for its control tasks: with sums over a long response it saturates at once.
    """
    for name, value in (("temperature", temperature), ("score_temperature", score_temperature)):
        if not value > 0:
            raise UserError(f"{name} is {value}; expected a positive number")

    def loss(rewards: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return list_cross_entropy(rewards, anchored_target(scores, mask, temperature=score_temperature), mask)

    return ListObjective(loss=loss, beta=1 / temperature, score=sequence_score(score))


@LIST_OBJECTIVES.register("plackett_luce")
def plackett_luce(*, beta: float = 0.1, score: SequenceScore = "sum") -> ListObjective:
    """DPO over a ranking (arXiv:2305.18290, appendix A.3)."""
    return ListObjective(loss=plackett_luce_loss, beta=beta, score=sequence_score(score))


@LIST_OBJECTIVES.register("irpo")
def irpo(*, beta: float = 1.0, score: SequenceScore = "mean") -> ListObjective:
    """In-context ranking (IRPO, arXiv:2504.15477): scores are relevance grades from 0."""
    return ListObjective(loss=in_context_ranking_loss, beta=beta, score=sequence_score(score), score_range=(0, 10))


@LIST_OBJECTIVES.register("tpo")
def tpo(*, beta: float = 0.5, weighted: bool = True, score: SequenceScore = "mean", steps: StepKind = "whole") -> ListObjective:
    """Preference trees (TPO, arXiv:2410.12854): every two responses, weighed by what their swap changes in DCG.

    With ``steps``, a response's reward is the mean of its steps' mean log-ratios, weighed by their likeness to the best response's.

    Raises:
        ValueError: If a sum is asked for and steps too, which are means.
    """
    if steps != "whole" and score != "mean":
        raise UserError(f"steps is {steps}, which averages, and score is {score}; leave score out")

    def loss(rewards: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return lambda_loss(rewards, scores, mask, weighted=weighted)

    return ListObjective(loss=loss, beta=beta, score=sequence_score(score), score_range=(0, 1), steps=steps)


@LIST_OBJECTIVES.register("rank_dpo")
def rank_dpo(*, beta: float = 0.1, ranked_by: RankedBy = "reward", score: SequenceScore = "sum") -> ListObjective:
    """DPO of every two responses, weighed by what their swap changes in DCG (RankDPO, arXiv:2410.18013): TPO's list loss on sums.

    Whether the paper ranks by the current rewards or by the scores was not verified: ``ranked_by`` takes either.
    """

    def loss(rewards: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return lambda_loss(rewards, scores, mask, ranked_by=ranked_by)

    return ListObjective(loss=loss, beta=beta, score=sequence_score(score), score_range=(0, 1))


for _name, _factory in GROUP_OBJECTIVES.items():
    LIST_OBJECTIVES.register(_name)(_factory)
