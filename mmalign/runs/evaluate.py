"""``mmalign evaluate NAME``: score answers to a benchmark's questions. What answers them is in ``answering``."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, Endings, count_endings, match_answers, shared_decoding
from mmalign.evaluation.benchmark import Benchmark, compute_metrics
from mmalign.evaluation.items import items_path, write_items
from mmalign.evaluation.judges.choice import choose_judge
from mmalign.evaluation.judges.replay import ReplayedJudge, is_cache
from mmalign.evaluation.judging import Judge, ask_judge, hash_text, needs_judge, read_judgements, strip_replies, write_judgements
from mmalign.evaluation.registry import find_benchmark
from mmalign.evaluation.results import Result, differing, hash_files
from mmalign.evaluation.rows import read_text
from mmalign.evaluation.verdicts import UnreadableError
from mmalign.files import expected_form
from mmalign.options.evaluate import EvaluateOptions, Mode

logger = logging.getLogger(__name__)


def run(options: EvaluateOptions) -> Result:
    """Score saved answers, print and save the result.

    Raises:
        ValueError: If a model is named too, or data, answers or a judge are missing or don't fit.
    """
    check_source(options)
    return tell(options, score_saved(options))


def check_source(options: EvaluateOptions) -> None:
    """Raise UserError if not one of model, endpoint and answers is given."""
    if sum(choice is not None for choice in (options.model, options.endpoint, options.answers)) != 1:
        raise UserError("give either --model or --endpoint, to answer the questions, or --answers, to score saved ones")


def tell(options: EvaluateOptions, result: Result) -> Result:
    """Print a result as asked for, and return it."""
    print(result.to_json() if options.json else result.to_text())
    return result


def score_saved(options: EvaluateOptions) -> Result:
    """Score the answers that the options name.

    Raises:
        ValueError: If data, answers or a judge are missing or don't fit.
    """
    benchmark = load_benchmark(options)
    return score_answers(options, benchmark, _read(options, benchmark))


class Given(NamedTuple):
    """Answers, the file that holds them, how they were generated, and whether some may be missing."""

    answers: Sequence[Answer]
    path: Path
    decoding: Mapping[str, Any] | None
    in_part: bool


def score_answers(options: EvaluateOptions, benchmark: Benchmark, given: Given) -> Result:
    """Match, judge and score answers; saved where ``options.out`` says.

    Raises:
        ValueError: If answers or a judge are missing or don't fit.
    """
    answers = match_answers(given.answers, required=benchmark.required(), known=benchmark.known(), allow_partial=given.in_part)
    endings = count_endings({row.id: row for row in reversed(given.answers) if row.id in answers}.values())
    _warn_of_reasoning("answers", endings, mode=options.mode, advice="raise --max-new-tokens")
    if empty := sum(not text.strip() for text in answers.values()) - endings.unanswered:
        logger.warning("%d of %d answers are empty, and are scored as they are; was every one of them asked for?", empty, len(answers))
    judged = judge_answers(options, benchmark, answers)
    _warn_of_reasoning("judgements", judged.endings, mode=options.mode, advice="raise the longest length in --judge-decoding")
    items = benchmark.items(answers, mode=options.mode, judgements=judged.replies)
    metrics = compute_metrics(type(benchmark), items) | benchmark.baselines(answers, mode=options.mode)
    result = Result(
        benchmark=benchmark.name,
        metrics=metrics,
        averages={key: words for key, words in benchmark.averages.items() if key in metrics},
        other_mode=differing(metrics, _score_other(options, benchmark, answers, judged.replies) or metrics),
        mode=options.mode,
        variant=benchmark.variant(judged=judged.replies is not None),
        num_answers=len(answers),
        num_different=len(set(answers.values())),
        num_at_limit=endings.at_limit,
        num_reasoned=endings.reasoned,
        num_unanswered=endings.unanswered,
        data=hash_files(benchmark.files),
        answers=hash_files([given.path]),
        decoding=given.decoding,
        model=options.model or options.endpoint_model,
        judge=judged.name,
        judge_prompt=hash_text(judged.wording) if judged.wording else None,
        judge_decoding=judged.decoding,
        num_judgements_reasoned=judged.endings.reasoned,
        num_judgements_unanswered=judged.endings.unanswered,
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_items(items_path(options.out, options.benchmark), items)
        result.write(options.out / f"{options.benchmark}.json")
    return result


def _read(options: EvaluateOptions, benchmark: Benchmark) -> Given:
    """Read saved answers, ours or others'."""
    path = Path(str(options.answers))
    rows = benchmark.read_answers(path)
    return Given(rows, path, shared_decoding(rows), options.allow_partial)


def _warn_of_reasoning(what: str, endings: Endings, *, mode: str, advice: str) -> None:
    if endings.reasoned:
        original = "; the original script would read all of it" if mode == "official" else ""
        logger.warning("%d %s hold reasoning: what stands behind it is scored%s", endings.reasoned, what, original)
    if endings.unanswered:
        logger.warning("%d %s ended inside their reasoning and are scored as empty; %s", endings.unanswered, what, advice)


def load_benchmark(options: EvaluateOptions) -> Benchmark:
    """Read the benchmark's data.

    Raises:
        ValueError: If files are missing, damaged, or not of the benchmark's form.
    """
    with expected_form(options.data):
        benchmark = find_benchmark(options.benchmark).load(options)
    benchmark.check_texts(options.data)
    return benchmark


def build_judge(options: EvaluateOptions) -> Judge | None:
    """Return the judge that the options name, or None; a cache of replies is a judge too.

    Raises:
        ValueError: As ``choose_judge``, and if there are saved judgements too.
    """
    named = options.judge_url is not None or options.judge is not None
    if options.judgements is not None:
        if named:
            raise UserError("give one of --judge-url, --judge and --judgements")
        return ReplayedJudge(options.judgements, model=options.judge_model) if is_cache(options.judgements) else None
    # Asking costs money or time: replies are kept even where no folder is named.
    folder = options.out or Path.home() / ".cache" / "mmalign"
    if named:
        folder.mkdir(parents=True, exist_ok=True)
    return choose_judge(options, cache=folder / f"{options.benchmark}_judge_cache.jsonl")


def check_can_score(options: EvaluateOptions, benchmark: Benchmark) -> None:
    """Score an answer that is made up: what a judge or a scorer lacks is told before hours of answering.

    Raises:
        ValueError: If a judge is missing or can't be asked so, or a package or its data are.
    """
    judge = build_judge(options)
    judged = judge is not None or options.judgements is not None
    if benchmark.needs_judge and not judged:
        raise needs_judge(options.benchmark)
    if judge is None and options.judgements is not None and not options.judgements.is_file():
        raise UserError(f"file not found: {options.judgements}")
    answers = dict.fromkeys(benchmark.required()[:1], "There is a dog on the table, and a person beside it.")
    if judged:
        benchmark.judge_prompts(answers, template=_read_template(options))
    # A rating is no list, and a list is no rating.
    with contextlib.suppress(UnreadableError):
        benchmark.items(answers, mode=options.mode, judgements=dict.fromkeys(answers, '["dog"]') if judged else None)


def _read_template(options: EvaluateOptions) -> str | None:
    return None if options.judge_prompt is None else read_text(options.judge_prompt)


def image_folder(options: EvaluateOptions, benchmark: Benchmark) -> Path:
    """Where the images are looked for."""
    return options.images or benchmark.images_in(options.data if options.data.is_dir() else options.data.parent)


class Judged(NamedTuple):
    """A judge's replies by id, how they ended, and who said them, asked in which words and how; nothing where no judge was asked for."""

    replies: dict[str, str] | None = None
    endings: Endings = Endings(0, 0, None)
    name: str | None = None
    wording: str | None = None
    decoding: Mapping[str, Any] | None = None


def _score_other(
    options: EvaluateOptions, benchmark: Benchmark, answers: dict[str, str], judgements: Mapping[str, str] | None
) -> dict[str, float] | None:
    """Score in the mode that was not asked for; None where there is no other, or it can read nothing."""
    other: Mode = "strict" if options.mode == "official" else "official"
    try:
        return benchmark.score(answers, mode=other, judgements=judgements) if benchmark.has_strict else None
    except UnreadableError as error:
        logger.warning("there is no %s result: %s", other, error)
        return None


def judge_answers(options: EvaluateOptions, benchmark: Benchmark, answers: Mapping[str, str]) -> Judged:
    """Ask the judge that the options name, or read what one said.

    Raises:
        ValueError: If a judge is named by half or twice, or saved replies don't cover the answers.
    """
    judge = build_judge(options)
    if judge is None and options.judgements is None:
        return Judged()
    template = _read_template(options)
    prompts = benchmark.judge_prompts(answers, template=template)
    if judge is None:
        path = Path(str(options.judgements))
        order = benchmark.required() or list(answers)
        replies = read_judgements(path, benchmark.judgement_form, asked=list(prompts), order=order)
        return Judged(*replies, f"saved in {path.name}")
    said = ask_judge(judge, prompts)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_judgements(options.out / f"{options.benchmark}_judgements.jsonl", said)
    return Judged(*strip_replies(said), judge.name, template or benchmark.judge_wording, judge.decoding)
