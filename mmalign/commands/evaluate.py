"""``mmalign evaluate pope | chair``."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``mmalign evaluate``."""

    benchmark: Literal["pope", "chair"] = field(metadata={"help": "pope or chair", "positional": True})
    data: Path = field(metadata={"help": "POPE: question file or folder of them; CHAIR: folder with chair.jsonl and synonyms.txt"})
    model: str | None = field(default=None, metadata={"help": "answer with this model: folder or hub id"})
    answers: Path | None = field(default=None, metadata={"help": "score these saved answers instead (JSONL: id, response)"})
    images: Path | None = field(default=None, metadata={"help": "folder of the images; DATA/images if not given"})
    out: Path | None = field(default=None, metadata={"help": "folder for answers and result; needed with --model"})
    mode: Literal["official", "strict"] = field(default="official", metadata={"help": "POPE's parser: the original's, or whole words"})
    allow_partial: bool = field(default=False, metadata={"help": "score although some questions have no answer"})
    max_new_tokens: int = field(default=64, metadata={"help": "longest answer in tokens"})
    batch_size: int = field(default=64, metadata={"help": "questions at once"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="auto", metadata={"help": "precision of the weights"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of questions has a broken image"})


def run(options: EvaluateOptions) -> None:
    """Answer the questions where a model is given, score the answers, print and save the result.

    Raises:
        ValueError: If model and answers are both given or both missing.
    """
    if (options.model is None) == (options.answers is None):
        raise ValueError("give either --model, to answer the questions, or --answers, to score saved ones")
    print(evaluate(options).to_json(indent=1))


def evaluate(options: EvaluateOptions, *, loaded: tuple[Any, Any] | None = None) -> Any:
    """Return the result; ``loaded`` is a model and processor that are in memory already."""
    from mmalign.commands.cards import add_result
    from mmalign.evaluation.answers import read_answers
    from mmalign.evaluation.chair import load_chair, score_chair
    from mmalign.evaluation.pope import load_pope, score_pope
    from mmalign.evaluation.results import Result, hash_files

    items: Any
    if options.benchmark == "pope":
        items, files = load_pope(options.data)
    else:
        items, words, files = load_chair(options.data)
    path, decoding = options.answers, None
    partial = options.allow_partial
    if path is None:
        path, num_rejected = _generate(options, [item.as_question() for item in items], loaded)
        decoding = {"do_sample": False, "max_new_tokens": options.max_new_tokens}
        partial = partial or num_rejected > 0
    answers = read_answers(path)
    if options.benchmark == "pope":
        metrics = score_pope(items, answers, mode=options.mode, allow_partial=partial)
    else:
        metrics = score_chair(items, answers, words, allow_partial=partial)
    result = Result(
        benchmark=options.benchmark,
        metrics=metrics,
        mode=options.mode if options.benchmark == "pope" else "words",
        num_answers=len(answers),
        data=hash_files(files),
        model=options.model,
        decoding=decoding,
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        result.write(options.out / f"{options.benchmark}.json")
    if options.model is not None:
        add_result(Path(options.model), dataclasses.asdict(result))
    return result


def _generate(options: EvaluateOptions, questions: Any, loaded: tuple[Any, Any] | None) -> tuple[Path, int]:
    from mmalign.data.rejects import Rejects
    from mmalign.evaluation.runner import generate_answers
    from mmalign.models.load import load_mllm

    if options.out is None or options.model is None:
        raise ValueError("--out is missing: the folder that answers and result are saved in")
    root = options.images or (options.data if options.data.is_dir() else options.data.parent) / "images"
    if not root.is_dir():
        raise ValueError(f"no images at {root}; name their folder with --images")
    model, processor = load_mllm(options.model, dtype=options.dtype) if loaded is None else loaded
    options.out.mkdir(parents=True, exist_ok=True)
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
    )
    return path, rejects.num_rejected
