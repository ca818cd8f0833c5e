"""What a reward model's margins are worth: accuracy, calibration and advice by hand."""

import math

import pytest

from mmalign.difficulty.rewards import TURNING_GAP, add_questions, summarise_margins


def test_the_turning_gap_is_madpos() -> None:
    assert pytest.approx(6.907, abs=1e-3) == TURNING_GAP


def test_accuracy_over_pairs_and_over_sources() -> None:
    found = summarise_margins({"a": [1.0, 2.0, -0.5, 0.0], "b": [-1.0], "empty": []})
    assert found["sources"] == {"a": {"num_pairs": 4, "accuracy": 2.5 / 4}, "b": {"num_pairs": 1, "accuracy": 0.0}}
    assert found["num_pairs"] == 5
    assert found["accuracy"] == pytest.approx(2.5 / 5)
    assert found["macro_accuracy"] == pytest.approx((2.5 / 4 + 0.0) / 2)
    assert found["log_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in (1.0, 2.0, -0.5, 0.0, -1.0)) / 5)


def test_calibration_in_bins() -> None:
    """Two margins in the least sure bin, of which one is right, and one sure one that is wrong."""
    odds = [math.log(p / (1 - p)) for p in (0.55, 0.58, 0.97)]
    found = summarise_margins({"all": [odds[0], -odds[1], -odds[2]]})
    low, high = found["calibration"]
    assert (low["from"], low["to"], low["num_pairs"], low["accuracy"]) == (0.5, 0.6, 2, 0.5)
    assert low["confidence"] == pytest.approx(0.565)
    assert (high["from"], high["to"], high["num_pairs"], high["accuracy"]) == (0.9, 1.0, 1, 0.0)
    assert found["calibration_error"] == pytest.approx((2 * 0.065 + 0.97) / 3)


def test_quantiles_and_advice() -> None:
    margins = [-1.0, 0.0, 1.0, 2.0, 3.0]
    found = summarise_margins({"all": margins})
    assert found["quantiles"] == pytest.approx({"0.05": -0.8, "0.25": 0.0, "0.5": 1.0, "0.75": 2.0, "0.95": 2.8})
    assert found["beyond_turning_gap"] == 0
    assert found["median_gap"] == 1.0
    assert found["advice"].startswith("100.0% of the pairs are below MADPO's turning gap 6.907; --objective madpo:turning_gap=1 ")
    above = summarise_margins({"all": [8.0, -9.0, 10.0]})
    assert (above["beyond_turning_gap"], above["advice"][:37]) == (1.0, "100.0% of the pairs are above MADPO's")
    assert summarise_margins({"all": [8.0, 1.0]})["advice"] is None
    assert summarise_margins({"all": [0.0, 0.0]})["advice"] is None


def test_no_pairs_say_nothing() -> None:
    assert summarise_margins({"all": []}) == {"num_pairs": 0}


def test_questions_of_several_pairs() -> None:
    """a: x has both right, y one of two, z a tie; b: one of one. A pair alone makes no question worth counting."""
    margins = {"a": {"x": [1.0, 2.0], "y": [1.0, -2.0], "z": [0.0]}, "b": {"w": [3.0]}, "none": {"v": []}}
    flat = {name: [value for own in rows.values() for value in own] for name, rows in margins.items()}
    told = summarise_margins(flat)
    add_questions(told, margins)
    assert (told["num_pairs"], told["num_questions"], told["all_right"]) == (6, 4, 0.5)
    assert told["sources"]["a"] == {"num_pairs": 5, "accuracy": 0.7, "num_questions": 3, "all_right": 1 / 3}
    assert told["sources"]["b"] == {"num_pairs": 1, "accuracy": 1.0, "num_questions": 1, "all_right": 1.0}
    alone = summarise_margins({"a": [1.0, -1.0]})
    add_questions(alone, {"a": {"x": [1.0], "y": [-1.0]}})
    assert "all_right" not in alone
