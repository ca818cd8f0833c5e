"""``mmalign evaluate NAME``: answer a benchmark's questions where a model is given, and score the answers."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmalign.data.json_files import expected_form
from mmalign.data.rejects import Rejects
from mmalign.engine.reference_cache import fingerprint_checkpoint
from mmalign.errors import UserError
from mmalign.evaluation.amber import load_amber
from mmalign.evaluation.answers import Endings, Question, check_texts, count_endings, match_answers, read_answers, read_decoding
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.chair import Chair, load_chair
from mmalign.evaluation.hallusionbench import HallusionBench, find_codes, find_right, load_hallusionbench
from mmalign.evaluation.items import Item, items_path, make_chair_items, make_hallusion_items, make_pope_items, write_items
from mmalign.evaluation.judges.endpoint import OpenAIJudge, choose_key_variable, merge_decoding
from mmalign.evaluation.judges.local import LocalJudge, read_length
from mmalign.evaluation.judging import Judge, Replies, ask_judge, hash_text, read_judgements, strip_replies, write_judgements
from mmalign.evaluation.mme import load_mme
from mmalign.evaluation.mmhal import load_mmhal
from mmalign.evaluation.object_halbench import load_object_halbench
from mmalign.evaluation.object_words import find_mentions
from mmalign.evaluation.pope import Pope, load_pope, parse_official
from mmalign.evaluation.results import Result, differing, hash_files
from mmalign.evaluation.rows import read_text
from mmalign.evaluation.runner import generate_answers
from mmalign.evaluation.verdicts import UnreadableError
from mmalign.evaluation.yes_no import parse_strict
from mmalign.models.load import best_device, load_mllm
from mmalign.options.evaluate import EvaluateOptions
from mmalign.runs.cards import add_result

logger = logging.getLogger(__name__)


def run(options: EvaluateOptions) -> None:
    """Answer the questions where a model is given, score the answers, print and save the result.

    Raises:
        ValueError: If model and answers are both given or both missing.
    """
    if (options.model is None) == (options.answers is None):
        raise UserError("give either --model, to answer the questions, or --answers, to score saved ones")
    result = evaluate(options)
    print(result.to_json() if options.json else result.to_text())


def evaluate(options: EvaluateOptions, *, loaded: tuple[Any, Any] | None = None, benchmark: Benchmark | None = None) -> Result:
    """Return the result.

    Args:
        options: What is scored and how.
        loaded: A model and processor that are in memory already; ``options.model`` is then their name, and no card is changed.
        benchmark: Its data, where they are in memory already.

    Raises:
        ValueError: If data, answers, images or a judge are missing or don't fit.
    """
    benchmark = benchmark or load_benchmark(options)
    path, partial = options.answers, options.allow_partial
    if path is not None:
        with expected_form(path):
            decoding = read_decoding(path, benchmark.form)
    if path is None:
        path, num_rejected = _generate(options, benchmark, loaded)
        decoding = {"do_sample": False, "max_new_tokens": _lengths(options, benchmark), "prompt_suffix": options.prompt_suffix}
        partial = partial or num_rejected > 0
    with expected_form(path):
        rows = read_answers(path, benchmark.form, order=benchmark.required(), texts=benchmark.texts(), parts=benchmark.parts())
    answers = match_answers(rows, required=benchmark.required(), known=benchmark.known(), allow_partial=partial)
    endings = count_endings({row.id: row for row in reversed(rows) if row.id in answers}.values())
    _warn_of_reasoning("answers", endings, mode=options.mode, advice="raise --max-new-tokens")
    result, items = _score(options, benchmark, answers)
    result = dataclasses.replace(
        result,
        answers=hash_files([path]),
        decoding=decoding,
        model=options.model,
        num_at_limit=endings.at_limit,
        num_reasoned=endings.reasoned,
        num_unanswered=endings.unanswered,
    )
    _save(options, result, items)
    if options.model is not None and loaded is None:
        add_result(Path(options.model), dataclasses.asdict(result))
    return result


def _lengths(options: EvaluateOptions, benchmark: Benchmark) -> int | list[int]:
    """The longest answer; several where a benchmark asks for words and for texts."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    lengths = sorted({question.max_new_tokens for question in benchmark.questions()})
    return lengths[0] if len(lengths) == 1 else lengths


def _warn_of_reasoning(what: str, endings: Endings, *, mode: str, advice: str) -> None:
    if endings.reasoned:
        original = "; the original script would read all of it" if mode == "official" else ""
        logger.warning("%d %s hold reasoning: what stands behind it is scored%s", endings.reasoned, what, original)
    if endings.unanswered:
        logger.warning("%d %s ended inside their reasoning and are scored as empty; %s", endings.unanswered, what, advice)


def make_items(
    benchmark: Benchmark,
    answers: Mapping[str, str],
    *,
    mode: Literal["official", "strict"],
    judgements: Mapping[str, str] | None = None,
) -> list[Item]:
    """Return what a report shows of each answer; none where a benchmark has no such parts."""
    if isinstance(benchmark, Pope):
        return make_pope_items(benchmark.items, answers, parse=parse_official if mode == "official" else parse_strict)
    if isinstance(benchmark, Chair):
        # Places are known where words are looked up as they stand; singulars made by rule have none.
        words = benchmark.words if benchmark.how == "words" else None
        locate = None if words is None else lambda text: [(m.name, m.start, m.end) for m in find_mentions(text, words)]
        asked = benchmark.asked or [Question(i, None, "") for i in answers]
        return make_chair_items(asked, answers, truths=benchmark.truths, find=benchmark.find, locate=locate)
    if isinstance(benchmark, HallusionBench):
        answered = [item for item in benchmark.items if item.id in answers]
        codes = find_codes(answered, answers, mode=mode, judgements=judgements)
        return make_hallusion_items(answered, answers, right=find_right(answered, codes))
    return []


def load_benchmark(options: EvaluateOptions) -> Benchmark:
    """Read the benchmark's data.

    Raises:
        ValueError: If files are missing, damaged, or not of the benchmark's form.
    """
    with expected_form(options.data):
        benchmark = _load_benchmark(options)
        check_texts(getattr(benchmark, "items", ()), what=options.data)
        for question in getattr(benchmark, "asked", ()):
            if not (isinstance(question.prompt, str) and isinstance(question.image, str | None)):
                raise UserError(f"{options.data}: question {question.id!r} or its image is no text")
    return benchmark


def _load_benchmark(options: EvaluateOptions) -> Benchmark:
    if options.benchmark == "pope":
        return load_pope(options.data, answers=options.answers)
    if options.benchmark == "chair":
        return load_chair(options.data, variant=options.variant, answers=options.answers)
    if options.benchmark == "amber":
        return load_amber(options.data, similarity=options.similarity)
    if options.benchmark == "mme":
        return load_mme(options.data, answers=options.answers)
    if options.benchmark == "hallusionbench":
        return load_hallusionbench(options.data, which=options.questions, answers=options.answers)
    if options.benchmark == "mmhal":
        return load_mmhal(options.data, answers=options.answers)

    return load_object_halbench(options.data, answers=options.answers)


def build_judge(options: EvaluateOptions) -> Judge | None:
    """Return the judge that the options name, or None.

    Raises:
        ValueError: If an endpoint is named without a model, a model without an endpoint, or two judges.
    """
    if (options.judge_url is None) != (options.judge_model is None):
        raise UserError("a judge behind an endpoint needs both --judge-url and --judge-model")
    if sum(choice is not None for choice in (options.judge_url, options.judge, options.judgements)) > 1:
        raise UserError("give one of --judge-url, --judge and --judgements")
    if options.judge_url is None and options.judge is None:
        return None
    # Asking costs money or time: replies are kept even where no folder is named.
    folder = options.out or Path.home() / ".cache" / "mmalign"
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / f"{options.benchmark}_judge_cache.jsonl"
    if options.judge_url is not None:
        return OpenAIJudge(
            url=options.judge_url,
            model=str(options.judge_model),
            cache=cache,
            api_key_env=choose_key_variable(options.judge_key_env, options.judge_url),
            decoding=merge_decoding(options.judge_decoding),
            concurrency=options.judge_concurrency,
            max_retries=options.judge_retries,
            timeout=options.judge_timeout,
            option="--judge-decoding",
        )

    length = read_length(options.judge_decoding, default=1024, option="--judge-decoding")
    return LocalJudge(str(options.judge), cache=cache, max_new_tokens=length)


def check_can_answer(options: EvaluateOptions, benchmark: Benchmark) -> None:
    """Look, before a model is asked, for what can be missing then.

    Raises:
        ValueError: If questions, the folder of the images, or a judge are missing.
    """
    if benchmark.needs_judge and options.judge_url is options.judge is options.judgements is None:
        raise UserError(f"{options.benchmark} needs a judge: --judge-url with --judge-model, --judge, or saved --judgements")
    benchmark.questions()
    root = _image_folder(options, benchmark)
    if not (root.is_dir() or (options.images is None and benchmark.holds_images)):
        raise UserError(f"no images at {root}; name their folder with --images")


def _image_folder(options: EvaluateOptions, benchmark: Benchmark) -> Path:
    return options.images or benchmark.images_in(options.data if options.data.is_dir() else options.data.parent)


class _Judged(NamedTuple):
    """A judge's replies, and who said them, asked in which words and how."""

    replies: Replies
    name: str
    wording: str | None = None
    decoding: Mapping[str, Any] | None = None


def _score(options: EvaluateOptions, benchmark: Benchmark, answers: dict[str, str]) -> tuple[Result, list[Item]]:

    judged = _judge(options, benchmark, answers)
    judgements = None if judged is None else judged.replies.texts
    metrics = benchmark.score(answers, mode=options.mode, judgements=judgements)
    result = Result(
        benchmark=benchmark.name,
        metrics=metrics,
        other_mode=differing(metrics, _score_other(options, benchmark, answers, judgements) or metrics),
        mode=options.mode,
        variant=benchmark.variant(judged=judgements is not None),
        num_answers=len(answers),
        data=hash_files(benchmark.files),
    )
    if judged is not None:
        _warn_of_reasoning("judgements", judged.replies.endings, mode=options.mode, advice="raise the longest length in --judge-decoding")
        result = dataclasses.replace(
            result,
            judge=judged.name,
            judge_prompt=hash_text(judged.wording) if judged.wording else None,
            judge_decoding=judged.decoding,
            num_judgements_reasoned=judged.replies.endings.reasoned,
            num_judgements_unanswered=judged.replies.endings.unanswered,
        )
    return result, make_items(benchmark, answers, mode=options.mode, judgements=judgements)


def _score_other(
    options: EvaluateOptions, benchmark: Benchmark, answers: dict[str, str], judgements: dict[str, str] | None
) -> dict[str, float] | None:
    """Score in the mode that was not asked for; None where there is no other, or it can read nothing."""
    other: Literal["official", "strict"] = "strict" if options.mode == "official" else "official"
    try:
        return benchmark.score(answers, mode=other, judgements=judgements) if benchmark.has_strict else None
    except UnreadableError as error:
        logger.warning("there is no %s result: %s", other, error)
        return None


def _judge(options: EvaluateOptions, benchmark: Benchmark, answers: dict[str, str]) -> _Judged | None:
    """Return the judge's replies; None where no judge was asked for."""
    judge = build_judge(options)
    if judge is None and options.judgements is None:
        return None
    template = None if options.judge_prompt is None else read_text(options.judge_prompt)
    prompts = benchmark.judge_prompts(answers, template=template)
    if judge is None:
        path = Path(str(options.judgements))
        order = benchmark.required() or list(answers)
        with expected_form(path):
            replies = read_judgements(path, benchmark.judgement_form, asked=list(prompts), order=order)
        return _Judged(replies, f"saved in {path.name}")
    said = ask_judge(judge, prompts)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_judgements(options.out / f"{options.benchmark}_judgements.jsonl", said)
    return _Judged(strip_replies(said), judge.name, template or benchmark.judge_wording, judge.decoding)


def _generate(options: EvaluateOptions, benchmark: Benchmark, loaded: tuple[Any, Any] | None) -> tuple[Path, int]:

    if options.out is None or options.model is None:
        raise UserError("--out is missing: the folder that answers and result are saved in")
    check_can_answer(options, benchmark)
    questions = [question._replace(prompt=question.prompt + options.prompt_suffix) for question in benchmark.questions()]
    options.out.mkdir(parents=True, exist_ok=True)
    root = _image_folder(options, benchmark)
    if options.images is None and benchmark.write_images(options.out / "images"):
        root = options.out / "images"
    if loaded is None:
        model, processor = load_mllm(options.model, dtype=options.dtype, quantization=options.quantization)
        model = model.to(best_device())
    else:
        model, processor = loaded
    rejects = Rejects(options.out / f"{options.benchmark}_rejects.jsonl", max_share=options.max_reject_share)
    path = generate_answers(
        model,
        processor,
        questions,
        image_root=root,
        out=options.out / f"{options.benchmark}_answers.jsonl",
        rejects=rejects,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        source=options.model if loaded else fingerprint_checkpoint(options.model, dtype=options.dtype, quantization=options.quantization),
    )
    return path, rejects.num_rejected


def _save(options: EvaluateOptions, result: Result, items: list[Item]) -> None:

    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        result.write(options.out / f"{options.benchmark}.json")
        if items:
            write_items(items_path(options.out, options.benchmark), items)
