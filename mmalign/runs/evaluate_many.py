"""``mmalign evaluate --benchmarks A,B --model X --model Y``: several benchmarks of several models, and their report."""

import dataclasses
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmalign.data.images import load_image
from mmalign.data.workers import refuse_several
from mmalign.errors import UserError
from mmalign.evaluation.answers import strip_own
from mmalign.evaluation.registry import find_benchmark
from mmalign.evaluation.results import hash_files
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json_object, write_whole
from mmalign.options.evaluate import EvaluateManyOptions, ScoringOptions
from mmalign.options.report import ReportEvalOptions
from mmalign.runs.answering import Loaded, answer_questions, asked, forget_unfinished, identify, load_model
from mmalign.runs.benchmark_plan import Planned, plan_benchmark, read_settings
from mmalign.runs.cards import add_result
from mmalign.runs.eval_report import run as write_report
from mmalign.runs.evaluate import Given, image_folder, score_answers

logger = logging.getLogger(__name__)

RECORD = "answers.json"
_JUDGE = ("judge", "judge_url", "judge_model")


def run(options: EvaluateManyOptions) -> None:
    """Answer and score every benchmark with every model, each loaded once, and write the report of all.

    Answers that are there are not asked for again, and two benchmarks of the same questions, such as POPE and RePOPE, share them.

    Raises:
        ValueError: If files of a benchmark are missing: before any model is loaded, with what is missing of all of them.
    """
    refuse_several("mmalign evaluate")
    planned = plan(options)
    folders = [options.out / name for name in options.model_names]
    # All are looked at before the first is asked: a name that is wrong is told at once.
    sources = [identify(dataclasses.replace(planned[0].options, model=model)) for model in options.model]
    for model, source, folder in zip(options.model, sources, folders, strict=True):
        evaluate_model(model, folder, planned, source=source)
    own = [image_folder(wanted, benchmark) for wanted, benchmark in planned]
    images = [path for path in dict.fromkeys([*own, *(folder / "images" for folder in folders)]) if path.is_dir()]
    write_report(ReportEvalOptions(results=folders, out=options.out, names=options.model_names, images=images))


def plan(options: EvaluateManyOptions) -> list[Planned]:
    """Read all benchmarks, and tell of each what is missing and where to get it."""
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(ScoringOptions)}
    planned, missing = [], []
    for name in options.benchmarks:
        owner = find_benchmark(name)
        folder = owner.folder_in(options.data)
        settings = shared | read_settings(options.settings.get(name, {}), where=f"settings.{name}")
        if owner.judge_wording is None:
            settings |= dict.fromkeys(_JUDGE)
        try:
            planned.append(plan_benchmark(name, folder, settings, images=options.data / "images"))
        except UserError as error:
            missing.append(f"{name}: {error}\n  its files: {owner.source}")
    if missing:
        summary = f"{len(missing)} of {len(options.benchmarks)} benchmarks can't be asked; no model was loaded"
        raise UserError("\n".join([summary, *missing]))
    return planned


def evaluate_model(model: str, folder: Path, planned: Sequence[Planned], *, source: str) -> None:
    """Answer and score all benchmarks with one model, which is loaded at the first question that is not answered yet.

    Args:
        model: Folder or hub id.
        folder: Of its answers and results.
        planned: The benchmarks.
        source: The model's fingerprint.
    """
    loaded: list[Loaded] = []

    def load() -> Loaded:
        if not loaded:
            logger.info("loading %s", model)
            loaded.append(load_model(dataclasses.replace(planned[0].options, model=model), source=source))
        return loaded[0]

    for wanted, benchmark in planned:
        named = Planned(dataclasses.replace(wanted, model=model, out=folder), benchmark)
        given = _answer_once(named, folder, source=source, load=load)
        result = score_answers(named.options, benchmark, given)
        add_result(Path(model), dataclasses.asdict(result))
    loaded.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _answer_once(planned: Planned, folder: Path, *, source: str, load: Callable[[], Loaded]) -> Given:
    """Return saved answers of the same model to the same questions, asked in the same way; else ask, and note what was asked."""
    record = read_json_object(folder / RECORD) if (folder / RECORD).is_file() else {}
    origin = _digest(planned, source)
    known = record.get(origin)
    path = folder / known["file"] if known else folder
    if known and path.is_file() and hash_files([path]) == known["sha256"]:
        rows = read_jsonl(path)
        if not _can_go_on(planned, {row["id"] for row in rows}):
            return Given(strip_own(rows), path, known["decoding"], planned.options.allow_partial or known["in_part"])
    given = answer_questions(planned.options, planned.benchmark, load=load)
    record[origin] = {
        "file": given.path.name,
        "sha256": hash_files([given.path]),
        "decoding": given.decoding,
        "in_part": given.in_part,
    }
    write_whole(folder / RECORD, json.dumps(record, indent=1) + "\n")
    forget_unfinished(planned.options, planned.benchmark, given)
    return given


def _can_go_on(planned: Planned, answered: Container[str]) -> bool:
    """Whether an image that was broken when a question was asked can be read now."""
    root = image_folder(planned.options, planned.benchmark)
    left = [question for question in asked(planned.options, planned.benchmark) if question.id not in answered]
    return any(_can_be_read(question.image, root) for question in left)


def _can_be_read(image: str | None, root: Path) -> bool:
    try:
        load_image(image, root=root)
    except UserError:
        return False
    return True


def _digest(planned: Planned, source: str) -> str:
    """What answers depend on: the model, the questions with their images, and how they are asked."""
    options = planned.options
    how: Mapping[str, Any] = {name: getattr(options, name) for name in ("max_new_tokens", "batch_size", "beams", "length_penalty")}
    told = [source, asked(options, planned.benchmark), str(image_folder(options, planned.benchmark).resolve()), how]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
