"""Pair objectives by name. A new one is a function here: what it changes of the kernel, with its hyper-parameters and its source.

``docs/objectives.md`` holds each one's formula, what was verified and what is reconstructed, and where TRL differs.
"""

import math
from functools import partial
from typing import Literal

from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.coefficients import margin_weight, preference_probability, visit_flip
from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.links import FDivergence, build_divergence_link, clipped_log_ratio, log_odds
from mmalign.losses.pair_kernel import Columns, PairObjective, absent, against_batch_mean, bounded, hinge, logistic, pointwise, squared
from mmalign.losses.registry import Registry, positive
from mmalign.losses.scores import (
    MEAN,
    SequenceScore,
    TokenWeighting,
    changed_weights,
    length_desensitized_weights,
    sequence_score,
    suffix_weights,
)

PAIR_OBJECTIVES: Registry[PairObjective] = Registry("pair")
SCORES = ("score_chosen", "score_rejected")
VISITS = ("visits_chosen", "visits_rejected")
SEVERITY, FACTOR = "severity", "ls_factor"


@PAIR_OBJECTIVES.register("dpo")
def dpo(*, beta: float = 0.1, score: SequenceScore = "sum") -> PairObjective:
    """-log sigmoid(beta Delta) (DPO, arXiv:2305.18290, Eq. 7). With mean token scores it is TRL's ``sigmoid_norm``."""
    return PairObjective(beta=beta, score=sequence_score(score))


@PAIR_OBJECTIVES.register("cdpo")
def cdpo(*, beta: float = 0.1, label_smoothing: float = 0.1) -> PairObjective:
    """DPO with labels that are wrong in a known share of pairs: bounded, with its optimum at that share (conservative DPO)."""
    return PairObjective(beta=beta, label_flip=_smoothing(label_smoothing))


@PAIR_OBJECTIVES.register("rdpo")
def rdpo(*, beta: float = 0.1, label_smoothing: float = 0.1) -> PairObjective:
    """DPO made unbiased under flipped labels (robust DPO, arXiv:2403.00409): no lower bound, so clip gradients and stop early."""
    flip = _smoothing(label_smoothing)
    return PairObjective(beta=beta, label_flip=-flip / (1 - 2 * flip))


@PAIR_OBJECTIVES.register("ipo")
def ipo(*, beta: float = 0.1, score: SequenceScore = "mean") -> PairObjective:
    """(Delta - 1 / (2 beta))^2 (IPO, arXiv:2310.12036, Eq. 17; beta is its tau); mean token scores as in TRL."""
    return PairObjective(beta=beta, score=sequence_score(score), offset=0.5, outer=squared)


@PAIR_OBJECTIVES.register("hinge")
def hinge_loss(*, beta: float = 0.1, score: SequenceScore = "sum") -> PairObjective:
    """max(0, 1 - beta Delta) (SLiC, arXiv:2305.10425, on log-ratios)."""
    return PairObjective(beta=beta, score=sequence_score(score), outer=hinge)


@PAIR_OBJECTIVES.register("fdpo")
def fdpo(*, beta: float = 0.1, divergence: FDivergence = "js", divergence_coefficient: float = 0.5) -> PairObjective:
    """DPO under another divergence (f-DPO, arXiv:2309.16240): forward-kl, js or alpha with the paper's coefficient."""
    return PairObjective(beta=beta, link=build_divergence_link(divergence, coefficient=divergence_coefficient))


@PAIR_OBJECTIVES.register("clipped_dpo")
def clipped_dpo(*, beta: float = 0.1, clip_range: float = 0.1, score: SequenceScore = "mean") -> PairObjective:
    """DPO on ratios clipped to [1 - c, 1 + c] (after D3PO, arXiv:2311.13231, which clips each denoising step).

    A pair whose two ratios are outside gives no gradient; ratios of whole sequences soon are, so mean token scores are the default.
    """
    return PairObjective(beta=beta, score=sequence_score(score), link=clipped_log_ratio(clip_range))


@PAIR_OBJECTIVES.register("flex_dpo")
def flex_dpo(*, beta: float = 0.1, beta_rejected: float = 0.05) -> PairObjective:
    """-log sigmoid(beta h_w - beta_rejected h_l) (Flex-DPO of 3D-Properties, arXiv:2406.07327): push the rejected one less."""
    return PairObjective(beta=beta, rejected_scale=positive(beta_rejected, "beta_rejected") / positive(beta, "beta"))


@PAIR_OBJECTIVES.register("madpo")
def madpo(
    *, beta: float = 0.1, strongest: float = 2.0, weakest: float = 0.5, steepness: float = 1.0, turning_gap: float = math.log(999)
) -> PairObjective:
    """DPO weighted by a reward model's gap (MADPO, arXiv:2510.05342). The scores are logits: rescale others before."""
    weigh = partial(margin_weight, strongest=strongest, weakest=weakest, steepness=steepness, turning_gap=turning_gap)
    return PairObjective(beta=beta, weight=lambda columns: weigh(_gap(columns)), columns=SCORES)


@PAIR_OBJECTIVES.register("ld_dpo")
def ld_dpo(*, beta: float = 0.1, tail_weight: float = 0.5) -> PairObjective:
    """DPO that counts tokens past the shorter response's length less (LD-DPO, arXiv:2409.06411), in policy and reference alike.

    Raises:
        ValueError: If the weight is outside [0, 1].
    """
    if not 0 <= tail_weight <= 1:
        raise UserError(f"tail_weight is {tail_weight}; expected a number in [0, 1]: 1 is DPO, 0 cuts the longer response off")
    return PairObjective(beta=beta, score=TokenWeighting(partial(length_desensitized_weights, tail_weight=tail_weight)))


@PAIR_OBJECTIVES.register("asft")
def asft(*, align_weight: float = 1.0, temperature: float = 1.0, sft_weight: float = 1.0) -> PairObjective:
    """Log-odds of each response on its own, without a reference (Aligned SFT, arXiv:2409.10571).

    ``temperature`` divides the log-odds; 10 is the tempered form's b = 0.1. After an SFT stage of its own, ``sft_weight`` is 0.
    """
    return PairObjective(
        score=MEAN,
        link=log_odds,
        uses_reference=False,
        beta=1 / positive(temperature, "temperature"),
        form=pointwise(),
        weight=align_weight,
        sft_weight=sft_weight,
    )


@PAIR_OBJECTIVES.register("orpo")
def orpo(*, odds_weight: float = 0.1, sft_weight: float = 1.0) -> PairObjective:
    """Mean NLL of the chosen response and its odds ratio over the rejected one (ORPO, arXiv:2403.07691); no reference."""
    return PairObjective(score=MEAN, link=log_odds, uses_reference=False, beta=1.0, weight=odds_weight, sft_weight=sft_weight)


@PAIR_OBJECTIVES.register("simpo")
def simpo(*, beta: float = 2.0, target_margin: float = 1.0) -> PairObjective:
    """-log sigmoid(beta (mean log p_w - mean log p_l) - target_margin) (SimPO, arXiv:2405.14734); no reference."""
    return PairObjective(beta=beta, score=MEAN, uses_reference=False, offset=target_margin)


@PAIR_OBJECTIVES.register("cpo")
def cpo(*, beta: float = 0.1, sft_weight: float = 1.0) -> PairObjective:
    """-log sigmoid(beta (log p_w - log p_l)) + sft_weight NLL_w: DPO without a reference (CPO, arXiv:2401.08417)."""
    return PairObjective(beta=beta, uses_reference=False, sft_weight=sft_weight)


@PAIR_OBJECTIVES.register("kto_pair")
def kto_pair(*, beta: float = 0.1, detach_baseline: bool = True, score: SequenceScore = "sum") -> PairObjective:
    """KTO's value function on both halves of a pair (arXiv:2402.01306, LLaVA-MoD's arXiv:2408.15881).

    The baseline is the mean over the micro-batches of all processes, so batch size and accumulation change the loss.
    """
    return PairObjective(beta=beta, score=sequence_score(score), outer=bounded, form=against_batch_mean(detach=detach_baseline))


@PAIR_OBJECTIVES.register("dno")
def dno(*, beta: float = 0.1, score_temperature: float = 1.0) -> PairObjective:
    """DPO with soft labels, P = sigmoid(score gap / temperature) (DNO, arXiv:2404.03715, Alg. 1; its eta is beta)."""
    return PairObjective(beta=beta, label_flip=lambda columns: 1 - _probability(columns, score_temperature), columns=SCORES)


@PAIR_OBJECTIVES.register("smpo")
def smpo(*, beta: float = 0.1, score_temperature: float = 1.0) -> PairObjective:
    """DPO with beta (2 P - 1), P from the score gap (after SmPO, arXiv:2506.02698): a pair that is a toss-up teaches nothing."""
    return PairObjective(beta=beta, beta_scale=lambda columns: 2 * _probability(columns, score_temperature) - 1, columns=SCORES)


@PAIR_OBJECTIVES.register("step_dpo")
def step_dpo(*, beta: float = 0.1) -> PairObjective:
    """CDPO from the first differing token on, its labels as sure as a tree search's visits (MCTS-DPO, arXiv:2405.00451)."""
    return PairObjective(
        beta=beta,
        score=TokenWeighting(suffix_weights),
        label_flip=lambda columns: visit_flip(columns[VISITS[0]], columns[VISITS[1]]),
        columns=VISITS,
        least=0,
    )


@PAIR_OBJECTIVES.register("adpo_pair")
def adpo_pair(*, temperature: float = 10.0, labels: Literal["soft", "hard"] = "soft", score_temperature: float = 1.0) -> PairObjective:
    """Cross-entropy of softmax(h / temperature) to P(chosen is better) (ADPO, arXiv:2510.18913); hard labels are DPO at 1 / temperature."""
    beta = 1 / positive(temperature, "temperature")
    if labels == "hard":
        return PairObjective(beta=beta)
    return PairObjective(beta=beta, label_flip=lambda columns: 1 - _probability(columns, score_temperature), columns=SCORES)


@PAIR_OBJECTIVES.register("ddo")
def ddo(*, beta: float = 0.1, rejected_weight: float = 1.0) -> PairObjective:
    """Each response against the reference on its own (DDO, arXiv:2503.01103), over max(1, rejected_weight); at 1 TRL's ``bco_pair``."""
    weight = 1 / max(1.0, positive(rejected_weight, "rejected_weight"))
    return PairObjective(beta=beta, form=pointwise(rejected_weight=rejected_weight), weight=weight, outer=logistic)


@PAIR_OBJECTIVES.register("hsa_dpo")
def hsa_dpo(*, beta: float = 0.1) -> PairObjective:
    """-log sigmoid(beta [h_w - S h_l]), S how severe the rejected answer's errors are (HSA-DPO, arXiv:2404.14233): a column."""
    return PairObjective(beta=beta, rejected_scale=lambda columns: columns[SEVERITY], columns=(SEVERITY,), least=0)


@PAIR_OBJECTIVES.register("mm_dpo")
def mm_dpo(*, beta: float = 0.1, factor_weight: float = 0.1) -> PairObjective:
    """DPO with beta (1 + factor_weight f), f from a reward model's gap (MM-DPO of MM-RLHF, arXiv:2502.10391): a column."""
    return PairObjective(beta=beta, beta_scale=lambda columns: 1 + factor_weight * columns[FACTOR], columns=(FACTOR,), least=0)


@PAIR_OBJECTIVES.register("ddpo")
def ddpo(*, beta: float = 0.1, changed_weight: float = 5.0, score: SequenceScore = "sum") -> PairObjective:
    """DPO in which the words that a correction changed count more (DDPO of RLHF-V, arXiv:2312.00849)."""
    weights = partial(changed_weights, weight=positive(changed_weight, "changed_weight"))
    return PairObjective(beta=beta, score=TokenWeighting(weights, mean=score == "mean"))


@PAIR_OBJECTIVES.register("nll")
def nll() -> PairObjective:
    """The chosen response's mean negative log-likelihood alone: a part of sums."""
    return PairObjective(form=absent, uses_reference=False, sft_weight=1.0)


# MPO of InternVL (arXiv:2411.10442): DPO, BCO, which is DDO at its defaults, and SFT.
PAIR_OBJECTIVES.register_sum("mpo", ("dpo:weight=0.8", "ddo:weight=0.2", "nll"))

for _name, _build in IMAGE_OBJECTIVES.items():
    PAIR_OBJECTIVES.register(_name)(_build)


def _smoothing(value: float) -> float:
    if not 0 <= value < 0.5:
        raise UserError(f"label_smoothing is {value}; expected a number in [0, 0.5): at a half the labels say nothing")
    return value


def _gap(columns: Columns) -> Tensor:
    return columns[SCORES[0]] - columns[SCORES[1]]


def _probability(columns: Columns, temperature: float) -> Tensor:
    return preference_probability(_gap(columns), temperature=temperature)
