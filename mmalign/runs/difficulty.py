"""``mmalign score-difficulty``, ``mmalign fuse-difficulty`` and ``mmalign cache-logps``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.data.datasets import hash_data_files, load_rows, refuse_overwriting
from mmalign.data.rows import IMAGES_OTHER, check_columns
from mmalign.data.shards import parse_share, split_among_processes, wait_for_all
from mmalign.data.templates import describe_end
from mmalign.difficulty.contrastive import TEXT_POLICY
from mmalign.difficulty.fuse import CACHED, check_votes, fuse_shards, write_cached
from mmalign.difficulty.scoring import Scorers, merge_shards, score_pairs
from mmalign.engine.generation import end_tokens
from mmalign.engine.views import NO_VIEWS, Views
from mmalign.errors import UserError
from mmalign.files import SCORED, SCORING, check_same, read_json_object
from mmalign.losses.image_terms import Cell
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import best_device, check_exists, load_clip, load_config, load_mllm
from mmalign.models.text_towers import text_limit
from mmalign.options.difficulty import CacheOptions, FuseOptions, ReadOptions, ScoreOptions
from mmalign.tables import text_table


class ScoredPairs(NamedTuple):
    """Pairs with their difficulty, what the proxies did, and the folder that holds both."""

    folder: Path
    dataset: Any
    summary: dict[str, Any]


def run_score(options: ScoreOptions) -> ScoredPairs | None:
    """Score every pair, vote, and print the summary; None where other parts or processes are still to be joined."""
    refuse_overwriting(options.pairs, options.out / SCORED)
    dataset = load_rows(options.pairs)
    check_votes(dataset, options)
    about = {"text_policy": TEXT_POLICY, "text_tokens": text_limit(load_config(options.clip))}
    about["clip_fingerprint"] = fingerprint_checkpoint(options.clip, dtype=options.dtype)
    load = partial(_load_scorers, options.mllm, options.clip, options)
    shards = score_dataset(options, dataset, options.mllm, load, {"clip": options.clip, "mllm": options.mllm, **about})
    if shards is None:
        return None
    summary = fuse_shards(dataset, shards, out=options.out, votes=options)
    print_summary(summary, options.out)
    return ScoredPairs(options.out, load_rows(options.out / SCORED), summary)


def run_cache(options: CacheOptions) -> None:
    """Compute the reference's log-probabilities of every pair, or of every response of a list, and write them beside the rows."""
    refuse_overwriting(options.pairs, options.out / CACHED)
    dataset = load_rows(options.pairs)
    names: dict[str, Any] = {"mllm": options.model}
    views = Views.of(find_cells(options.objective))
    if not views.alone:
        names |= {"cells": [list(cell) for cell in views.cells], "weaken": options.weaken, "weaken_seed": options.weaken_seed}
        check_columns(dataset.column_names, (IMAGES_OTHER,) if views.need_other else (), what=str(options.pairs))
    lists = "responses" in dataset.column_names
    if lists and not views.alone:
        raise UserError("--objective is for pairs, and these rows are lists; leave it out")
    load = partial(_load_scorers, options.model, None, options)
    shards = score_dataset(options, dataset, options.model, load, names, lists=lists, views=views)
    if shards is not None:
        count = write_cached(dataset, shards, out=options.out)
        print(f"{count:,} of {len(dataset):,} rows with the log-probabilities of {options.model} saved in {options.out / CACHED}")


def find_cells(objectives: list[str]) -> list[Cell]:
    """The cells that objectives of pairs read."""
    return [cell for named in PAIR_OBJECTIVES.parse_sum(objectives) for cell in named.objective.cells] if objectives else []


def score_dataset(
    options: ReadOptions,
    dataset: Any,
    mllm: str,
    load: Callable[[], Scorers],
    names: dict[str, Any],
    *,
    lists: bool = False,
    views: Views = NO_VIEWS,
) -> list[Path] | None:
    """Score this process's part.

    Args:
        options: How rows are read, and where the shards go.
        dataset: The rows.
        mllm: The multimodal LLM that scores, for the fingerprint.
        load: Loads what scores.
        names: What else decides the scores.
        lists: Whether rows have responses for chosen and rejected.
        views: See ``score_pairs``.

    Returns:
        All shards, or None where merging them is left to another process or command.
    """
    check_exists(mllm, "config.json", "adapter_config.json")
    part = parse_share(options.shard)
    share = split_among_processes(part)
    data = hash_data_files(options.pairs)
    reference = fingerprint_checkpoint(mllm, dtype=options.dtype, quantization=options.quantization)
    fingerprint = {"data": data, **names, "dtype": options.dtype, "reference": reference}
    score_pairs(dataset, load, fingerprint=fingerprint, options=options, lists=lists, views=views, share=share)
    if not wait_for_all():
        return None
    if part.count > 1:
        print(f"part {options.shard} is scored; when all parts are, run the same command without --shard: it joins them")
        return None
    return merge_shards(options.out, len(dataset), max_reject_share=options.max_reject_share)


def _load_scorers(mllm: str, clip: str | None, options: ReadOptions) -> Scorers:
    device = best_device()
    model, processor = load_mllm(mllm, dtype=options.dtype, quantization=options.quantization)
    if told := describe_end(processor, end_tokens(model), options.answer_end):
        print(told)
    if clip is None:
        return Scorers(model.to(device), processor)
    clip_model, clip_processor = load_clip(clip, dtype=options.dtype)
    return Scorers(model.to(device), processor, clip_model.to(device), clip_processor)


def run_fuse(options: FuseOptions) -> None:
    """Vote again on shards that are there.

    Raises:
        ValueError: If the folder has no scores, some are missing, or they are of other data.
    """
    record = options.out / SCORING
    if not record.is_file():
        raise UserError(f"no scores in {options.out}; run mmalign score-difficulty first")
    held, given = {"data": read_json_object(record).get("data")}, {"data": hash_data_files(options.pairs)}
    check_same(options.out, held, given, what="other scores", next_step="name the pairs that were scored")
    dataset = load_rows(options.pairs)
    shards = merge_shards(options.out, len(dataset))
    print_summary(fuse_shards(dataset, shards, out=options.out, votes=options), options.out)


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print what the proxies did, a line each."""
    print(f"{summary['num_scored']:,} pairs scored, {summary['num_rejected']:,} rejected; proxies agree on {summary['agreement']:.1%}")
    if cut := summary.get("num_cut_sentences"):
        print(f"  {cut:,} sentences are longer than the contrastive model's text tower holds: read in pieces of whole words")
    found = {f"{group}/{name}": s for group, proxies in summary["statistics"].items() for name, s in proxies.items()}
    rows = [(name, f"{s['mean']:+.3f}", f"{s['std']:.3f}", f"{s['accuracy']:.1%}", f"{s['weight']:.3f}") for name, s in found.items()]
    print(text_table([("proxy", "mean gap", "std", "accuracy", "weight"), *rows]))
    for pair in summary["proxy_agreement"]:
        print(f"  {_agreement_words(pair)}")
    for source, part in summary["sources"].items() if len(summary["sources"]) > 1 else ():
        right = ", ".join(f"{name} {value:.1%}" for name, value in part["accuracy"].items())
        print(f"  source {source}: {part['num_pairs']:,} pairs, mean difficulty {part['mean_difficulty']:.3f}, accuracy {right}")
        for pair in part["proxy_agreement"]:
            print(f"    {_agreement_words(pair)}")
    print(f"saved in {out / 'scored.parquet'}")


def _agreement_words(found: dict[str, Any]) -> str:
    kappa, correlation = ("undefined" if found[name] is None else f"{found[name]:+.3f}" for name in ("kappa", "rank_correlation"))
    return f"{' and '.join(found['proxies'])} agree on {found['sign_agreement']:.1%}, kappa {kappa}, rank correlation {correlation}"
