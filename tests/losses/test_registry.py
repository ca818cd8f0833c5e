"""What a user writes for an objective, and what is said where it can't be read."""

from pathlib import Path
from typing import Any

import pytest

from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_kernel import PairObjective
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.registry import Registry


def test_an_objective_with_its_parameters() -> None:
    named = PAIR_OBJECTIVES.parse(" flex_dpo: beta=0.2, beta_rejected = 0.02 ,weight=3")
    assert (named.name, named.weight) == ("flex_dpo", 3.0)
    assert named.objective == PairObjective(beta=0.2, rejected_scale=0.02 / 0.2)
    assert PAIR_OBJECTIVES.parse("dpo").objective == PairObjective()


def test_beta_is_for_those_that_have_one_and_say_none() -> None:
    assert PAIR_OBJECTIVES.parse("dpo", beta=0.3).objective.beta == 0.3
    assert PAIR_OBJECTIVES.parse("dpo:beta=0.2", beta=0.3).objective.beta == 0.2
    assert PAIR_OBJECTIVES.parse("simpo").objective.beta == 2.0
    assert PAIR_OBJECTIVES.parse("orpo", beta=0.3).objective.beta == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dop", "unknown pair objective 'dop'; did you mean 'dpo'?"),
        ("mpo:beta=0.1", "mpo is the sum dpo:weight=0.8,ddo:weight=0.2,nll; to change it, write it out"),
        ("xyzzy", "unknown pair objective 'xyzzy'; known: dpo, cdpo"),
        ("dpo:gamma=1", "objective dpo: 'gamma=1' is no parameter=value; parameters: beta, score, weight"),
        ("dpo:beta", "objective dpo: 'beta' is no parameter=value"),
        ("dpo:beta=0.1,beta=0.2", "objective dpo: beta is given twice"),
        ("dpo:beta=big", "dpo: beta is 'big'; expected a float"),
        ("dpo:beta=nan", "dpo: beta is 'nan'; expected a finite number"),
        ("dpo:beta=-1", "beta is -1.0; expected a positive number"),
        ("ipo:score=max", "ipo: score is 'max'; expected one of sum, mean"),
        ("kto_pair:detach_baseline=maybe", "kto_pair: detach_baseline is 'maybe'; expected true or false"),
        ("cdpo:label_smoothing=0.5", r"label_smoothing is 0.5; expected a number in \[0, 0.5\)"),
        ("rdpo:label_smoothing=0.5", r"label_smoothing is 0.5; expected a number in \[0, 0.5\)"),
        ("cdpo:label_smoothing=-0.1", "label_smoothing is -0.1"),
        ("ld_dpo:tail_weight=2", r"tail_weight is 2.0; expected a number in \[0, 1\]"),
        ("fdpo:divergence=alpha,divergence_coefficient=2", "divergence_coefficient is 2.0"),
        ("fdpo:divergence=chi2", "fdpo: divergence is 'chi2'; expected one of reverse-kl, forward-kl, js, alpha"),
        ("asft:temperature=0", "temperature is 0.0; expected a positive number"),
        ("ddo:rejected_weight=0", "rejected_weight is 0.0; expected a positive number"),
        ("madpo:weakest=2", "strongest is 2.0 and weakest 2.0"),
        ("dno:score_temperature=0", "score_temperature is 0.0"),
    ],
)
def test_what_cant_be_read(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PAIR_OBJECTIVES.parse(text)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="pair objective 'dpo' is already registered"):
        PAIR_OBJECTIVES.register("dpo")
    with pytest.raises(ValueError, match="objective dpo has no parameter 'gamma'; it has beta, score"):
        PAIR_OBJECTIVES.build("dpo", gamma=1)


@pytest.mark.parametrize(
    "texts", [["dpo", "flex_dpo:beta=0.2,weight=3"], ["dpo,flex_dpo:beta=0.2,weight=3"], ["dpo, flex_dpo, beta=0.2, weight=3"]]
)
def test_several_objectives_in_a_list_or_with_commas(texts: list[str]) -> None:
    first, second = PAIR_OBJECTIVES.parse_sum(texts, beta=0.4)
    assert (first.name, first.weight, first.objective.beta) == ("dpo", 1.0, 0.4)
    assert (second.name, second.weight, second.objective.beta) == ("flex_dpo", 3.0, 0.2)


@pytest.mark.parametrize("registry", [PAIR_OBJECTIVES, LIST_OBJECTIVES], ids=["pair", "list"])
def test_the_page_lists_every_objective_with_its_parameters(registry: Registry[Any]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5}
    for name in registry.names():
        for parameter in registry.parameters(name):
            assert f"`{parameter}`" in rows[name], f"{name}: {parameter}"
