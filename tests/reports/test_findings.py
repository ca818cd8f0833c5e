"""The words follow from the numbers, whichever way these fall."""

from collections.abc import Mapping

import pytest

from mmalign.reports.comparison import EvalRun, Range, build_comparison
from mmalign.reports.findings import write_findings, write_headline

Ends = tuple[float, float]
NAMES = ("SFT", "DPO", "DA-DPO")


def build_run(name: str, *, sentence: float, recall: float = 0.9, f1: float = 0.8, **differences: Mapping[str, Ends]) -> EvalRun:
    """A run with differences from others, by their names."""
    metrics = {"chair/sentence": sentence, "chair/recall": recall, "chair/mentions": 3.0, "pope/f1": f1, "pope/yes_ratio": 0.5}
    ranges = {other: {key: Range(*ends) for key, ends in found.items()} for other, found in differences.items()}
    return EvalRun(name=name, metrics=metrics, num_answers={"pope": 1800, "chair": 300}, differences=ranges)


def findings(*runs: EvalRun) -> list[str]:
    return write_findings(build_comparison(runs), runs)


def test_headline_states_the_first_count_of_errors() -> None:
    runs = [build_run(name, sentence=share) for name, share in zip(NAMES, (0.66, 0.25, 0.21), strict=True)]
    headline = write_headline(build_comparison(runs), NAMES)
    assert headline == "Captions with an absent object: 66.0% with SFT, 25.0% with DPO and 21.0% with DA-DPO."
    alone = [EvalRun(name="A", metrics={"pope/f1": 0.5}, num_answers={})]
    assert write_headline(build_comparison(alone), ["A"]) == "F1: 50.0% with A."
    unknown = [EvalRun(name="A", metrics={"odd/thing": 1.0}, num_answers={})]
    assert write_headline(build_comparison(unknown), ["A"]) == ""


def test_better_worse_and_neither() -> None:
    """Fewer hallucinations and less coverage are both below zero: the one is better, the other worse."""
    ranges = {"chair/sentence": (-0.5, -0.3), "chair/recall": (-0.2, -0.1), "pope/f1": (-0.01, 0.02), "pope/yes_ratio": (0.1, 0.2)}
    runs = [build_run("SFT", sentence=0.66), build_run("DPO", sentence=0.25, recall=0.75, f1=0.81, SFT=ranges)]
    assert findings(*runs) == [
        "DPO against SFT, POPE: no clear difference in F1 (81.0 vs 80.0).",
        "DPO against SFT, CHAIR: better in captions with an absent object (25.0 vs 66.0); worse in coverage (75.0 vs 90.0).",
    ]


@pytest.mark.parametrize(
    ("ends", "words"),
    [((-0.3, -0.1), "better in"), ((0.1, 0.3), "worse in"), ((-0.1, 0.3), "no clear difference in"), ((0, 0), "no clear")],
)
def test_winner_flips_with_the_numbers(ends: tuple[float, float], words: str) -> None:
    runs = [build_run("SFT", sentence=0.66), build_run("DPO", sentence=0.4, SFT={"chair/sentence": ends})]
    assert findings(*runs)[0].startswith(f"DPO against SFT, CHAIR: {words}")


def test_each_model_is_compared_with_the_first_and_with_the_one_before() -> None:
    key = "chair/sentence"
    runs = [
        build_run("SFT", sentence=0.66),
        build_run("DPO", sentence=0.25, SFT={key: (-0.5, -0.3)}),
        build_run("DA-DPO", sentence=0.21, SFT={key: (-0.5, -0.4)}, DPO={key: (-0.1, 0.02)}),
    ]
    assert [sentence.partition(",")[0] for sentence in findings(*runs)] == ["DPO against SFT", "DA-DPO against SFT", "DA-DPO against DPO"]
    assert findings(*runs)[-1] == "DA-DPO against DPO, CHAIR: no clear difference in captions with an absent object (21.0 vs 25.0)."


def test_nothing_is_said_without_intervals() -> None:
    assert findings(build_run("SFT", sentence=0.66), build_run("DPO", sentence=0.25)) == []
