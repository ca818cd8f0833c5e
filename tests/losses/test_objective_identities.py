"""What must hold between objectives, on random pairs: one function or more for each of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.pair_kernel import PairBatch, PairObjective, compute_rewards, objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from tests.losses.objective_cases import GAP, as_sides
from tests.losses.pair_example import F64, at_reference, random_pairs, share_prefixes, swapped, with_columns

LOG_2 = math.log(2)
NAMES = [name for name in PAIR_OBJECTIVES.names() if name not in IMAGE_OBJECTIVES]
"""Those of images have theirs in ``test_image_objectives.py``."""
IDENTITIES: dict[str, Callable[[PairBatch], None]] = {}


def identity(name: str) -> Callable[[Callable[[PairBatch], None]], Callable[[PairBatch], None]]:
    def add(check: Callable[[PairBatch], None]) -> Callable[[PairBatch], None]:
        IDENTITIES[name] = check
        return check

    return add


def test_every_objective_has_an_identity() -> None:
    assert list(IDENTITIES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_identity(name: str) -> None:
    IDENTITIES[name](random_pairs(seed=3))


def loss_of(batch: PairBatch, name: str, **parameters: Any) -> Tensor:
    return objective_loss(PAIR_OBJECTIVES.build(name, **parameters), batch)


def dpo_margin(batch: PairBatch) -> Tensor:
    rewards = compute_rewards(PairObjective(), batch)
    return 0.1 * (rewards.chosen - rewards.rejected)


def mean_logp(batch: PairBatch, side: int) -> Tensor:
    return torch.tensor([pair.mean(side) for pair in as_sides(batch)], dtype=F64)


def close(got: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype).expand_as(got), rtol=0, atol=1e-9)


@identity("dpo")
def swapping_mirrors(pairs: PairBatch) -> None:
    close(loss_of(pairs, "dpo") - loss_of(swapped(pairs), "dpo"), -dpo_margin(pairs))
    close(loss_of(at_reference(pairs), "dpo"), LOG_2)


@identity("cdpo")
def smoothing_tilts(pairs: PairBatch) -> None:
    close(loss_of(pairs, "cdpo"), loss_of(pairs, "dpo") + 0.1 * dpo_margin(pairs))
    close(loss_of(pairs, "cdpo", label_smoothing=0.0), loss_of(pairs, "dpo"))


@identity("rdpo")
def flips_cancel_in_the_mean(pairs: PairBatch) -> None:
    right, flipped = (loss_of(batch, "rdpo", label_smoothing=0.2) for batch in (pairs, swapped(pairs)))
    close(0.8 * right + 0.2 * flipped, loss_of(pairs, "dpo"))


@identity("ipo")
def square_opens_out(pairs: PairBatch) -> None:
    """(D - 5)^2 - (-D - 5)^2 = -20 D, and D is 10 margins."""
    close(loss_of(pairs, "ipo", score="sum") - loss_of(swapped(pairs), "ipo", score="sum"), -200 * dpo_margin(pairs))


@identity("hinge")
def hinge_is_flat_behind_one(pairs: PairBatch) -> None:
    close(loss_of(at_reference(pairs), "hinge"), 1.0)
    close(loss_of(pairs, "hinge", beta=1e4)[dpo_margin(pairs) > 0], 0.0)
    assert (dpo_margin(pairs) > 0.001).any()


@identity("fdpo")
def alpha_spans_the_divergences(pairs: PairBatch) -> None:
    close(loss_of(pairs, "fdpo", divergence="reverse-kl"), loss_of(pairs, "dpo"))
    close(loss_of(pairs, "fdpo", divergence="alpha", divergence_coefficient=1e-12), loss_of(pairs, "dpo"))
    alpha = loss_of(pairs, "fdpo", divergence="alpha", divergence_coefficient=1.0)
    close(alpha, loss_of(pairs, "fdpo", divergence="forward-kl"))


@identity("clipped_dpo")
def wide_clip_is_no_clip(pairs: PairBatch) -> None:
    close(loss_of(with_small_ratios(pairs), "clipped_dpo", clip_range=0.9, score="sum"), loss_of(with_small_ratios(pairs), "dpo"))
    close(loss_of(at_reference(pairs), "clipped_dpo"), LOG_2)


def with_small_ratios(pairs: PairBatch) -> PairBatch:
    """A policy near the reference: log-ratios between log 0.1 and log 1.9, to which a clip of 0.9 does nothing."""
    assert pairs.reference is not None
    shift = torch.linspace(-0.5, 0.6, len(pairs.policy.sums), dtype=F64)
    return dataclasses.replace(pairs, policy=dataclasses.replace(pairs.policy, sums=pairs.reference.sums + shift))


@identity("flex_dpo")
def equal_betas_are_dpo(pairs: PairBatch) -> None:
    close(loss_of(pairs, "flex_dpo", beta_rejected=0.1), loss_of(pairs, "dpo"))


@identity("madpo")
def no_gap_weighs_one(pairs: PairBatch) -> None:
    close(loss_of(with_columns(pairs, **dict.fromkeys(GAP, 1.7)), "madpo"), loss_of(pairs, "dpo"))
    close(loss_of(with_columns(pairs, score_chosen=math.log(999), score_rejected=0.0), "madpo"), loss_of(pairs, "dpo"))


@identity("ld_dpo")
def whole_tail_is_dpo(pairs: PairBatch) -> None:
    close(loss_of(pairs, "ld_dpo", tail_weight=1.0), loss_of(pairs, "dpo"))
    # Weighted alike in both models: without that a length would make a margin where policy and reference agree.
    close(loss_of(at_reference(pairs), "ld_dpo"), LOG_2)


@identity("asft")
def aligning_is_two_likelihoods(pairs: PairBatch) -> None:
    expected = -mean_logp(pairs, 0) - torch.log(1 - mean_logp(pairs, 1).exp())
    close(loss_of(pairs, "asft", sft_weight=0.0), expected)
    close(loss_of(without_reference(pairs), "asft", sft_weight=0.0), expected)


@identity("orpo")
def no_odds_are_sft(pairs: PairBatch) -> None:
    close(loss_of(pairs, "orpo", odds_weight=0.0), -mean_logp(pairs, 0))
    ratio, mirrored = (loss_of(batch, "orpo", odds_weight=1.0, sft_weight=0.0) for batch in (pairs, swapped(pairs)))
    close((-ratio).exp() + (-mirrored).exp(), 1.0)
    close(loss_of(without_reference(pairs), "orpo"), loss_of(pairs, "orpo"))


@identity("simpo")
def simpo_mirrors_around_its_target(pairs: PairBatch) -> None:
    right, mirrored = (loss_of(batch, "simpo", target_margin=0.0) for batch in (pairs, swapped(pairs)))
    close(right - mirrored, -2 * (mean_logp(pairs, 0) - mean_logp(pairs, 1)))
    close(loss_of(without_reference(pairs), "simpo"), loss_of(pairs, "simpo"))


@identity("cpo")
def no_reference_is_a_uniform_one(pairs: PairBatch) -> None:
    """A reference that holds both responses equally likely drops out of DPO's margin; the rest is SFT."""
    assert pairs.reference is not None
    uniform = dataclasses.replace(pairs.reference, sums=torch.full_like(pairs.reference.sums, -9.0))
    preference = loss_of(dataclasses.replace(pairs, reference=uniform), "dpo")
    close(loss_of(pairs, "cpo"), preference - mean_logp(pairs, 0))
    close(loss_of(without_reference(pairs), "cpo", sft_weight=0.0), preference)


def without_reference(pairs: PairBatch) -> PairBatch:
    return dataclasses.replace(pairs, reference=None)


@identity("kto_pair")
def kto_starts_at_a_half(pairs: PairBatch) -> None:
    close(loss_of(at_reference(pairs), "kto_pair"), 0.5)
    close(loss_of(pairs, "kto_pair", detach_baseline=False), loss_of(pairs, "kto_pair"))


@identity("dno")
def sure_labels_are_dpo(pairs: PairBatch) -> None:
    close(loss_of(with_columns(pairs, score_chosen=99.0, score_rejected=0.0), "dno"), loss_of(pairs, "dpo"))
    close(loss_of(pairs, "dno"), loss_of(swapped(pairs), "dno"))


@identity("smpo")
def toss_ups_teach_nothing(pairs: PairBatch) -> None:
    close(loss_of(with_columns(pairs, **dict.fromkeys(GAP, 1.7)), "smpo"), LOG_2)
    close(loss_of(with_columns(pairs, score_chosen=99.0, score_rejected=0.0), "smpo"), loss_of(pairs, "dpo"))


@identity("step_dpo")
def shared_steps_drop_out(pairs: PairBatch) -> None:
    """A model gives a shared prefix the same log-probabilities in both responses, so that leaving it out changes nothing."""
    pairs = share_prefixes(pairs)
    close(loss_of(with_columns(pairs, visits_chosen=9.0, visits_rejected=1.0), "step_dpo"), loss_of(pairs, "cdpo"))
    close(loss_of(with_columns(pairs, visits_chosen=9.0, visits_rejected=0.0), "step_dpo"), loss_of(pairs, "dpo"))


@identity("adpo_pair")
def hard_labels_are_dpo(pairs: PairBatch) -> None:
    close(loss_of(pairs, "adpo_pair", temperature=5.0, labels="hard"), loss_of(pairs, "dpo", beta=0.2))
    close(loss_of(pairs, "adpo_pair"), loss_of(pairs, "dno"))


@identity("ddo")
def both_sides_start_at_log_two(pairs: PairBatch) -> None:
    close(loss_of(at_reference(pairs), "ddo"), 2 * LOG_2)
    close(loss_of(at_reference(pairs), "ddo", rejected_weight=3.0), 4 / 3 * LOG_2)
    close(loss_of(at_reference(pairs), "ddo", rejected_weight=0.25), 1.25 * LOG_2)


@identity("hsa_dpo")
def severity_one_is_dpo(pairs: PairBatch) -> None:
    close(loss_of(with_columns(pairs, severity=1.0), "hsa_dpo"), loss_of(pairs, "dpo"))
    close(loss_of(with_columns(pairs, severity=0.5), "hsa_dpo"), loss_of(pairs, "flex_dpo", beta_rejected=0.05))


@identity("mm_dpo")
def no_factor_is_dpo(pairs: PairBatch) -> None:
    close(loss_of(with_columns(pairs, ls_factor=0.0), "mm_dpo"), loss_of(pairs, "dpo"))
    close(loss_of(with_columns(pairs, ls_factor=10.0), "mm_dpo"), loss_of(pairs, "dpo", beta=0.2))


@identity("ddpo")
def weight_one_is_dpo(pairs: PairBatch) -> None:
    close(loss_of(pairs, "ddpo", changed_weight=1.0), loss_of(pairs, "dpo"))
    close(loss_of(pairs, "ddpo", changed_weight=1.0, score="mean"), loss_of(pairs, "dpo", score="mean"))


@identity("nll")
def likelihood_alone(pairs: PairBatch) -> None:
    close(loss_of(without_reference(pairs), "nll"), -mean_logp(pairs, 0))


def test_mpo_is_the_sum_that_it_names() -> None:
    """0.8 DPO + 0.2 BCO + SFT: the ``loss_type`` list of TRL's recipe."""
    pairs = random_pairs(seed=3)
    total = sum(named.weight * objective_loss(named.objective, pairs) for named in PAIR_OBJECTIVES.parse_sum(["mpo"], beta=0.2))
    expected = 0.8 * loss_of(pairs, "dpo", beta=0.2) + 0.2 * loss_of(pairs, "ddo", beta=0.2) - mean_logp(pairs, 0)
    torch.testing.assert_close(total, expected)
