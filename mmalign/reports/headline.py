"""What the numbers say, in words that are computed from them: there is no preset winner."""

import math
from collections.abc import Sequence

from mmalign.reports.results_table import ModelRun, check_models, read_metric, to_percent

# Two-sided 95% of the normal distribution.
_Z95 = 1.96


def write_headline(models: Sequence[ModelRun]) -> str:
    """Say by how much each trained model hallucinates less or more than the first, in captions with an absent object.

    Raises:
        ValueError: If a model lacks the metric.
    """
    check_models(models)
    start, trained = models[0], models[1:]
    before = to_percent(read_metric(start, "chair/sentence"))
    after = {model.name: to_percent(read_metric(model, "chair/sentence")) for model in trained}
    values = _join([f"{value:.1f}% after {name}" for name, value in after.items()])
    text = f"{before:.1f}% of the {start.name} model's captions name an object that is not there; {values}."
    if all(value < before for value in after.values()):
        verdict = "Less hallucination"
    elif all(value > before for value in after.values()):
        verdict = "More hallucination"
    elif all(value == before for value in after.values()):
        verdict = "No change"
    else:
        verdict = "A mixed result"
    return f"{verdict}: {text}"


def write_verdicts(models: Sequence[ModelRun]) -> list[str]:
    """Say what the headline leaves open: the trained models against each other, the price in coverage, and how far to trust it.

    Raises:
        ValueError: If a model lacks a metric.
    """
    check_models(models)
    start, trained = models[0], models[1:]
    sentences = [_compare_captions(challenger, trained[0]) for challenger in trained[1:]]
    sentences.append(_describe_coverage(start, trained))
    sentences.append(_describe_pope(models))
    sentences.append("This is one seed: another may order close results differently.")
    return sentences


def sampling_error(first: float, second: float, *, num_first: int, num_second: int) -> float:
    """Half-width of the 95% interval of the difference of two independent shares (Agresti and Caffo, 2000).

    It adds a success and a failure to each sample, so that 0 of 5 does not pass for certainty. The models describe the same
    images, so the true error is usually smaller.
    """
    adjusted = [((share * number + 1) / (number + 2), number + 2) for share, number in ((first, num_first), (second, num_second))]
    return _Z95 * math.sqrt(sum(share * (1 - share) / number for share, number in adjusted))


def _compare_captions(challenger: ModelRun, rival: ModelRun) -> str:
    shares = read_metric(challenger, "chair/sentence"), read_metric(rival, "chair/sentence")
    difference = round(to_percent(shares[0]) - to_percent(shares[1]), 1)
    if difference == 0:
        return f"{challenger.name} and {rival.name} hallucinate equally often here."
    word = "less" if difference < 0 else "more"
    counts = challenger.num_answers["chair"], rival.num_answers["chair"]
    error = round(100 * sampling_error(*shares, num_first=counts[0], num_second=counts[1]), 1)
    text = f"{challenger.name} hallucinates {word} than {rival.name} here, by {abs(difference):.1f} points"
    if abs(difference) <= error:
        return f"{text}, which is within the sampling error of {error:.1f} points that {min(counts):,} captions leave: too close to call."
    return f"{text}, which is beyond the sampling error of {error:.1f} points that {min(counts):,} captions leave."


def _describe_coverage(start: ModelRun, trained: Sequence[ModelRun]) -> str:
    before = to_percent(read_metric(start, "chair/recall"))
    after = {model.name: to_percent(read_metric(model, "chair/recall")) for model in trained}
    values = _join([f"{value:.1f}% with {name}" for name, value in after.items()])
    text = f"Captions name {before:.1f}% of the objects that are there with {start.name}, {values}"
    losers = [name for name, value in after.items() if value < before]
    if losers:
        return f"{text}: {_join(losers)} {'names' if len(losers) == 1 else 'name'} less, so part of any gain may be silence."
    return f"{text}: no gain was bought with silence."


def _describe_pope(models: Sequence[ModelRun]) -> str:
    scores = {model.name: to_percent(read_metric(model, "pope/f1")) for model in models}
    best = [name for name, score in scores.items() if score == max(scores.values())]
    values = _join([f"{name} {score:.1f}" for name, score in scores.items()])
    if len(best) == len(scores):
        return f"On yes/no questions (POPE, F1) all are equal: {values}."
    return f"On yes/no questions (POPE, F1) {_join(best)} {'is' if len(best) == 1 else 'are'} best: {values}."


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
