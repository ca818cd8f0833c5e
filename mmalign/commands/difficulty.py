"""``mmalign score-difficulty``, ``mmalign fuse-difficulty`` and ``mmalign cache-logps``."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmalign.data.options import AnswerOptions
from mmalign.models.precision import PrecisionOptions


@dataclass(frozen=True, kw_only=True)
class PairsOptions:
    """What is scored, and where the scores go."""

    pairs: Path = field(metadata={"help": "pairs: parquet, json or jsonl file, or a folder of them", "positional": True})
    out: Path = field(metadata={"help": "folder of shards and results"})


@dataclass(frozen=True, kw_only=True)
class VoteOptions(PairsOptions):
    """How the proxies vote."""

    weighting: Literal["accuracy", "above-chance", "equal"] = field(
        default="accuracy", metadata={"help": "a proxy's vote: its preference accuracy, what of it is above chance, or equal"}
    )
    weights: list[str] = field(
        default_factory=list, metadata={"help": "fixed weights instead, one for each proxy: contrastive=0.3,generative=0.7"}
    )
    extra_gaps: list[str] = field(
        default_factory=list, metadata={"help": "other proxies that vote too: NAME for each column gap_NAME of the pairs"}
    )
    by_source: bool = field(default=False, metadata={"help": "vote within each data source (column source)"})


@dataclass(frozen=True, kw_only=True)
class ReadOptions(PairsOptions, PrecisionOptions, AnswerOptions):
    """How pairs are read and run through a multimodal LLM."""

    batch_size: int = field(default=16, metadata={"help": "pairs at once"})
    max_length: int | None = field(default=None, metadata={"help": "longest row in tokens, images included; longer ones are rejected"})
    image_root: Path | None = field(default=None, metadata={"help": "folder that relative image paths in the data start from"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of rows is broken"})
    shard: str = field(default="1/1", metadata={"help": "score part i/N alone, i from 1; the parts may run on different machines"})


@dataclass(frozen=True, kw_only=True)
class CacheOptions(ReadOptions):
    """Options of ``mmalign cache-logps``."""

    model: str = field(metadata={"help": "the reference: a multimodal LLM, folder or hub id"})


@dataclass(frozen=True, kw_only=True)
class CacheTeacherOptions(AnswerOptions):
    """Options of ``mmalign cache-teacher``."""

    chats: Path = field(metadata={"help": "chats: parquet, json or jsonl file, or a folder of them", "positional": True})
    out: Path = field(metadata={"help": "folder; its data/ is what train mimic reads"})
    model: str = field(metadata={"help": "the teacher: a multimodal LLM, folder or hub id"})
    top_k: int = field(default=64, metadata={"help": "likeliest tokens kept of each response token"})
    storage: Literal["float16", "float32"] = field(default="float16", metadata={"help": "precision of the stored log-probabilities"})
    batch_size: int = field(default=16, metadata={"help": "chats at once"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="auto", metadata={"help": "precision of the weights"})
    max_length: int | None = field(default=None, metadata={"help": "longest row in tokens, images included; longer ones are rejected"})
    image_root: Path | None = field(default=None, metadata={"help": "folder that relative image paths in the data start from"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of rows is broken"})
    shard: str = field(default="1/1", metadata={"help": "part i/N alone, i from 1; the parts may run on different machines"})


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(VoteOptions, ReadOptions):
    """Options of ``mmalign score-difficulty``."""

    clip: str = field(metadata={"help": "contrastive model: folder or hub id"})
    mllm: str = field(metadata={"help": "multimodal LLM before alignment: folder or hub id"})


@dataclass(frozen=True, kw_only=True)
class FuseOptions(VoteOptions):
    """Options of ``mmalign fuse-difficulty``."""


def run_score(options: ScoreOptions) -> None:
    """Score every pair, vote, and print the summary."""
    from mmalign.data.datasets import load_rows
    from mmalign.difficulty.contrastive import TEXT_POLICY, text_limit
    from mmalign.difficulty.fuse import check_votes, fuse_shards
    from mmalign.models.load import load_config

    votes = _read_votes(options)
    dataset = load_rows(options.pairs)
    check_votes(dataset, votes)
    text = {"text_policy": TEXT_POLICY, "text_tokens": text_limit(load_config(options.clip))}
    shards = _score(options, dataset, options.mllm, options.clip, {"clip": options.clip, "mllm": options.mllm, **text})
    if shards is not None:
        print_summary(fuse_shards(dataset, shards, out=options.out, config=votes), options.out)


def _read_votes(options: VoteOptions) -> Any:
    """Turn the options into a VoteConfig, whose module imports more than ``--help`` may."""
    from mmalign.difficulty.voting import VoteConfig, parse_weights

    weights = parse_weights(options.weights)
    if weights is not None and options.weighting != "accuracy":
        raise ValueError(f"--weighting {options.weighting} and --weights exclude each other; leave one out")
    names = tuple(name.strip() for text in options.extra_gaps for name in text.split(",") if name.strip())
    return VoteConfig(weighting=options.weighting, weights=weights, by_source=options.by_source, extra_proxies=names)


def run_cache(options: CacheOptions) -> None:
    """Compute the reference's log-probabilities of every pair, or of every response of a list, and write them beside the rows."""
    from mmalign.data.datasets import load_rows
    from mmalign.difficulty.fuse import CACHED, write_cached

    dataset = load_rows(options.pairs)
    shards = _score(options, dataset, options.model, None, {"mllm": options.model})
    if shards is not None:
        count = write_cached(dataset, shards, out=options.out)
        print(f"{count:,} of {len(dataset):,} rows with the log-probabilities of {options.model} saved in {options.out / CACHED}")


def run_cache_teacher(options: CacheTeacherOptions) -> None:
    """Keep the teacher's likeliest tokens of every response token beside the chats."""
    from mmalign.data.datasets import find_data_files, load_rows
    from mmalign.data.hashing import hash_file
    from mmalign.difficulty.shares import parse_share, split_among_processes, wait_for_all
    from mmalign.difficulty.teacher import TeacherCacheConfig, write_teacher_cache
    from mmalign.engine.reference_cache import fingerprint_checkpoint
    from mmalign.models.load import best_device, check_exists, load_mllm

    check_exists(options.model, "config.json", "adapter_config.json")
    share = split_among_processes(parse_share(options.shard))
    config = TeacherCacheConfig(
        options.top_k,
        options.storage,
        options.batch_size,
        options.max_length,
        options.answer_end,
        options.image_root,
        options.max_reject_share,
    )

    def load() -> tuple[Any, Any]:
        model, processor = load_mllm(options.model, dtype=options.dtype)
        return model.to(best_device()), processor

    reference = fingerprint_checkpoint(options.model, dtype=options.dtype)
    data = {path.name: hash_file(path) for path in find_data_files(options.chats)}
    fingerprint = {"data": data, "teacher": reference}
    dataset = load_rows(options.chats)
    write_teacher_cache(dataset, load, out=options.out, reference=reference, fingerprint=fingerprint, config=config, share=share)
    if wait_for_all():
        print(f"the {options.top_k} likeliest tokens of {options.model} saved in {options.out / 'data'}")


def _score(options: ReadOptions, dataset: Any, mllm: str, clip: str | None, names: dict[str, Any]) -> list[Path] | None:
    """Score this process's part.

    Returns:
        All shards, or None where merging them is left to another process or command.
    """
    from mmalign.data.datasets import find_data_files
    from mmalign.data.hashing import hash_file
    from mmalign.difficulty.scoring import ScoreConfig, merge_shards, score_pairs
    from mmalign.difficulty.shares import parse_share, split_among_processes, wait_for_all
    from mmalign.engine.reference_cache import fingerprint_checkpoint
    from mmalign.models.load import check_exists

    check_exists(mllm, "config.json", "adapter_config.json")
    part = parse_share(options.shard)
    share = split_among_processes(part)
    data = {path.name: hash_file(path) for path in find_data_files(options.pairs)}
    reference = fingerprint_checkpoint(mllm, dtype=options.dtype, quantization=options.quantization)
    config = ScoreConfig(
        options.batch_size,
        options.max_length,
        options.answer_end,
        options.image_root,
        options.max_reject_share,
        clip is None and "responses" in dataset.column_names,
    )
    fingerprint = {"data": data, **names, "dtype": options.dtype, "reference": reference}
    load = partial(_load_scorers, mllm, clip, options)
    score_pairs(dataset, load, out=options.out, fingerprint=fingerprint, config=config, share=share)
    if not wait_for_all():
        return None
    if part.count > 1:
        print(f"part {options.shard} is scored; when all parts are, run the same command without --shard: it joins them")
        return None
    return merge_shards(options.out, len(dataset), max_reject_share=options.max_reject_share)


def _load_scorers(mllm: str, clip: str | None, options: ReadOptions) -> Any:
    from mmalign.data.templates import describe_end
    from mmalign.difficulty.scoring import Scorers
    from mmalign.engine.generation import end_tokens
    from mmalign.models.load import best_device, load_clip, load_mllm

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
    from mmalign.data.datasets import find_data_files, load_rows
    from mmalign.data.hashing import hash_file
    from mmalign.data.json_files import read_json_object
    from mmalign.difficulty.fuse import fuse_shards
    from mmalign.difficulty.scoring import merge_shards

    votes = _read_votes(options)
    record = options.out / "scoring.json"
    if not record.is_file():
        raise ValueError(f"no scores in {options.out}; run mmalign score-difficulty first")
    held = read_json_object(record).get("data")
    given = {path.name: hash_file(path) for path in find_data_files(options.pairs)}
    if held != given:
        raise ValueError(f"{options.out} holds scores of {held}, not of {given}; name the pairs that were scored")
    dataset = load_rows(options.pairs)
    shards = merge_shards(options.out, len(dataset))
    print_summary(fuse_shards(dataset, shards, out=options.out, config=votes), options.out)


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print what the proxies did, a line each."""
    print(f"{summary['num_scored']:,} pairs scored, {summary['num_rejected']:,} rejected; proxies agree on {summary['agreement']:.1%}")
    if cut := summary.get("num_cut_sentences"):
        print(f"  {cut:,} sentences are longer than the contrastive model's text tower holds: read in pieces of whole words")
    for group, proxies in summary["statistics"].items():
        for name, s in proxies.items():
            print(f"  {group}/{name}: gap {s['mean']:+.3f} +- {s['std']:.3f}, accuracy {s['accuracy']:.1%}, weight {s['weight']:.3f}")
    for found in summary["proxy_agreement"]:
        print(f"  {_agreement_words(found)}")
    for source, part in summary["sources"].items() if len(summary["sources"]) > 1 else ():
        right = ", ".join(f"{name} {value:.1%}" for name, value in part["accuracy"].items())
        print(f"  source {source}: {part['num_pairs']:,} pairs, mean difficulty {part['mean_difficulty']:.3f}, accuracy {right}")
        for found in part["proxy_agreement"]:
            print(f"    {_agreement_words(found)}")
    print(f"saved in {out / 'scored.parquet'}")


def _agreement_words(found: dict[str, Any]) -> str:
    kappa, correlation = ("undefined" if found[name] is None else f"{found[name]:+.3f}" for name in ("kappa", "rank_correlation"))
    return f"{' and '.join(found['proxies'])} agree on {found['sign_agreement']:.1%}, kappa {kappa}, rank correlation {correlation}"
