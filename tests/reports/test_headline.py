"""The words follow from the numbers, whichever way these fall."""

import math

import pytest

from mmalign.reports.headline import sampling_error, write_headline, write_verdicts
from tests.reports.example_runs import build_run, build_runs


@pytest.mark.parametrize(
    ("dpo", "da_dpo", "verdict"),
    [
        (0.25, 0.21, "Less hallucination"),
        (0.7, 0.8, "More hallucination"),
        (0.7, 0.21, "A mixed result"),
        (0.66, 0.21, "A mixed result"),
        (0.66, 0.66, "No change"),
    ],
)
def test_headline_follows_the_numbers(dpo: float, da_dpo: float, verdict: str) -> None:
    headline = write_headline(build_runs({"SFT": 0.66, "DPO": dpo, "DA-DPO": da_dpo}))
    assert headline == (
        f"{verdict}: 66.0% of the SFT model's captions name an object that is not there; "
        f"{100 * dpo:.1f}% after DPO and {100 * da_dpo:.1f}% after DA-DPO."
    )


def test_winner_flips_with_the_numbers() -> None:
    less = write_verdicts(build_runs({"SFT": 0.66, "DPO": 0.4, "DA-DPO": 0.2}))[0]
    more = write_verdicts(build_runs({"SFT": 0.66, "DPO": 0.2, "DA-DPO": 0.4}))[0]
    # By hand: shares with a success and a failure added are 121/302 and 61/302.
    tail = "here, by 20.0 points, which is beyond the sampling error of 7.1 points that 300 captions leave."
    assert less == f"DA-DPO hallucinates less than DPO {tail}"
    assert more == f"DA-DPO hallucinates more than DPO {tail}"


def test_small_difference_is_too_close_to_call() -> None:
    verdict = write_verdicts(build_runs({"SFT": 0.66, "DPO": 0.25, "DA-DPO": 0.21}))[0]
    assert verdict.startswith("DA-DPO hallucinates less than DPO here, by 4.0 points, which is within the sampling error of 6.7 points")
    assert verdict.endswith(": too close to call.")


def test_tie_at_the_shown_precision() -> None:
    assert write_verdicts(build_runs({"SFT": 0.66, "DPO": 0.25, "DA-DPO": 0.2502}))[0] == "DA-DPO and DPO hallucinate equally often here."


def test_difference_is_that_of_the_shown_values() -> None:
    """0.2504 and 0.2396 are shown as 25.0 and 24.0: a reader who subtracts must find what the sentence says."""
    assert "by 1.0 points" in write_verdicts(build_runs({"SFT": 0.66, "DPO": 0.2504, "DA-DPO": 0.2396}))[0]


def test_sampling_error_by_hand() -> None:
    expected = 1.96 * math.sqrt(0.25 / 102 + (1 / 12) * (11 / 12) / 12)
    assert sampling_error(0.5, 0.0, num_first=100, num_second=10) == pytest.approx(expected)
    assert sampling_error(0.0, 0.0, num_first=5, num_second=5) > 0.2, "none of five is not certainty"


def test_lost_coverage_is_said() -> None:
    kept = [build_run("SFT", sentence=0.6, recall=0.9), build_run("DPO", sentence=0.2, recall=0.9)]
    lost = [kept[0], build_run("DPO", sentence=0.2, recall=0.5)]
    assert write_verdicts(kept)[0] == (
        "Captions name 90.0% of the objects that are there with SFT, 90.0% with DPO: no gain was bought with silence."
    )
    assert write_verdicts(lost)[0].endswith("50.0% with DPO: DPO names less, so part of any gain may be silence.")


def test_best_on_pope_and_the_seed() -> None:
    models = [build_run("SFT", sentence=0.6, f1=0.8), build_run("DPO", sentence=0.2, f1=0.7), build_run("DA-DPO", sentence=0.2, f1=0.8)]
    assert write_verdicts(models)[2:] == [
        "On yes/no questions (POPE, F1) SFT and DA-DPO are best: SFT 80.0, DPO 70.0 and DA-DPO 80.0.",
        "This is one seed: another may order close results differently.",
    ]
    equal = build_runs({"SFT": 0.6, "DPO": 0.2})
    assert write_verdicts(equal)[1] == "On yes/no questions (POPE, F1) all are equal: SFT 80.0 and DPO 80.0."
