"""``mmalign evaluate NAME`` with a model: put a benchmark's questions to it, or to one behind an endpoint, and score its answers."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.data.rejects import Rejects
from mmalign.data.workers import refuse_several
from mmalign.engine.beams import Beams
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.endpoint_answers import EndpointQuestions, ask_endpoint, connect_endpoint
from mmalign.evaluation.results import Result
from mmalign.evaluation.runner import find_unfinished, generate_answers
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import best_device, load_mllm
from mmalign.options.evaluate import EvaluateOptions
from mmalign.runs.cards import add_result
from mmalign.runs.evaluate import (
    Given,
    check_can_score,
    check_source,
    image_folder,
    load_benchmark,
    score_answers,
    score_saved,
    tell,
)


def run(options: EvaluateOptions) -> Result:
    """Answer the questions where a model is given, score the answers, print and save the result.

    Raises:
        ValueError: If not one of model, endpoint and answers is given, or something is missing or doesn't fit.
    """
    check_source(options)
    refuse_several("mmalign evaluate")
    return tell(options, evaluate(options))


def evaluate(options: EvaluateOptions) -> Result:
    """Return the result.

    Raises:
        ValueError: If data, answers, images or a judge are missing or don't fit.
    """
    return score_saved(options) if options.answers is not None else answer_and_score(options, load_benchmark(options))


class Loaded(NamedTuple):
    """A model in memory, its processor, and what it is: unfinished answers of another one are refused."""

    model: Any
    processor: Any
    source: str


def load_model(options: EvaluateOptions, *, source: str | None = None) -> Loaded:
    """Load the model that the options name; ``source`` is what ``identify`` says of it, where that is known already."""
    assert options.model is not None
    model, processor = load_mllm(options.model, dtype=options.dtype, quantization=options.quantization)
    return Loaded(model.to(best_device()), processor, source or identify(options))


def identify(options: EvaluateOptions) -> str:
    """Return the fingerprint of the model that the options name, as it is loaded."""
    assert options.model is not None
    return fingerprint_checkpoint(options.model, dtype=options.dtype, quantization=options.quantization)


def answer_and_score(options: EvaluateOptions, benchmark: Benchmark, *, loaded: Loaded | None = None) -> Result:
    """Ask the model or the endpoint that the options name, and score its answers.

    Args:
        options: What is asked, of whom, and how it is scored.
        benchmark: Its data.
        loaded: The model where it is in memory already; ``options.model`` is then its name, and no card is changed.

    Raises:
        ValueError: If images or a judge are missing, or answers don't fit.
    """
    given = answer_questions(options, benchmark, load=lambda: loaded or load_model(options))
    result = score_answers(options, benchmark, given)
    if options.model is not None:
        forget_unfinished(options, benchmark, given)
    if options.model is not None and loaded is None:
        add_result(Path(options.model), dataclasses.asdict(result))
    return result


def forget_unfinished(options: EvaluateOptions, benchmark: Benchmark, given: Given) -> None:
    """Remove what a stopped run would go on from, unless questions are left whose images may come to be there."""
    if len(given.answers) == len(asked(options, benchmark)):
        find_unfinished(given.path).unlink(missing_ok=True)


def check_can_answer(options: EvaluateOptions, benchmark: Benchmark) -> None:
    """Look, before a model is asked, for what can be missing then, or when its answers are scored.

    Raises:
        ValueError: If questions, the folder of the images, a judge, or what scoring needs are missing.
    """
    benchmark.questions()
    root = image_folder(options, benchmark)
    if not (root.is_dir() or (options.images is None and benchmark.holds_images)):
        raise UserError(f"no images at {root}; name their folder with --images")
    check_can_score(options, benchmark)


def _lengths(options: EvaluateOptions, benchmark: Benchmark) -> int | list[int]:
    """The longest answer; several where a benchmark asks for words and for texts."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    lengths = sorted({question.max_new_tokens for question in benchmark.questions()})
    return lengths[0] if len(lengths) == 1 else lengths


def asked(options: EvaluateOptions, benchmark: Benchmark) -> list[Question]:
    """What a model is asked, with what stands behind every question."""
    return [question._replace(prompt=question.prompt + options.prompt_suffix) for question in benchmark.questions()]


def answer_questions(options: EvaluateOptions, benchmark: Benchmark, *, load: Callable[[], Loaded]) -> Given:
    """Ask the model, which is loaded once nothing else is missing, or the endpoint; unfinished answers stay until the result is there.

    Raises:
        ValueError: If images, a judge or the folder to save answers in are missing.
    """
    if options.out is None:
        raise UserError("--out is missing: the folder that answers and result are saved in")
    check_can_answer(options, benchmark)
    questions = asked(options, benchmark)
    options.out.mkdir(parents=True, exist_ok=True)
    root = image_folder(options, benchmark)
    if options.images is None and benchmark.write_images(options.out / "images"):
        root = options.out / "images"
    rejects = Rejects(options.out / f"{options.benchmark}_rejects.jsonl", max_share=options.max_reject_share)
    path = options.out / f"{options.benchmark}_answers.jsonl"
    if options.endpoint is not None:
        return _ask_endpoint(options, benchmark, questions, root=root, rejects=rejects, path=path)
    model, processor, source = load()
    answers = generate_answers(
        model,
        processor,
        questions,
        image_root=root,
        out=path,
        rejects=rejects,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        beams=Beams(options.beams, options.length_penalty) if options.beams > 1 else None,
        source=source,
        keep=True,
    )
    decoding: dict[str, Any] = {"do_sample": False, "max_new_tokens": _lengths(options, benchmark), "prompt_suffix": options.prompt_suffix}
    if options.beams > 1:
        decoding |= {"num_beams": options.beams, "length_penalty": options.length_penalty}
    return Given(answers, path, decoding, options.allow_partial or rejects.num_rejected > 0)


def _ask_endpoint(
    options: EvaluateOptions, benchmark: Benchmark, questions: Sequence[Question], *, root: Path, rejects: Rejects, path: Path
) -> Given:
    """Ask a model behind an endpoint; its answers are kept one by one, so that a stopped run resumes with the rest."""
    requests = EndpointQuestions(questions, image_root=root, rejects=rejects, max_new_tokens=options.max_new_tokens)
    endpoint = connect_endpoint(
        options,
        model=str(options.endpoint_model),
        cache=path.with_name(f"{options.benchmark}_endpoint_cache.jsonl"),
        request=requests.request,
        usual={"temperature": 0},
    )
    answers = ask_endpoint(endpoint, requests, questions, out=path)
    decoding = {"endpoint": endpoint.decoding, "max_new_tokens": _lengths(options, benchmark), "prompt_suffix": options.prompt_suffix}
    return Given(answers, path, decoding, options.allow_partial or rejects.num_rejected > 0)
