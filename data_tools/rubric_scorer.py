"""Scores of responses by a judge that sees the image and compares every two of them by a rubric of its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.language_models import load_language_model
from data_tools.sample_options import SampleOptions
from data_tools.scoring import Parts, Sampled, Scorer
from mmalign.errors import UserError
from mmalign.evaluation.judges.both_orders import PositionBias, RubricJudge, measure_position_bias
from mmalign.evaluation.judges.image_questions import ImageQuestions
from mmalign.evaluation.judges.looking import LookingJudge
from mmalign.evaluation.judges.rubric import Reading
from mmalign.evaluation.judging import Judge


class RubricScorer(Scorer):
    """Compares every two responses in both orders; a score is the share of the others that a response beats."""

    def __init__(self, judge: RubricJudge, *, reading: Reading) -> None:
        """Hold the judge."""
        self.judge, self.reading = judge, reading

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Win rates, 0 to 1; a response without words has none."""
        return [line["scores"] for line in self.lines(items, folder=folder)]

    def lines(self, items: Sequence[Sampled], *, folder: Path) -> list[dict[str, Any]]:
        """Return ``scores`` and the ``bias``: how the verdicts on an item's responses depend on the order."""
        spoken = [[text for text in item.responses if text.strip()] for item in items]
        rates, compared = self.judge.rate([(item.question, texts) for item, texts in zip(items, spoken, strict=True)])
        games, lines = iter(compared), []
        for item, texts, won in zip(items, spoken, rates, strict=True):
            different, own = len(set(texts)), iter(won)
            bias = measure_position_bias(islice(games, different * (different - 1) // 2), reading=self.reading)
            lines.append({"scores": [next(own) if text.strip() else None for text in item.responses], "bias": asdict(bias)})
        return lines

    def fault(self, lines: Iterable[Mapping[str, Any]]) -> str | None:
        """Say so where no comparison has a verdict: the judge can't do what it is asked."""
        bias = add_up(lines)
        if bias.pairs and bias.unknown == bias.pairs:
            return (
                f"none of {bias.pairs} comparisons has a verdict: {bias.inconsistent} of {2 * bias.pairs} replies contradict themselves or "
                "can't be read; try another judge, a larger --rubric-length, or --rubric-reading lenient"
            )
        return None

    def tell(self, lines: Iterable[Mapping[str, Any]]) -> str | None:
        """Tell how far the order decides."""
        bias = add_up(lines)
        share = "none" if bias.first_share is None else f"{bias.first_share:.1%}"
        return (
            f"{bias.pairs:,} comparisons, {bias.unknown:,} without a verdict, {bias.disagreements:,} in which the orders disagree; "
            f"{share} of the replies with a winner prefer what is shown first"
        )


def add_up(lines: Iterable[Mapping[str, Any]]) -> PositionBias:
    """Add the counts of all items."""
    held = [line["bias"] for line in lines]
    return PositionBias(**{one.name: sum(bias[one.name] for bias in held) for one in fields(PositionBias)})


def build_rubric(parts: Parts) -> RubricScorer:
    """Build the scorer that compares responses by a rubric.

    Raises:
        ValueError: If not one judge that sees the image is named.
    """
    options = parts.options
    questions = ImageQuestions(parts.root)
    judge = RubricJudge(
        parts.judge or _connect(options, questions), questions, length=options.rubric_length, reading=options.rubric_reading
    )
    return RubricScorer(judge, reading=options.rubric_reading)


def _connect(options: SampleOptions, questions: ImageQuestions) -> Judge:
    if options.llm is not None or (options.labeler is None) == (options.url is None):
        raise UserError("--scorer rubric needs a judge that sees the image: --labeler MODEL, or --url URL with --llm-name NAME")
    if options.labeler is not None:
        return LookingJudge(options.labeler, questions=questions, cache=options.out / "replies.jsonl", dtype=options.dtype)
    usual = {"temperature": 0}
    asked: Judge = load_language_model(options, out=options.out, decoding=usual, max_new_tokens=0, request=questions.request)
    return asked
