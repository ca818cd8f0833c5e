"""Objectives over cells of images and responses: values by hand, second derivations, gradients, and what is refused."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.image_terms import CHOSEN, REJECTED, Cell, CellLogps, Term, cell_rewards, terms_loss
from mmalign.losses.pair_kernel import PairBatch, PairObjective, PairValues, objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import Logps, ScoredTokens, changed_weights
from tests.losses.objective_cases import softplus
from tests.losses.pair_example import F64, make_batch, tokens_with_sum, worked_pair

LENGTHS = {"chosen": 10, "rejected": 14, "other": 7}
IMAGES = ("own", "weakened", "other", "none")
CELLS = [Cell(image, response) for image in IMAGES for response in LENGTHS]
# Log-ratios of the worked pair's other cells, in nats; its own ones are 0.8 and -1.2.
RATIOS = {
    "own": {"chosen": 0.8, "rejected": -1.2, "other": -0.4},
    "weakened": {"chosen": 0.3, "rejected": -0.9, "other": 0.1},
    "other": {"chosen": -0.6, "rejected": 0.5, "other": 1.1},
    "none": {"chosen": 0.2, "rejected": -0.3, "other": -0.1},
}


def tokens_of(count: int, pairs: int) -> ScoredTokens:
    return ScoredTokens(torch.arange(pairs).repeat_interleave(count), pairs, torch.arange(count * pairs))


def worked() -> PairBatch:
    """The worked pair of ``pair_example.py``, with all cells beside it."""
    pair = worked_pair()
    assert pair.reference is not None
    cells = {}
    for number, cell in enumerate(CELLS):
        count = LENGTHS[cell.response]
        reference = tokens_with_sum(-11.0 - number, count, seed=number)
        policy = reference + RATIOS[cell.image][cell.response] * tokens_with_sum(1.0, count, seed=40 + number)
        if cell in (CHOSEN, REJECTED):
            side = pair.tokens.response == int(cell == REJECTED)
            policy, reference = (logps.token_logps[side] for logps in (pair.policy, pair.reference) if logps.token_logps is not None)
        tokens = tokens_of(count, 1)
        cells[cell] = CellLogps(tokens, logps_of(tokens, policy), logps_of(tokens, reference))
    return dataclasses.replace(pair, cells=cells, divergence=PairValues(torch.tensor([0.7], dtype=F64), torch.tensor([1.9], dtype=F64)))


def logps_of(tokens: ScoredTokens, values: Tensor) -> Logps:
    return Logps(tokens.sums(values), values)


def h(image: str, response: str) -> float:
    return RATIOS[image][response]


def sp(difference: float, beta: float = 0.1) -> float:
    return softplus(-beta * difference)


class Case(NamedTuple):
    """An objective at some hyper-parameters, its value on the worked pair, and the sum by hand."""

    name: str
    parameters: dict[str, Any]
    value: float
    formula: Callable[[], float]


D = 2.0
CASES = [
    # differences 2, 0.5, 0.8
    Case("mdpo", {}, 1.9205, lambda: sp(D) + sp(0.8 - 0.3) + sp(0.8)),
    Case("mdpo", {"image_weight": 3.0, "anchor_weight": 0.0}, 2.6035, lambda: sp(D) + 3 * sp(0.5)),
    # sp(-(0.08 - 0.05))
    Case("anchor", {"anchor": 0.05}, 0.6783, lambda: softplus(-(0.08 - 0.05))),
    Case("anchor", {"beta": 1.0}, 0.3711, lambda: sp(0.8, 1.0)),
    # chosen: own 0.8, none 0.2, other -0.6; the other answer: other 1.1, none -0.1, own -0.4
    Case("svco", {}, 2.6307, lambda: sp(0.6) + sp(0.8) + sp(1.2) + sp(0.3)),
    Case(
        "symmpo",
        {},
        2.5151,
        lambda: sp(D) + 0.5 * (sp(0.8 + 0.4) + sp(1.1 + 0.6)) + sp(0.8) + sp(1.1) + 1e-4 * (1.2 - 1.7) ** 2,
    ),
    Case("opa", {}, 1.3858, lambda: sp(D) + 0.2 * sp(0.5) + sp(0.8)),
    # All tokens of the worked pair are changed ones: 4 * (2 + 0.5) - 0.1 * (1.9 - 0.7)
    Case("chip", {}, 0.3165, lambda: sp(4 * (D + 0.8 - 0.3) - 0.1 * (1.9 - 0.7))),
    Case("chip", {"changed_weight": 1.0, "kl_weight": 1.0}, 0.6303, lambda: sp(D + 0.5 - 1.2)),
]


def test_every_image_objective_is_tested() -> None:
    assert {case.name for case in CASES} | {"vdpo", "tpo_token"} == set(IMAGE_OBJECTIVES)
    assert set(IMAGE_OBJECTIVES) <= set(PAIR_OBJECTIVES.names())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_worked_value(case: Case) -> None:
    loss = objective_loss(PAIR_OBJECTIVES.build(case.name, **case.parameters), worked()).item()
    assert loss == pytest.approx(case.formula(), abs=1e-12)
    assert loss == pytest.approx(case.value, abs=5e-5), "computed once by hand, to four places"


def test_vdpo_guides_the_policy_alone() -> None:
    """Both answers: g s(y|m) - (g - 1) s(y|m0) less the reference."""
    batch = worked()
    own, weakened = (
        [batch.cells[Cell(image, side)].policy.sums.item() for side in ("chosen", "rejected")] for image in ("own", "weakened")
    )
    assert batch.reference is not None
    reference = batch.reference.sums.tolist()
    score = [1.5 * own[i] - 0.5 * weakened[i] - reference[i] for i in (0, 1)]
    loss = objective_loss(PAIR_OBJECTIVES.build("vdpo"), batch).item()
    assert loss == pytest.approx(sp(score[0] - score[1]), abs=1e-12)


def test_vdpo_sends_no_gradient_through_the_weakened_image() -> None:
    batch = worked()
    weakened = batch.cells[Cell("weakened", "chosen")]
    values = weakened.policy.sums.clone().requires_grad_()
    cells = {**batch.cells, Cell("weakened", "chosen"): dataclasses.replace(weakened, policy=Logps(values))}
    own = batch.policy.sums.clone().requires_grad_()
    moved = dataclasses.replace(batch, cells=cells, policy=Logps(own, batch.policy.token_logps))
    objective_loss(PAIR_OBJECTIVES.build("vdpo", guidance=3.0), moved).sum().backward()
    assert values.grad is None or not values.grad.any()
    # d sp(-z) / dz = -sigmoid(-z), and z = 0.1 (3 s_w - ...)
    plain = objective_loss(PAIR_OBJECTIVES.build("vdpo", guidance=3.0), batch).item()
    assert own.grad is not None
    assert own.grad[0].item() == pytest.approx(-0.3 * (1 - math.exp(-plain)), abs=1e-12)


def test_tpo_token_by_hand() -> None:
    """Two tokens chosen, one rejected; logits given the own image, given the weakened one, of policy and reference."""
    logits = {
        "policy": {"own": [[2.0, 1.0], [0.5]], "weakened": [[1.0, 1.5], [0.7]]},
        "reference": {"own": [[1.8, 1.2], [0.6]], "weakened": [[1.1, 1.2], [0.2]]},
    }
    logps = {"policy": [[-0.5, -1.0], [-2.0]], "reference": [[-0.7, -0.9], [-1.5]]}

    def given(model: str, image: str, side: int) -> Logps:
        values = torch.tensor(logps[model][side], dtype=F64)
        return Logps(values.sum()[None], values, torch.tensor(logits[model][image][side], dtype=F64))

    def both(model: str) -> Logps:
        sides = [given(model, "own", side) for side in (0, 1)]
        parts = [[getattr(one, name) for one in sides] for name in ("sums", "token_logps", "token_logits")]
        return Logps(*(torch.cat(part) for part in parts))

    tokens = ScoredTokens(torch.tensor([0, 0, 1]), 2, torch.tensor([5, 6, 7]))
    cells = {
        Cell("weakened", name): CellLogps(
            tokens_of((2, 1)[side], 1), given("policy", "weakened", side), given("reference", "weakened", side)
        )
        for side, name in enumerate(("chosen", "rejected"))
    }
    batch = PairBatch(tokens, both("policy"), both("reference"), cells=cells)  # type: ignore[arg-type]

    def bonus(model: str, side: int) -> float:
        total = 0.0
        for own, weakened in zip(logits[model]["own"][side], logits[model]["weakened"][side], strict=True):
            sigmoid = 1 / (1 + math.exp(weakened - own))
            total += math.log(sigmoid + 0.5 if side == 0 else 1.5 - sigmoid)
        return total

    score = [
        sum(logps["policy"][side]) + bonus("policy", side) - sum(logps["reference"][side]) - bonus("reference", side) for side in (0, 1)
    ]
    loss = objective_loss(PAIR_OBJECTIVES.build("tpo_token"), batch).item()
    assert loss == pytest.approx(sp(score[0] - score[1]), abs=1e-12)
    # Where both images give the same logits, c is 1 and what is left is DPO.
    same = {
        cell: dataclasses.replace(one, policy=given("policy", "own", side), reference=given("reference", "own", side))
        for side, (cell, one) in enumerate(cells.items())
    }
    blind = objective_loss(PAIR_OBJECTIVES.build("tpo_token"), dataclasses.replace(batch, cells=same))
    torch.testing.assert_close(blind, objective_loss(PAIR_OBJECTIVES.build("dpo"), batch))


@pytest.mark.parametrize("name", [case.name for case in CASES if not case.parameters])
def test_gradient(name: str) -> None:
    """By every cell's tokens, against finite differences."""
    batch, objective = worked(), PAIR_OBJECTIVES.build(name)
    read = objective.cells

    def loss(own: Tensor, *others: Tensor) -> Tensor:
        policy = logps_of(batch.tokens, own)
        sides = {cell: own[batch.tokens.response == side] for side, cell in enumerate((CHOSEN, REJECTED))}
        given = {**dict(zip(read, others, strict=True)), **{cell: sides[cell] for cell in read if cell in sides}}
        cells = {
            cell: dataclasses.replace(one, policy=logps_of(one.tokens, given[cell])) if cell in given else one
            for cell, one in batch.cells.items()
        }
        return objective_loss(objective, dataclasses.replace(batch, policy=policy, cells=cells))

    inputs = [batch.policy.token_logps, *(batch.cells[cell].policy.token_logps for cell in read)]
    moved = [value.clone().requires_grad_() for value in inputs if value is not None]
    assert torch.autograd.gradcheck(loss, moved)
    grads = torch.autograd.grad(loss(*moved).sum(), moved, allow_unused=True)
    used = [grad is not None and bool(grad.any()) for grad in grads[1:]]
    assert used == [cell not in (CHOSEN, REJECTED) for cell in read]


def test_a_model_that_sees_nothing_gets_no_gradient_from_the_image() -> None:
    """Two equal images: the image's term is log 2 and pushes nothing."""
    batch = worked()
    cells = {**batch.cells, Cell("weakened", "chosen"): batch.cells[CHOSEN]}
    blind = objective_loss(PAIR_OBJECTIVES.build("mdpo", anchor_weight=0.0), dataclasses.replace(batch, cells=cells))
    torch.testing.assert_close(blind, objective_loss(PAIR_OBJECTIVES.build("dpo"), batch) + math.log(2))


def test_symmpo_is_symmetric_in_the_two_images() -> None:
    """With the answers' anchors equal in weight, the terms of images stay when all is exchanged; the pair's own term is DPO's."""
    objective = PAIR_OBJECTIVES.build("symmpo")
    batch = worked()
    turned = {"own": "other", "other": "own", "chosen": "other", "rejected": "rejected"}
    exchanged: dict[Cell, CellLogps] = dict(batch.cells)
    for cell in objective.cells:
        exchanged[cell] = batch.cells[Cell(turned[cell.image], {"chosen": "other", "other": "chosen"}[cell.response])]  # type: ignore[arg-type]
    torch.testing.assert_close(objective_loss(objective, dataclasses.replace(batch, cells=exchanged)), objective_loss(objective, batch))


def test_beta_of_difficulty_weight_and_doubt_reach_the_terms() -> None:
    batch, objective = worked(), PAIR_OBJECTIVES.build("anchor")
    harder = dataclasses.replace(batch, beta_scale=torch.tensor([2.0], dtype=F64), weight=torch.tensor([0.5], dtype=F64))
    assert objective_loss(objective, harder).item() == pytest.approx(0.5 * sp(0.8, 0.2), abs=1e-12)
    doubted = dataclasses.replace(batch, label_flip=torch.tensor([0.25], dtype=F64))
    assert objective_loss(objective, doubted).item() == pytest.approx(0.75 * sp(0.8), abs=1e-12)


def test_missing_cells_and_references_are_named() -> None:
    batch = worked()
    with pytest.raises(ValueError, match="reads chosen given the weakened image, and the batch has no such cell"):
        objective_loss(PAIR_OBJECTIVES.build("mdpo"), dataclasses.replace(batch, cells={CHOSEN: batch.cells[CHOSEN]}))
    without: Mapping[Cell, CellLogps] = {cell: dataclasses.replace(one, reference=None) for cell, one in batch.cells.items()}
    with pytest.raises(ValueError, match="compares cells with a reference"):
        objective_loss(PAIR_OBJECTIVES.build("mdpo"), dataclasses.replace(batch, cells=without))
    with pytest.raises(ValueError, match=r"guidance is 1.0; expected more than 1"):
        PAIR_OBJECTIVES.build("vdpo", guidance=1.0)


def test_a_new_objective_is_a_sum_of_terms() -> None:
    """What a user writes: prefer the own image to none at all, three nats apart, with its own beta."""
    term = Term(CHOSEN, Cell("none", "chosen"), weight=2.0, beta_scale=5.0, offset=0.3)
    objective = PairObjective(beta=0.1, terms=(term,))
    assert objective.cells == (CHOSEN, Cell("none", "chosen"))
    rewards = cell_rewards(objective.cells, worked().cells)
    assert terms_loss((term,), rewards, beta=0.1).item() == pytest.approx(2 * softplus(-(0.5 * 0.6 - 0.3)), abs=1e-12)
    assert objective_loss(objective, worked()).item() == pytest.approx(sp(D) + 2 * softplus(0.0), abs=1e-12)


def test_changed_words_are_those_outside_long_shared_runs() -> None:
    ids = torch.tensor([1, 2, 3, 4, 9, 5, 6, 1, 2, 3, 4, 8, 8, 5, 6])
    tokens = ScoredTokens(torch.tensor([0] * 7 + [1] * 8), 2, ids)
    found = changed_weights(tokens, weight=5.0).tolist()
    # 1 2 3 4 is shared; 5 6 is too short to count as shared.
    assert found == [1, 1, 1, 1, 5, 5, 5, 1, 1, 1, 1, 5, 5, 5, 5]
    assert changed_weights(tokens, weight=5.0, shortest=2).tolist() == [1, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 5, 5, 1, 1]


def test_pairs_beside_each_other_do_not_mix() -> None:
    """Two different pairs in a batch: each has the loss that it has alone."""
    first, objective = worked(), PAIR_OBJECTIVES.build("svco")
    batch = make_batch([torch.zeros(1, dtype=F64)] * 4, [torch.zeros(1, dtype=F64)] * 4)
    cells = {}
    for cell in objective.cells:
        one = first.cells[cell]
        assert one.reference is not None
        tokens = ScoredTokens(torch.tensor([0, 1]), 2)
        cells[cell] = CellLogps(
            tokens, Logps(torch.cat([one.policy.sums, 3 * one.policy.sums])), Logps(torch.cat([one.reference.sums, 2 * one.reference.sums]))
        )
    got = objective_loss(objective, dataclasses.replace(batch, cells=cells))
    assert got[0].item() == pytest.approx(objective_loss(objective, first).item(), abs=1e-12)
    assert got[1].item() != pytest.approx(got[0].item(), abs=1e-3)
