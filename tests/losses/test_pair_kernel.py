"""The kernel's own parameters: values pair by pair, the margin's parts, a new objective, what is refused."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.pair_kernel import PairBatch, PairObjective, PairValues, compute_rewards, objective_loss, preference_loss, squared
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import Logps
from tests.losses.pair_example import F64, random_pairs, swapped, worked_pair

REWARDS = PairValues(torch.tensor([0.8, 2.0, -1.0], dtype=F64), torch.tensor([-1.2, 3.0, 0.5], dtype=F64))


def test_every_parameter_can_differ_from_pair_to_pair() -> None:
    """Each pair in plain floats: w [ (1 - k) sp(-z) + k sp(z) ], z = s (b h_w - b' h_l) - g."""
    scale, offset, flip, weight = ([1.0, 2.0, 0.5], [0.0, 0.3, -0.2], [0.0, 0.25, -0.125], [1.0, 3.0, 0.5])
    objective = PairObjective(
        beta=0.1,
        rejected_scale=0.5,
        beta_scale=lambda columns: columns["scale"],
        offset=lambda columns: columns["offset"],
        label_flip=lambda columns: columns["flip"],
        weight=lambda columns: columns["weight"],
        columns=("scale", "offset", "flip", "weight"),
    )
    columns = {name: torch.tensor(v, dtype=F64) for name, v in (("scale", scale), ("offset", offset), ("flip", flip), ("weight", weight))}
    got = preference_loss(objective, REWARDS, columns=columns)
    for i in range(3):
        z = scale[i] * (0.1 * REWARDS.chosen[i].item() - 0.05 * REWARDS.rejected[i].item()) - offset[i]
        expected = weight[i] * ((1 - flip[i]) * math.log1p(math.exp(-z)) + flip[i] * math.log1p(math.exp(z)))
        assert got[i].item() == pytest.approx(expected, abs=1e-12)


def test_difficulty_scales_beta_and_weight_of_every_objective() -> None:
    """Half the beta: sp(-0.5 * 0.2) = 0.644396660074. Half the weight: 0.299069434691. IPO's target moves with its beta."""
    pair = worked_pair()
    scaled = dataclasses.replace(pair, beta_scale=torch.tensor([0.5], dtype=F64))
    assert objective_loss(PAIR_OBJECTIVES.build("dpo"), scaled).item() == pytest.approx(0.644396660074, abs=1e-9)
    weighted = dataclasses.replace(pair, weight=torch.tensor([0.5], dtype=F64))
    assert objective_loss(PAIR_OBJECTIVES.build("dpo"), weighted).item() == pytest.approx(0.299069434691, abs=1e-9)
    for name in ("ipo", "flex_dpo", "kto_pair", "ddo", "hinge"):
        halved = {"beta": 0.05, **({"beta_rejected": 0.025} if name == "flex_dpo" else {})}
        expected = objective_loss(PAIR_OBJECTIVES.build(name, **halved), pair)
        torch.testing.assert_close(objective_loss(PAIR_OBJECTIVES.build(name), scaled), expected)


def test_the_sft_term_is_not_weighted_by_the_pair() -> None:
    """DPO + 0.2 NLL = 0.844138869382 on the worked pair, NLL 12.3 / 10."""
    pair = dataclasses.replace(worked_pair(), weight=torch.tensor([0.5], dtype=F64))
    got = objective_loss(PairObjective(sft_weight=0.2), pair)
    assert got.item() == pytest.approx(0.844138869382 - 0.5 * 0.598138869382, abs=1e-9)


def test_gradient_at_the_reference_is_half_of_beta() -> None:
    h = torch.zeros(1, dtype=F64, requires_grad=True)
    preference_loss(PairObjective(beta=0.4), PairValues(h, torch.zeros(1, dtype=F64))).sum().backward()
    torch.testing.assert_close(h.grad, torch.tensor([-0.2], dtype=F64))


def test_a_new_objective_is_one_function() -> None:
    """A toy: squared error to a margin of 1, on the mean of scores of its own column's choosing. Nothing else is touched."""

    @PAIR_OBJECTIVES.register("toy")
    def toy(*, beta: float = 1.0, pull: float = 2.0) -> PairObjective:
        return PairObjective(
            beta=beta, offset=1.0, outer=squared, weight=lambda columns: pull * columns["toy_weight"], columns=("toy_weight",)
        )

    try:
        named = PAIR_OBJECTIVES.parse("toy:pull=3,weight=0.5")
        # Delta = 2, so 3 * 0.25 * (2 - 1)^2
        loss = objective_loss(named.objective, worked_pair(toy_weight=0.25))
        assert loss.item() == pytest.approx(0.75, abs=1e-9)
        assert named.weight == 0.5
    finally:
        PAIR_OBJECTIVES.unregister("toy")


def test_what_a_loss_refuses() -> None:
    with pytest.raises(ValueError, match=r"beta_scale has shape \(2,\); expected one value per pair, \(3,\)"):
        preference_loss(PairObjective(), REWARDS, beta_scale=torch.ones(2))
    with pytest.raises(ValueError, match="compares with a reference, and the batch has no log-probabilities"):
        compute_rewards(PairObjective(), dataclasses.replace(worked_pair(), reference=None))
    with pytest.raises(ValueError, match="weights tokens, and only sums of log-probabilities are given"):
        objective_loss(PAIR_OBJECTIVES.build("ld_dpo"), only_sums(random_pairs()))


@pytest.mark.parametrize("name", ["dpo", "ipo", "ddo"])
def test_sums_of_the_reference_are_enough_where_tokens_count_alike(name: str) -> None:
    pairs = random_pairs()
    expected: Tensor = objective_loss(PAIR_OBJECTIVES.build(name), pairs)
    torch.testing.assert_close(objective_loss(PAIR_OBJECTIVES.build(name), only_sums(pairs)), expected, rtol=0, atol=0)


def only_sums(pairs: PairBatch) -> PairBatch:
    assert pairs.reference is not None
    return dataclasses.replace(pairs, reference=Logps(pairs.reference.sums))


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_betas_that_turn_the_preference_round(value: float) -> None:
    with pytest.raises(ValueError, match=rf"beta is {value}; expected a positive number"):
        PairObjective(beta=value)
    with pytest.raises(ValueError, match=rf"beta_rejected is {value}; expected a positive number"):
        PAIR_OBJECTIVES.build("flex_dpo", beta_rejected=value)


def test_a_doubtful_label_by_hand() -> None:
    """h_w - h_l = 2 and beta 0.1: 0.7 log(1 + e^-0.2) + 0.3 log(1 + e^0.2)."""
    batch = dataclasses.replace(worked_pair(), label_flip=torch.tensor([0.3], dtype=F64))
    expected = 0.7 * math.log1p(math.exp(-0.2)) + 0.3 * math.log1p(math.exp(0.2))
    assert objective_loss(PairObjective(beta=0.1), batch).item() == pytest.approx(expected, abs=1e-12)


# Those of images have their cells in ``test_image_objectives.py``.
NAMES = [name for name in PAIR_OBJECTIVES.names() if name not in IMAGE_OBJECTIVES and name != "nll"]


@pytest.mark.parametrize("name", NAMES)
def test_doubt_mixes_the_objectives_own_loss_with_that_of_the_swapped_pair(name: str) -> None:
    """Beside whatever flips the objective has itself: (1 - q) L + q L(swapped), pair by pair."""
    objective, pairs = PAIR_OBJECTIVES.build(name), random_pairs()
    doubt = torch.tensor([0.0, 0.1, 0.3, 0.5, 1.0], dtype=F64)
    sure, turned, mixed = (objective_loss(objective, dataclasses.replace(pairs, label_flip=flip)) for flip in (0.0, 1.0, doubt))
    torch.testing.assert_close(mixed, (1 - doubt) * sure + doubt * turned)
    assert not torch.allclose(sure, turned)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("asft", "cpo", "orpo")])
def test_doubt_of_one_is_the_swapped_pair(name: str) -> None:
    """Of all objectives without an SFT term, which stays with the chosen answer."""
    pairs = random_pairs()
    # Scores and visits are equal on both sides here: they don't change places.
    pairs = dataclasses.replace(pairs, columns={key: torch.ones(5, dtype=F64) for key in pairs.columns})
    objective = PAIR_OBJECTIVES.build(name)
    turned = objective_loss(objective, dataclasses.replace(pairs, label_flip=torch.ones(5, dtype=F64)))
    torch.testing.assert_close(turned, objective_loss(objective, swapped(pairs)))
