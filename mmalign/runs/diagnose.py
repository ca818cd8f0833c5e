"""``mmalign diagnose``: what training did to a model, gathered from models, pairs and a run's log; one model in memory at a time."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn

from mmalign import __version__
from mmalign.config import plain_values
from mmalign.data.checking import keep_good_rows
from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.encode import EncodedPrompt, encode_row
from mmalign.data.rejects import Rejects
from mmalign.data.rows import PAIR_COLUMNS, Message, PairRow, check_columns, read_pair
from mmalign.data.token_texts import token_texts
from mmalign.data.vocabulary import check_same_reading
from mmalign.diagnostics.collect import PairLogps, PairReader, TokenStates, pool_pairs, sample_states, score_pairs
from mmalign.diagnostics.credit import token_credits
from mmalign.diagnostics.displacement import measure_movement, per_token
from mmalign.diagnostics.information import information_entropy, token_information_entropy
from mmalign.diagnostics.layers import LayerTrace, trace_layers
from mmalign.diagnostics.separability import FOLDS, probe_pairs, surface_features
from mmalign.engine.hidden_states import OutputHead, read_output_head
from mmalign.errors import UserError
from mmalign.files import RUN_FILE, write_whole
from mmalign.models.load import best_device, load_mllm, load_processor
from mmalign.options.diagnose import DiagnoseOptions
from mmalign.reports.diagnosis_page import CreditedPair, write_diagnosis_page
from mmalign.reports.gallery import make_thumbnail
from mmalign.runs.diagnose_search import build_searcher, compare_searches, score_all, show_searches
from mmalign.runs.run_record import read_record


@dataclass(frozen=True)
class _Pairs:
    """A sample of pairs, read and tokenised once."""

    rows: list[PairRow]
    encoded: list[EncodedPrompt]


@dataclass(frozen=True)
class _Seen:
    """What one model makes of the pairs."""

    logps: dict[str, PairLogps]
    states: TokenStates | None = None
    trace: LayerTrace | None = None
    head: OutputHead | None = None


def run(options: DiagnoseOptions) -> None:
    """Diagnose, write both files, and print the counters. Raises as ``diagnose``."""
    diagnosis, page = diagnose(options)
    for name, moved in diagnosis["movement"].items():
        print(
            f"{name.replace('_', '-')} ({moved['num_pairs']:,}): h of chosen {moved['chosen']:+.3f}, of rejected {moved['rejected']:+.3f}; "
            f"below the start: {moved['degraded']:.1%} of chosen, {moved['rejected_below']:.1%} of rejected; dropped {moved['dropped']:.1%}"
        )
    for name, probe in diagnosis["separability"].items():
        print(f"chosen told from rejected by {name}: {probe['accuracy']:.1%} [{probe['low']:.1%}, {probe['high']:.1%}]")
    if diagnosis["search"]:
        print(show_searches(diagnosis["search"]))
    print(f"saved in {page}")


def diagnose(options: DiagnoseOptions) -> tuple[dict[str, Any], Path]:
    """Run every model over the pairs, and write ``diagnosis.json`` and ``diagnosis.html``.

    Returns:
        What the JSON file holds, and the page.

    Raises:
        ValueError: If there is no start, a checkpoint is missing, or the data can't be used.
    """
    checkpoints = _find_checkpoints(options)
    with _opened(options, None) as (_, processor):
        if options.reference is not None:
            check_same_reading(load_processor(options.model), processor, source=options.reference)
        sets = {"pairs": _read(options, options.pairs, processor)}
        if options.held_out is not None:
            sets["held_out"] = _read(options, options.held_out, processor)
    with _opened(options, None) as (model, _):
        reader = PairReader(processor.tokenizer.pad_token_id, options.batch_size).probed(model, sets["pairs"].encoded)
        start = _look(model, sets, reader, options)
        searcher = build_searcher(sets["pairs"].rows, processor, options) if options.search else None
        said = {} if searcher is None else {"start": searcher.answer(model)}
        separability, note = _separability(model, processor, sets["pairs"], reader, options)
    between = []
    for path in checkpoints:
        with _opened(options, path) as (model, _):
            logps = {name: score_pairs(model, pairs.encoded, reader) for name, pairs in sets.items()}
            between.append((path.name, _step_of(path), logps))
    with _opened(options, Path(options.model)) as (model, _):
        policy = _look(model, sets, reader, options)
        if searcher is not None:
            said = {"policy": searcher.answer(model), **said}
            scored = score_all(searcher, model, said)
    searches = []
    if searcher is not None:
        with _opened(options, None) as (model, _):
            searches = compare_searches(said, scored, score_all(searcher, model, said), options)
    moved = {name: _movement(policy.logps[name], start.logps[name]) for name in sets}
    credited = [_credit(i, sets["pairs"], policy, start, processor, options) for i in range(min(options.credited, len(sets["pairs"].rows)))]
    diagnosis = {
        "options": plain_values(options),
        "data": hash_data_files(options.pairs),
        "mmalign": __version__,
        "movement": moved,
        "paths": _paths(start, between, policy, sets, options),
        "training_log": _training_log(Path(options.model)),
        "per_token": {n: per_token(*_sums(policy.logps[n], start.logps[n])).tolist() for n in sets},
        "information": _information(policy, start),
        "search": searches,
        "separability": {name: dataclasses.asdict(probe) for name, probe in separability.items()},
        "separability_note": note,
        "layers": {name: dataclasses.asdict(seen.trace) for name, seen in (("start", start), ("policy", policy)) if seen.trace is not None},
        "credits": [{"id": pair.id, "chosen": list(pair.chosen), "rejected": list(pair.rejected)} for pair in credited],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "diagnosis.json", json.dumps(diagnosis, indent=1, ensure_ascii=False, default=str))
    page = write_diagnosis_page(
        options.out / "diagnosis.html", title=options.title, diagnosis=diagnosis, credited=credited, facts=_facts(options, sets)
    )
    return diagnosis, page


@contextmanager
def _opened(options: DiagnoseOptions, source: Path | None) -> Iterator[tuple[nn.Module, Any]]:
    """Load a model, or what training started from where ``source`` is None."""
    name = str(source) if source is not None else options.reference or options.model
    model, processor = load_mllm(name, dtype=options.dtype)
    model = model.to(best_device())
    if source is not None or options.reference is not None:
        yield model, processor
        return
    if not isinstance(model, PeftModel):
        raise UserError(f"{options.model} is no LoRA adapter, so what it started from is not known; name it with --reference")
    with model.disable_adapter():
        yield model, processor


def _read(options: DiagnoseOptions, source: Path, processor: Any) -> _Pairs:
    dataset = load_rows(source)
    check_columns(dataset.column_names, PAIR_COLUMNS, what=str(source))
    dataset = _sample(dataset, options.max_pairs, options.seed)
    rows: list[PairRow] = []
    encoded: list[EncodedPrompt] = []

    def read(raw: Any, *, index: int) -> None:
        row = read_pair(raw, index=index, image_root=options.image_root)
        encoded.append(encode_row(processor, row, answer_end=options.answer_end, max_length=options.max_length))
        rows.append(row)

    keep_good_rows(dataset, read, rejects=Rejects(options.out / f"rejects-{source.stem}.jsonl", max_share=options.max_reject_share))
    return _Pairs(rows, encoded)


def _sample(dataset: Dataset, number: int, seed: int) -> Dataset:
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:number]
    return dataset.select(order.sort().values.tolist())


def _look(model: nn.Module, sets: dict[str, _Pairs], reader: PairReader, options: DiagnoseOptions) -> _Seen:
    """Score all sets, and keep a sample of states; the head is kept for the information and shares the model's memory."""
    logps = {name: score_pairs(model, pairs.encoded, reader) for name, pairs in sets.items()}
    states = sample_states(model, sets["pairs"].encoded, reader, max_tokens=options.max_tokens)
    head = read_output_head(model)
    # A fit needs a few singular values, and these need as many tokens.
    trace = trace_layers(states.layers, head) if states.layers.shape[1] > FOLDS else None
    return _Seen(logps, TokenStates(states.final, states.layers[:0], states.is_chosen), trace, dataclasses.replace(head, norm=None))


def _separability(
    model: nn.Module, processor: Any, pairs: _Pairs, reader: PairReader, options: DiagnoseOptions
) -> tuple[dict[str, Any], str]:
    """Probe hidden states with the image and without it, and what needs no understanding."""
    if len(pairs.rows) < FOLDS:
        return {}, f"The probe needs {FOLDS} pairs; there are {len(pairs.rows)}."
    lengths = torch.tensor([[len(response) for response in prompt.responses] for prompt in pairs.encoded])
    first = torch.tensor([[response[0] for response in prompt.responses] for prompt in pairs.encoded])
    features = {"hidden states": pool_pairs(model, pairs.encoded, reader)}
    note = ""
    try:
        blind = [
            encode_row(processor, _without_images(row), answer_end=options.answer_end, max_length=options.max_length) for row in pairs.rows
        ]
        features["hidden states, image removed"] = pool_pairs(model, blind, reader)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        note = f"{type(processor).__name__} takes no prompts without their images, so that there is no image-blind control: {error}"
    features |= surface_features([(row.chosen, row.rejected) for row in pairs.rows], lengths, first)
    return {name: probe_pairs(values, seed=options.seed) for name, values in features.items()}, note


def _without_images(row: PairRow) -> PairRow:
    prompt = [Message(role=m["role"], content=[part for part in m["content"] if part["type"] != "image"]) for m in row.prompt]
    return dataclasses.replace(row, images=[], prompt=prompt)


def _sums(policy: PairLogps, start: PairLogps) -> tuple[Tensor, Tensor, Tensor]:
    return policy.sums(), start.sums(), start.lengths()


def _movement(policy: PairLogps, start: PairLogps) -> dict[str, Any]:
    return dataclasses.asdict(measure_movement(*_sums(policy, start)))


def _paths(
    start: _Seen,
    between: Sequence[tuple[str, int | None, dict[str, PairLogps]]],
    policy: _Seen,
    sets: dict[str, _Pairs],
    options: DiagnoseOptions,
) -> list[dict[str, Any]]:
    """Movement at the start, at each checkpoint and at the end; by step where all steps are known, else by number."""
    end = _step_of(Path(options.model))
    points = [("start", 0, start.logps), *between, ("end", end, policy.logps)]
    known = all(step is not None for _, step, _ in points)
    if known:
        # The last checkpoint of a run is its end.
        points = [point for point in points if point[0] == "end" or point[1] != end]
    return [
        {"name": name, "step": step if known else number, **{key: _movement(logps[key], start.logps[key]) for key in sets}}
        for number, (name, step, logps) in enumerate(points)
    ]


def _find_checkpoints(options: DiagnoseOptions) -> list[Path]:
    """The models of ``--checkpoints``; folders of them opened.

    Raises:
        ValueError: If there is none at one of the paths.
    """
    found = []
    for path in options.checkpoints:
        numbered = [p for p in path.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
        inside = sorted(numbered, key=lambda p: int(p.name.split("-")[-1]))
        if not inside and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"no checkpoint at {path}: expected a model, or a folder of checkpoint-N such as RUN/checkpoints")
        found += inside or [path]
    return found


def _step_of(folder: Path) -> int | None:
    if (folder / "trainer_state.json").is_file():
        return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    return read_record(folder).get("steps") if (folder / RUN_FILE).is_file() else None


def _training_log(folder: Path) -> list[dict[str, float]]:
    path = folder / "train_log.json"
    if not path.is_file():
        return []
    kept = ("step", "logps/chosen_per_token", "logps/rejected_per_token", "rewards/chosen", "rewards/rejected", "rewards/margin")
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [{key: entry[key] for key in kept if key in entry} for entry in entries if "rewards/margin" in entry]


def _information(policy: _Seen, start: _Seen) -> dict[str, Any]:
    """Entropies as shares of the highest possible."""
    assert policy.states is not None
    assert start.states is not None
    assert policy.head is not None
    assert start.head is not None
    by_token = token_information_entropy(policy.states.final, policy.head, start.states.final, start.head)
    size = min(len(policy.head.head.weight), len(start.head.head.weight))
    share, chosen = by_token / torch.tensor(size).double().log(), policy.states.is_chosen
    mine, other, lengths = _sums(policy.logps["pairs"], start.logps["pairs"])
    highest = torch.tensor(2.0).double().log()
    return {
        "vocabulary": size,
        "num_tokens": len(share),
        "token_chosen": float(share[chosen].mean()),
        "token_rejected": float(share[~chosen].mean()) if (~chosen).any() else None,
        "pair_sum": float((information_entropy(mine - other) / highest).mean()),
        "pair_mean": float((information_entropy((mine - other) / lengths) / highest).mean()),
    }


def _credit(number: int, pairs: _Pairs, policy: _Seen, start: _Seen, processor: Any, options: DiagnoseOptions) -> CreditedPair:
    row, encoded = pairs.rows[number], pairs.encoded[number]
    sides = []
    for side in (0, 1):
        mine, other = (seen.logps["pairs"].tokens[number][side] for seen in (policy, start))
        credits = token_credits(mine, other, beta=options.beta).tolist()
        sides.append(list(zip(token_texts(processor.tokenizer, encoded.responses[side]), credits, strict=True)))
    prompt = " ".join(part["text"] for message in row.prompt for part in message["content"] if part["type"] == "text")
    return CreditedPair(row.id, prompt, make_thumbnail(row.images[0]) if row.images else None, *sides)


def _facts(options: DiagnoseOptions, sets: dict[str, _Pairs]) -> dict[str, str]:
    counts = {"pairs": options.pairs, "held_out": options.held_out}
    return {
        "Policy": options.model,
        "Start": options.reference or f"{options.model} without its adapter",
        **{{"pairs": "Pairs", "held_out": "Held-out pairs"}[n]: f"{len(pairs.rows):,} of {counts[n]}" for n, pairs in sets.items()},
        "Beta of the credits": f"{options.beta:g}",
        "Seed": str(options.seed),
        "mmalign": __version__,
    }
