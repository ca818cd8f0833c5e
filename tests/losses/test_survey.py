"""Every objective stands on the survey's axes, the page says so, and the tags are true of the objectives."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_kernel import objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import SUM, Logps
from tests.losses.pair_example import COLUMNS, F64, make_batch
from tests.losses.survey import MEANINGS, PART, TAGS, names, words, write_survey

PAIRS, LISTS = PAIR_OBJECTIVES.names(), LIST_OBJECTIVES.names()


def test_every_name_has_four_tags_that_the_axes_know() -> None:
    assert sorted(TAGS) == sorted(names()), "a new objective stands in tests/losses/survey.py too"
    for name, tags in TAGS.items():
        for cell, (axis, meanings) in zip(tags, MEANINGS.items(), strict=True):
            assert set(words(cell)) <= meanings.keys(), f"{name}: {axis}"


def test_the_page_has_the_survey() -> None:
    assert PART.read() == write_survey(), "run python -m tests.losses.survey --write"


@pytest.mark.parametrize("name", PAIRS)
def test_tags_of_pairs(name: str) -> None:
    objective, tags = PAIR_OBJECTIVES.build(name), TAGS[name]
    assert ("free" in words(tags.constraint)) is not objective.uses_reference
    assert ("images" in words(tags.data)) is any(cell.image != "own" for cell in objective.cells)
    assert bool({"distinguishability", "step"} & set(words(tags.data))) is bool(objective.columns)
    if "length" in words(tags.model) and name != "nll":
        assert objective.score is not SUM
    assert not {"list-wise", "dynamic"} & {*words(tags.data), *words(tags.constraint)}


@pytest.mark.parametrize("name", LISTS)
def test_tags_of_lists(name: str) -> None:
    objective, tags = LIST_OBJECTIVES.build(name), TAGS[name]
    assert words(tags.data)[0] == "list-wise"
    assert ("dynamic" in words(tags.constraint)) is ("online" in words(tags.framework)) is objective.sampled
    if "length" in words(tags.model):
        assert objective.score is not SUM


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in IMAGE_OBJECTIVES])
def test_likelihood_is_a_stronger_pull_on_the_chosen_answer(name: str) -> None:
    """Answers alike in length, tokens and log-probabilities, policy and reference the same: else both are moved as much."""
    chosen, rejected = _pull(name)
    assert chosen < 0, "a step makes the chosen answer likelier"
    if "likelihood" in words(TAGS[name].model):
        assert -chosen > rejected + 1e-3
    else:
        assert -chosen == pytest.approx(rejected)


def _pull(name: str) -> tuple[float, float]:
    """Derivatives of the loss by the first token's log-probability of the chosen and of the rejected answer."""
    objective = PAIR_OBJECTIVES.build(name)
    values = torch.full((4,), -0.7, dtype=F64)
    better = {name: torch.full((1,), 3.0, dtype=F64) for name in ("score_chosen", "visits_chosen")}
    columns = {column: torch.ones(1, dtype=F64) for column in COLUMNS} | better
    batch = make_batch([values, values], [values, values], token_ids=torch.arange(8), columns=columns)

    def loss(moved: Tensor) -> Tensor:
        return objective_loss(objective, dataclasses.replace(batch, policy=Logps(batch.tokens.sums(moved), moved)))

    moved = torch.cat([values, values]).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(moved).sum(), moved)
    return gradient[0].item(), gradient[4].item()
