"""Make pairs from images alone: sample responses from the model that is to be aligned, score them, and pair the best with the worst.

    python data_tools/sample_pairs.py photos/ --prompts "Describe the image." --model policy/ --scorer mllm --labeler big/ --out sampled
    python data_tools/sample_pairs.py questions.jsonl --image-root photos/ --model policy/ --scorer judge --llm judge/ --out sampled
    python data_tools/sample_pairs.py world/eval --model policy/ --scorer truth --out sampled

SOURCE is a folder of images, each asked all --prompts; a JSONL file of id, image, prompt (and reference, for --scorer judge, or answer, for
--scorer answers: a text, or a list of right ones); or a folder with chair.jsonl and synonyms.txt, which say what each image holds. Scorers:
truth compares named objects with those there; answers gives 1 to a response that is the answer, letter case and marks around it aside, and
0 to others; mllm asks a multimodal model about each sentence while it sees the image; judge asks a language model to rate a response by
the reference. Don't align on images that you measure on: for the embedded world, build a second one with another seed.

Work is done in chunks: give the same command again after a stop, and the result has the same bytes. Responses and scores stay in
OUT/chunks.

Cost: --samples responses per question, and with mllm a short answer to each of their sentences.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_tools.language_models import LanguageModelOptions, describe_language_model, load_language_model
from data_tools.program import run_program
from mmalign.errors import UserError
from mmalign.options.precision import Dtype


@dataclass(frozen=True, kw_only=True)
class SampleOptions(LanguageModelOptions):
    """Options of ``sample_pairs.py``."""

    source: Path = field(metadata={"positional": True})
    """folder of images, JSONL of questions, or folder with chair.jsonl"""
    model: str
    """multimodal LLM to sample from: folder or hub id"""
    scorer: Literal["truth", "answers", "mllm", "judge"]
    """known objects, known answers, a model that looks, or a judge with a reference"""
    out: Path
    """folder of pairs/*.parquet, rejects.jsonl and the work in progress"""
    prompts: list[str] = field(default_factory=list)
    """what to ask about each image of a folder"""
    image_root: Path | None = None
    """folder of the images; SOURCE or SOURCE/images if that is a folder"""
    labeler: str | None = None
    """the model that looks, for --scorer mllm: folder or hub id"""
    samples: int = 4
    """responses per question"""
    search: Literal["sample", "beam"] = "sample"
    """draw them, or find the likeliest ones with as many beams"""
    temperature: float = 1.0
    """sampling temperature"""
    top_p: float = 0.95
    """sample from the likeliest tokens that have this probability together"""
    top_k: int = 0
    """sample from this many of the likeliest tokens; 0: from all"""
    max_new_tokens: int = 256
    """longest response in tokens"""
    batch_size: int = 8
    """questions at once; another size may change a few responses by rounding, and is another run"""
    seed: int = 0
    """of sampling"""
    embed_images: bool = True
    """put the images into the Parquet files as bytes"""
    dtype: Dtype = "auto"
    """precision of the weights"""
    max_reject_share: float = 0.2
    """stop if more than this share of questions has a broken image"""


def run(options: SampleOptions) -> None:
    """Sample, score and pair."""
    build(options, _load_judge(options))


def build(options: SampleOptions, judge: Any = None) -> None:
    """As ``run``; ``judge`` is any object with ``name`` and ``ask(prompts) -> list[str]``, for ``--scorer judge``.

    Raises:
        ValueError: If options don't fit together, or the source can't be read.
    """
    from data_tools.chunks import chunk_seed, run_chunks
    from data_tools.models import load_on_accelerator
    from data_tools.negatives import write_pairs
    from data_tools.sampling import ResponseSampler, load_source, sample_chunk
    from mmalign.engine.beams import Beams
    from mmalign.engine.choosing import Sampling

    if options.samples < 2:
        raise UserError(f"samples is {options.samples}; expected at least 2")
    drawn = Sampling(options.temperature, options.top_p, options.top_k, answers=options.samples)
    sampling = drawn if options.search == "sample" else Beams(options.samples, answers=options.samples)
    if (options.scorer == "mllm") != (options.labeler is not None):
        raise UserError("--scorer mllm and --labeler MODEL go together; give both or neither")
    items, root, words, files = load_source(options.source, prompts=options.prompts, image_root=options.image_root)
    policy = load_on_accelerator(options.model, dtype=options.dtype)
    sampler = ResponseSampler(*policy, sampling=sampling, max_new_tokens=options.max_new_tokens)
    scorer = _build_scorer(options, judge, policy, root, words)

    def work(indices: range) -> list[dict[str, Any]]:
        folder = options.out / "scoring" / f"{indices.start:09d}"
        chunk = [items[index] for index in indices]
        seeds = [chunk_seed(options.seed, index) for index in indices]
        lines = sample_chunk(sampler, chunk, scorer, image_root=root, folder=folder, seeds=seeds)
        return [{"index": index, **line} for index, line in zip(indices, lines, strict=True)]

    settings = _settings(options, judge, files)
    chunks = run_chunks(len(items), work, out=options.out, fingerprint=settings, size=options.batch_size, label="sampling")

    def pair(line: Mapping[str, Any]) -> Any:
        return _pair(items[line["index"]].question, line, options.scorer)

    write_pairs(chunks, pair, out=options.out, image_root=root, embed=options.embed_images, max_share=options.max_reject_share)


def _pair(question: Any, line: Mapping[str, Any], scorer: str) -> Any:
    """Pair a line's best and worst response; None where they are equally good."""
    from data_tools.negatives import RejectedRow
    from data_tools.pair_sets import Pair
    from data_tools.response_scores import best_and_worst

    if "reason" in line:
        raise RejectedRow(question.id, line["reason"])
    found = best_and_worst(line["responses"], line["scores"])
    if found is None:
        return question.id, None
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in found)
    prompt = [{"role": "user", "content": question.prompt}]
    return question.id, Pair(question.id, f"on-policy/{scorer}", [question.image], prompt, chosen, rejected)


def _build_scorer(options: SampleOptions, judge: Any, policy: tuple[Any, Any], root: Path, words: Mapping[str, str] | None) -> Any:
    from data_tools.models import load_on_accelerator
    from data_tools.response_scores import AnswerScorer, JudgeScorer, LookingScorer, TruthScorer

    if options.scorer == "truth":
        if words is None:
            raise UserError("--scorer truth needs to know what is in the images: a folder with chair.jsonl and synonyms.txt")
        return TruthScorer(words)
    if options.scorer == "answers":
        return AnswerScorer()
    if options.scorer == "judge":
        return JudgeScorer(judge)
    assert options.labeler is not None
    looking = policy if options.labeler == options.model else load_on_accelerator(options.labeler, dtype=options.dtype)
    return LookingScorer(*looking, image_root=root, batch_size=32)


def _settings(options: SampleOptions, judge: Any, files: Mapping[str, str]) -> dict[str, Any]:
    """All that decides the result."""
    from mmalign.models.fingerprint import fingerprint_checkpoint

    names = ("model", "scorer", "labeler", "prompts", "samples", "search", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    models = {"model": options.model, "labeler": options.labeler}
    weights = {f"{name}_weights": fingerprint_checkpoint(m, dtype=options.dtype) for name, m in models.items() if m is not None}
    # A wrong root makes rejects of all questions, which must not stay under the right one.
    root = None if options.image_root is None else str(options.image_root)
    described = {} if judge is None else describe_language_model(options, judge)
    return {"builder": "on-policy", "data": files, "image_root": root, **{n: getattr(options, n) for n in names}, **weights, **described}


def _load_judge(options: SampleOptions) -> Any:
    if options.scorer != "judge":
        return None
    return load_language_model(options, out=options.out, decoding={"temperature": 0, "max_tokens": 8}, max_new_tokens=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, SampleOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
