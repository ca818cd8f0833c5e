r"""Make pairs from images alone: sample responses from the model that is to be aligned, score them, and pair the best with the worst.

    python data_tools/sample_pairs.py photos/ --prompts "Describe the image." --model policy/ --scorer mllm --labeler big/ --out sampled
    python data_tools/sample_pairs.py questions.jsonl --image-root photos/ --model policy/ --scorer judge --llm judge/ --out sampled
    python data_tools/sample_pairs.py world/eval --model policy/ --scorer truth --out sampled
    python data_tools/sample_pairs.py photos/ --prompts "Hm?" --endpoint http://127.0.0.1:8000/v1 --model NAME --scorer mllm \
        --labeler big/ --out sampled

SOURCE is a folder of images, each asked all --prompts; a JSONL file of id, image, prompt (and reference, for --scorer judge, or answer, for
--scorer answers: a text, or a list of right ones); or a folder with chair.jsonl and synonyms.txt, which say what each image holds. Scorers:
truth compares named objects with those there; answers gives 1 to a response that is the answer, letter case and marks around it aside, and
0 to others; mllm asks a multimodal model about each sentence while it sees the image; confidence is how likely it, or the model itself,
finds yes about the whole response; judge asks a language model to rate a response by the reference; reward asks a reward model (mmalign
train reward), the --labeler; clip compares image and response by the --labeler, a CLIP model; questions has the model itself answer
questions that test the responses, while it sees the image; rubric has a judge that sees the image compare every two responses. Don't align
on images that you measure on: for the embedded world, build a second one with another seed.

Work is done in chunks: give the same command again after a stop, and the result has the same bytes. Responses and scores stay in
OUT/chunks.

Cost: --samples responses per question, and with mllm a short answer to each of their sentences; with questions one to each question;
with rubric two long replies to every two responses.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from data_tools.did import read_rejected
from data_tools.language_models import describe_language_model, load_language_model
from data_tools.program import run_program
from data_tools.sample_options import LOOKING, ConfidenceOptions, QuestionOptions, RubricOptions, SampleOptions
from mmalign.errors import UserError
from mmalign.files import hash_file


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
    from data_tools.rejected import draw_rejected
    from data_tools.sampled_lists import write_lists
    from data_tools.sampling import build_decoding, build_sampler, load_source, sample_chunk
    from data_tools.scoring import Parts, build_scorer
    from mmalign.data.shards import read_lines

    beta = read_rejected(options.rejected)
    _check(options)
    decoding = build_decoding(options)
    items, root, words, files = load_source(options.source, prompts=options.prompts, image_root=options.image_root, gold=options.gold)
    load = cache(partial(load_on_accelerator, dtype=options.dtype))
    parts = Parts(options, root, words, judge, load)
    scorer = build_scorer(parts)
    scorer = scorer if beta is None else draw_rejected(scorer, parts, beta=beta)
    sampler = build_sampler(options, decoding, load)

    def work(indices: range) -> list[dict[str, Any]]:
        folder = options.out / "scoring" / f"{indices.start:09d}"
        chunk = [items[index] for index in indices]
        seeds = [chunk_seed(options.seed, index) for index in indices]
        lines = sample_chunk(sampler, chunk, scorer, image_root=root, folder=folder, seeds=seeds)
        return [{"index": index, **line} for index, line in zip(indices, lines, strict=True)]

    settings = _settings(options, judge, files)
    chunks = run_chunks(len(items), work, out=options.out, fingerprint=settings, size=options.batch_size, label="sampling")
    fault, told = (look(line for line in read_lines(chunks) if "reason" not in line) for look in (scorer.fault, scorer.tell))
    if told is not None:
        print(told)
    if fault is not None:
        raise UserError(fault)
    if options.lists:
        write_lists(options.out, [item.question for item in items], image_root=root)

    def pair(line: Mapping[str, Any]) -> Any:
        return _pair(items[line["index"]].question, line, options.scorer, scorer)

    write_pairs(chunks, pair, out=options.out, image_root=root, embed=options.embed_images, max_share=options.max_reject_share)


def _check(options: SampleOptions) -> None:
    """Refuse options that don't go together, before anything is loaded."""
    if options.samples < 2:
        raise UserError(f"samples is {options.samples}; expected at least 2")
    if options.endpoint is not None and options.search == "beam":
        raise UserError("--search beam is of a local model; an endpoint draws its responses: leave one of the two out")
    if options.labeler is not None and options.scorer not in LOOKING:
        raise UserError(f"--labeler is of --scorer {', '.join(LOOKING)}; leave it out with --scorer {options.scorer}")
    for own, scorer in ((ConfidenceOptions, "confidence"), (QuestionOptions, "questions"), (RubricOptions, "rubric")):
        changed = [one.name for one in fields(own) if getattr(options, one.name) != one.default]
        if changed and options.scorer != scorer:
            raise UserError(f"--{changed[0].replace('_', '-')} is of --scorer {scorer}; leave it out with --scorer {options.scorer}")
    _check_rejected(options)


def _check_rejected(options: SampleOptions) -> None:
    """Refuse a draw without a measure, or a measure without a draw."""
    given = [name for name in ("target", "reward_scale") if getattr(options, name) is not None]
    if options.rejected == "worst" and given:
        raise UserError(f"--{given[0].replace('_', '-')} is of --rejected did:beta=B; leave it out, or draw the rejected response")
    if options.rejected != "worst" and len(given) != 1:
        raise UserError(f"--rejected {options.rejected} needs --target MODEL or --reward-scale X; give one of the two")
    if options.reward_scale is not None and not 0 < options.reward_scale < math.inf:
        raise UserError(f"reward_scale is {options.reward_scale}; expected a positive number")
    if options.rejected != "worst" and options.select == "minimax":
        raise UserError("--select minimax chooses both responses; leave --rejected or --select out")
    if options.target is not None and options.endpoint is not None:
        raise UserError("--target compares with the model that sampled, and an endpoint tells no log-probabilities; use --reward-scale")


def _pair(question: Any, line: Mapping[str, Any], name: str, scorer: Any) -> Any:
    """Pair two of a line's responses; None where they are equally good."""
    from data_tools.negatives import RejectedRow
    from data_tools.pair_sets import Pair

    if "reason" in line:
        raise RejectedRow(question.id, line["reason"])
    found = scorer.choose(line)
    if found is None:
        return question.id, None
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (found.chosen, found.rejected))
    prompt = [{"role": "user", "content": question.prompt}]
    return question.id, Pair(question.id, f"on-policy/{name}", [question.image], prompt, chosen, rejected, found.scores)


def _settings(options: SampleOptions, judge: Any, files: Mapping[str, str]) -> dict[str, Any]:
    """All that decides the result."""
    from mmalign.models.fingerprint import fingerprint_checkpoint

    names = ("model", "scorer", "labeler", "prompts", "samples", "search", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    # What an endpoint serves is known by its name alone.
    models = {"model": options.model if options.endpoint is None else None, "labeler": options.labeler, "target": options.target}
    weights = {f"{name}_weights": fingerprint_checkpoint(m, dtype=options.dtype) for name, m in models.items() if m is not None}
    # A wrong root makes rejects of all questions, which must not stay under the right one.
    root = None if options.image_root is None else str(options.image_root)
    settings = {"builder": "on-policy", "data": files, "image_root": root, **{name: getattr(options, name) for name in names}, **weights}
    settings |= {} if judge is None else describe_language_model(options, judge)
    settings |= {} if options.gold is None else {"gold": options.gold}
    if options.rejected != "worst":
        settings |= {"rejected": options.rejected, "target": options.target, "reward_scale": options.reward_scale}
    if options.scorer == "confidence":
        settings |= {"check": options.check}
    if options.scorer == "questions":
        settings |= {"questions": options.questions, "num_questions": options.num_questions, "ask": options.ask}
        given = [options.synonyms, None if options.questions in ("objects", "written") else Path(options.questions)]
        settings |= {"question_files": {path.name: hash_file(path) for path in given if path is not None}}
    if options.scorer == "rubric":
        named = ("rubric_reading", "rubric_length", "url", "llm_name", "llm_decoding")
        settings |= {name: getattr(options, name) for name in named}
    return settings | ({} if options.endpoint is None else {"endpoint_decoding": options.endpoint_decoding})


def _load_judge(options: SampleOptions) -> Any:
    if options.scorer != "judge":
        return None
    return load_language_model(options, out=options.out, decoding={"temperature": 0, "max_tokens": 8}, max_new_tokens=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, SampleOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
