"""``mmalign judge-agreement``: how far two judges agree on the same answers, and what that does to the benchmark's metrics."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.agreement import Agreement, compute_agreement, judge_one_by_one
from mmalign.evaluation.answers import match_answers
from mmalign.evaluation.benchmark import Benchmark, compute_metrics
from mmalign.evaluation.intervals import Interval, compute_differences
from mmalign.evaluation.items import Item
from mmalign.evaluation.results import hash_files
from mmalign.files import write_whole
from mmalign.options.evaluate import EvaluateOptions
from mmalign.options.judge_agreement import JudgeAgreementOptions
from mmalign.runs.evaluate import judge_answers, load_benchmark
from mmalign.tables import text_table


@dataclass(frozen=True)
class Comparison:
    """Two judges of one benchmark's answers.

    Attributes:
        judges: Their names.
        agreements: By what they decide.
        metrics: Of the answers whose replies can be read of both: by the first, by the second, and the second less the first.
        files: sha256 of data, answers and judgements by name.
    """

    benchmark: str
    mode: str
    num_answers: int
    judges: tuple[str, str]
    agreements: Mapping[str, Agreement]
    metrics: Mapping[str, tuple[float, float, Interval]]
    files: Mapping[str, str]

    def to_json(self) -> str:
        """One JSON object."""
        shown = {
            name: {**asdict(one), "metrics": {key: value._asdict() for key, value in one.metrics.items()}}
            for name, one in self.agreements.items()
        }
        both = {key: {"first": a, "second": b, "difference": change._asdict()} for key, (a, b, change) in self.metrics.items()}
        return json.dumps({**asdict(self), "agreements": shown, "metrics": both}, indent=1)

    def to_text(self) -> str:
        """Tables for the terminal."""
        heading = f"{self.benchmark}, {self.mode}, {self.num_answers:,} judged answers: {self.judges[0]} (rows), {self.judges[1]} (columns)"
        parts = [heading, *(_agreement_text(name, one, self.judges) for name, one in self.agreements.items())]
        rows = [["metric", *self.judges, "difference"]]
        rows += [[key, f"{a:.4g}", f"{b:.4g}", _shown(change)] for key, (a, b, change) in self.metrics.items()]
        return "\n\n".join([*parts, text_table(rows)])


def run(options: JudgeAgreementOptions) -> None:
    """Compare, print and save.

    Raises:
        ValueError: If the benchmark asks no judge, or answers or judgements are missing or don't fit.
    """
    comparison, differing = compare_judges(options)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_whole(options.out / f"{options.benchmark}_agreement.json", comparison.to_json() + "\n")
        lines = "".join(json.dumps(row) + "\n" for row in differing)
        write_whole(options.out / f"{options.benchmark}_disagreements.jsonl", lines)
    print(comparison.to_json() if options.json else comparison.to_text())


def compare_judges(options: JudgeAgreementOptions) -> tuple[Comparison, list[dict[str, Any]]]:
    """Return the comparison, and the answers on which the judges differ, with both replies.

    Raises:
        ValueError: As ``run``.
    """
    shared = {name: getattr(options, name) for name in ("benchmark", "data", "answers", "mode", "questions", "judge_prompt")}
    names: list[str | None] = [*options.names] or [None, None]
    both = [EvaluateOptions(**shared, judgements=path, judge_model=name) for path, name in zip(options.judgements, names, strict=True)]
    benchmark = load_benchmark(both[0])
    if benchmark.judge_wording is None:
        raise UserError(f"{options.benchmark} asks no judge; expected mmhal, object-halbench, haloquest, hallusionbench or mmvp")
    rows = benchmark.read_answers(options.answers)
    answers = match_answers(rows, required=benchmark.required(), known=benchmark.known(), allow_partial=options.allow_partial)
    first, second = (_judge(one, benchmark, answers) for one in both)
    agreements = {
        name: compute_agreement(decision, first.items, second.items, resamples=options.resamples, seed=options.seed)
        for name, decision in benchmark.decisions.items()
    }
    comparison = Comparison(
        benchmark=options.benchmark,
        mode=options.mode,
        num_answers=len(first.items),
        judges=(first.name, second.name),
        agreements=agreements,
        metrics=_compare_metrics(options, benchmark, answers, (first, second)),
        files=hash_files([*benchmark.files, options.answers, *dict.fromkeys(options.judgements)]),
    )
    return comparison, _find_differing(benchmark, answers, first, second)


class _Judge(NamedTuple):
    """What one judge said of each answer, and the answers as scored by it; None is a reply that can't be read."""

    name: str
    replies: Mapping[str, str]
    items: Mapping[str, Item | None]


def _judge(options: EvaluateOptions, benchmark: Benchmark, answers: Mapping[str, str]) -> _Judge:
    judged = judge_answers(options, benchmark, answers)
    assert judged.replies is not None
    name = options.judge_model or str(judged.name)
    return _Judge(name, judged.replies, judge_one_by_one(benchmark, answers, judged.replies, mode=options.mode))


def _compare_metrics(
    options: JudgeAgreementOptions, benchmark: Benchmark, answers: Mapping[str, str], judges: tuple[_Judge, _Judge]
) -> dict[str, tuple[float, float, Interval]]:
    """Each metric by both judges, of the answers that both can score: scored together, since some metrics join answers."""
    kept = {i: answers[i] for i in judges[0].items if all(judge.items[i] is not None for judge in judges)}
    first, second = (benchmark.items(kept, mode=options.mode, judgements=judge.replies) for judge in judges)
    values, others = compute_metrics(type(benchmark), first), compute_metrics(type(benchmark), second)
    changes = compute_differences(type(benchmark), second, first, resamples=options.resamples, seed=options.seed)
    return {key: (values[key], others[key], change) for key, change in changes.items()}


def _find_differing(benchmark: Benchmark, answers: Mapping[str, str], first: _Judge, second: _Judge) -> list[dict[str, Any]]:
    rows = []
    for i in first.items:
        said = [{name: decision.find(one.items[i]) for name, decision in benchmark.decisions.items()} for one in (first, second)]
        if said[0] != said[1]:
            replies = {one.name: {"said": found, "reply": one.replies[i]} for one, found in zip((first, second), said, strict=True)}
            rows.append({"id": i, "response": answers[i], "judges": replies})
    return rows


def _agreement_text(name: str, agreement: Agreement, judges: tuple[str, str]) -> str:
    first, second, both = agreement.unreadable
    unreadable = f"{first} of {judges[0]}, {second} of {judges[1]}, {both} of both"
    lines = [f"{name}: {sum(map(sum, agreement.table)):,} answers; can't be read: {unreadable}"]
    lines.append(text_table([[key, _shown(value)] for key, value in agreement.metrics.items()]))
    table = [[value, *row] for value, row in zip(agreement.values, agreement.table, strict=True)]
    return "\n".join([*lines, text_table([["", *agreement.values], *table])])


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
