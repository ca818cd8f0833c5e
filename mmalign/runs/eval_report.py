"""``mmalign report eval``: what it shows is gathered from the folders that ``mmalign evaluate`` wrote."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.evaluation.intervals import compute_differences, compute_intervals
from mmalign.evaluation.items import Item, items_path, read_items
from mmalign.evaluation.registry import find_benchmark
from mmalign.evaluation.results import name_search
from mmalign.files import read_json, write_whole
from mmalign.options.evaluate import BENCHMARKS
from mmalign.options.report import ReportEvalOptions
from mmalign.reports.comparison import EvalRun, Range, build_comparison, csv_comparison, markdown_comparison, terminal_comparison
from mmalign.reports.eval_page import AskedQuestion, Reply, WrongAnswers, write_eval_page
from mmalign.reports.gallery import Caption, make_thumbnail

# Numbers of which one differs are not of the same measurement.
_MUST_AGREE = ("data", "mode", "variant", "scorer_version", "judge", "judge_prompt")


def run(options: ReportEvalOptions) -> None:
    """Write the report and print the table.

    Raises:
        ValueError: If results are missing, damaged, or can't be compared.
    """
    models = collect_results(options.results, names=options.names)
    runs = collect_runs(models, resamples=options.resamples, seed=options.seed)
    groups = build_comparison(runs)
    wrong = collect_wrong(models, images=options.images, max_wrong=options.max_wrong, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    names, notes = [run.name for run in runs], find_notes(models)
    listed = "".join(f"- {note}\n" for note in notes)
    write_whole(options.out / "report.md", f"{listed}\n{markdown_comparison(groups, names)}\n".lstrip())
    write_whole(options.out / "report.csv", csv_comparison(groups, runs))
    page = write_eval_page(
        options.out / "report.html",
        title=options.title,
        runs=runs,
        wrong=wrong,
        facts=describe(models, resamples=options.resamples, seed=options.seed),
        notes=notes,
        links=options.links,
    )
    print(f"{terminal_comparison(groups, names)}\n{listed}\nevery row in {page.with_suffix('.md')}, saved in {page}")


@dataclass(frozen=True)
class ModelResults:
    """One model's results by benchmark, and its scored answers where they are saved."""

    name: str
    folder: Path
    results: Mapping[str, Mapping[str, Any]]
    items: Mapping[str, Sequence[Item]]


def collect_results(folders: Sequence[Path], *, names: Sequence[str]) -> list[ModelResults]:
    """Read results, and refuse those that can't stand side by side.

    Raises:
        ValueError: If a folder has no result, names don't fit, or two results are of other data, mode, scorer or judge.
    """
    models = [_read_model(name, folder) for name, folder in name_folders(folders, names=names).items()]
    for model in models[1:]:
        for benchmark, result in model.results.items():
            first = next(other for other in models if benchmark in other.results)
            _check_comparable(benchmark, first.results[benchmark], result, names=(first.name, model.name))
    return models


def name_folders(folders: Sequence[Path], *, names: Sequence[str]) -> dict[str, Path]:
    """Name each folder as told, or by its own name.

    Raises:
        ValueError: If a name is missing or doubled.
    """
    names = list(names) or [folder.resolve().name for folder in folders]
    if len(names) != len(folders) or len(set(names)) != len(names):
        raise UserError(f"{len(folders)} folders and the names {', '.join(names)}; give each its own name with --names")
    return dict(zip(names, folders, strict=True))


def collect_runs(models: Sequence[ModelResults], *, resamples: int, seed: int) -> list[EvalRun]:
    """Return each model's metrics, with intervals where its scored answers are saved."""
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    runs: list[EvalRun] = []
    for index, model in enumerate(models):
        metrics: dict[str, float] = {key: value for result in model.results.values() for key, value in result["metrics"].items()}
        intervals: dict[str, Range] = {}
        differences: dict[str, dict[str, Range]] = {}
        for benchmark, items in model.items.items():
            owner = find_benchmark(benchmark)
            found = compute_intervals(owner, items, **options)
            intervals |= {key: Range(i.low, i.high) for key, i in found.items() if key in metrics}
            for other in {0, index - 1} if index else ():
                theirs = models[other].items.get(benchmark, ())
                if {item.id for item in theirs} == {item.id for item in items}:
                    found = compute_differences(owner, items, theirs, **options)
                    ranges = {key: Range(i.low, i.high) for key, i in found.items() if key in metrics}
                    differences.setdefault(models[other].name, {}).update(ranges)
        num_answers = {_prefix(benchmark): int(result["num_answers"]) for benchmark, result in model.results.items()}
        runs.append(EvalRun(name=model.name, metrics=metrics, num_answers=num_answers, intervals=intervals, differences=differences))
    return runs


def collect_wrong(models: Sequence[ModelResults], *, images: Sequence[Path], max_wrong: int, seed: int) -> dict[str, WrongAnswers]:
    """Draw wrong answers of each model and benchmark, with what the other models said to the same questions."""
    for folder in images:
        if not folder.is_dir():
            raise UserError(f"no folder of images at {folder}")
    thumbnails: dict[str, str | None] = {}
    found = {}
    for benchmark in dict.fromkeys(benchmark for model in models for benchmark in model.items):
        items = {model.name: {item.id: item for item in model.items.get(benchmark, ())} for model in models}
        wrong = {name: [i for i, item in by_id.items() if item.correct is False] for name, by_id in items.items()}
        rng = random.Random(seed)
        drawn = {i for ids in wrong.values() for i in rng.sample(ids, min(max_wrong, len(ids)))}
        order = dict.fromkeys(i for by_id in items.values() for i in by_id if i in drawn)
        shown = [_ask(i, items, images, thumbnails) for i in order]
        found[_prefix(benchmark)] = WrongAnswers(shown, {name: len(ids) for name, ids in wrong.items()})
    return found


def describe(models: Sequence[ModelResults], *, resamples: int, seed: int) -> dict[str, str]:
    """Name what the numbers come from."""
    facts = {}
    for model in models:
        sources = dict.fromkeys(result["model"] for result in model.results.values() if result.get("model"))
        facts[model.name] = f"{', '.join(sources) or 'saved answers'}; results in {model.folder}"
    for benchmark, result in {b: r for model in models for b, r in model.results.items()}.items():
        hashes = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in result["data"].items())
        judge = f", judge {result['judge']}" if result.get("judge") else ""
        search = f", {name_search(result)}" if name_search(result) else ""
        facts[benchmark] = f"mode {result['mode']}{search}{judge}, scorer {result['scorer_version']}; {hashes}"
    facts["Intervals"] = f"95% percentile bootstrap over images, {resamples:,} resamples, seed {seed}"
    return facts


def find_notes(models: Sequence[ModelResults]) -> list[str]:
    """Say what differs between the models beside the models, and what is missing."""
    notes = []
    for benchmark in dict.fromkeys(benchmark for model in models for benchmark in model.results):
        having = [model for model in models if benchmark in model.results]
        for name, words in (("decoding", "decoding settings"), ("num_answers", "number of answers")):
            values = {model.name: json.dumps(model.results[benchmark].get(name)) for model in having}
            if len(set(values.values())) > 1:
                notes.append(f"{benchmark}: the {words} differ: {'; '.join(f'{model}: {value}' for model, value in values.items())}.")
        bare = [model.name for model in having if benchmark not in model.items]
        if bare:
            notes.append(f"{benchmark}: no intervals and wrong answers of {', '.join(bare)}, whose scored answers are not saved.")
    return notes


def _read_model(name: str, folder: Path) -> ModelResults:
    results: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            row = read_json(path)
        except ValueError as error:
            raise UserError(f"{error}; evaluate again") from error
        if isinstance(row, dict) and row.keys() >= {"benchmark", "metrics", "mode", "num_answers", "data"}:
            _check_types(row, path)
            results[row["benchmark"]] = {"scorer_version": "unknown", **row}
    if not results:
        raise UserError(f"no results in {folder}; expected what mmalign evaluate --out writes, such as pope.json")
    saved = {benchmark: items_path(folder, benchmark) for benchmark in results if benchmark in BENCHMARKS}
    items = {benchmark: read_items(path) for benchmark, path in saved.items() if path.is_file()}
    return ModelResults(name, folder, results, items)


def _check_types(row: Mapping[str, Any], path: Path) -> None:
    expected: dict[str, type] = dict.fromkeys(("benchmark", "mode", "variant", "model", "judge", "scorer_version"), str)
    expected |= dict.fromkeys(("metrics", "data", "other_mode", "answers", "decoding"), dict) | {"num_answers": int}
    wrong = [key for key, kind in expected.items() if row.get(key) is not None and not isinstance(row[key], kind)]
    wrong += [key for key in ("benchmark", "metrics", "mode", "num_answers", "data") if row[key] is None]
    # It names the file of its items.
    wrong += (
        [] if wrong or (len(row["benchmark"]) < 100 and "/" not in row["benchmark"] and "\0" not in row["benchmark"]) else ["benchmark"]
    )
    wrong += [] if wrong else [f"metrics/{name}" for name, value in row["metrics"].items() if not isinstance(value, (int, float))]
    wrong += [] if wrong else [f"data/{name}" for name, value in row["data"].items() if not isinstance(value, str)]
    if wrong:
        raise UserError(f"{path} is no result: {', '.join(wrong[:5])} is of another type than mmalign evaluate writes; evaluate again")


def _check_comparable(benchmark: str, first: Mapping[str, Any], other: Mapping[str, Any], *, names: tuple[str, str]) -> None:
    for key in _MUST_AGREE:
        if first.get(key) != other.get(key):
            raise UserError(
                f"{benchmark}: {names[0]} and {names[1]} can't be compared, they differ in {key}: {first.get(key)} and {other.get(key)}; "
                "evaluate one of them again as the other"
            )


def _prefix(benchmark: str) -> str:
    """How its metrics' keys begin."""
    return benchmark.replace("-", "_")


def _ask(
    identifier: str, items: Mapping[str, Mapping[str, Item]], images: Sequence[Path], thumbnails: dict[str, str | None]
) -> AskedQuestion:
    having = {name: by_id[identifier] for name, by_id in items.items() if identifier in by_id}
    item = next(iter(having.values()))
    if item.image is not None and item.image not in thumbnails:
        thumbnails[item.image] = _thumbnail(item.image, images)
    return AskedQuestion(
        id=identifier,
        question=item.question,
        label=item.label,
        group=item.group,
        image=None if item.image is None else thumbnails[item.image],
        image_name=item.image or "no image",
        replies={name: Reply(Caption(other.response, hallucinated=other.wrong), other.correct) for name, other in having.items()},
    )


def _thumbnail(name: str, folders: Sequence[Path]) -> str | None:
    """The image made small; None where no folder has it."""
    for folder in folders:
        if _is_file(folder, name):
            return make_thumbnail(load_image(name, root=folder))
    return None


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        # A name that no file can have.
        return False
