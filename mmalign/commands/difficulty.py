"""``mmalign score-difficulty`` and ``mmalign fuse-difficulty``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class VoteOptions:
    """How the proxies vote."""

    pairs: Path = field(metadata={"help": "pairs: parquet, json or jsonl file, or a folder of them", "positional": True})
    out: Path = field(metadata={"help": "folder of shards, scored.parquet and difficulty.json"})
    weighting: Literal["accuracy", "above-chance", "equal"] = field(
        default="accuracy", metadata={"help": "a proxy's vote: its preference accuracy, what of it is above chance, or equal"}
    )
    by_source: bool = field(default=False, metadata={"help": "vote within each data source (column source)"})


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(VoteOptions):
    """Options of ``mmalign score-difficulty``."""

    clip: str = field(metadata={"help": "contrastive model: folder or hub id"})
    mllm: str = field(metadata={"help": "multimodal LLM before alignment: folder or hub id"})
    batch_size: int = field(default=16, metadata={"help": "pairs at once"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="auto", metadata={"help": "precision of the weights"})
    max_length: int | None = field(default=None, metadata={"help": "longest row in tokens, images included; longer ones are rejected"})
    image_root: Path | None = field(default=None, metadata={"help": "folder that relative image paths in the data start from"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of rows is broken"})


@dataclass(frozen=True, kw_only=True)
class FuseOptions(VoteOptions):
    """Options of ``mmalign fuse-difficulty``."""


def run_score(options: ScoreOptions) -> None:
    """Score every pair, vote, and print the summary."""
    from mmalign.data.datasets import find_data_files, load_rows
    from mmalign.data.hashing import hash_file
    from mmalign.difficulty.fuse import fuse_shards
    from mmalign.difficulty.scoring import ScoreConfig, Scorers, score_pairs
    from mmalign.models.load import load_clip, load_mllm

    dataset = load_rows(options.pairs)
    scorers = Scorers(*load_clip(options.clip, dtype=options.dtype), *load_mllm(options.mllm, dtype=options.dtype))
    fingerprint = {
        "data": {path.name: hash_file(path) for path in find_data_files(options.pairs)},
        "clip": options.clip,
        "mllm": options.mllm,
        "dtype": options.dtype,
    }
    config = ScoreConfig(options.batch_size, options.max_length, options.image_root, options.max_reject_share)
    shards = score_pairs(dataset, scorers, out=options.out, fingerprint=fingerprint, config=config)
    print_summary(fuse_shards(dataset, shards, out=options.out, weighting=options.weighting, by_source=options.by_source), options.out)


def run_fuse(options: FuseOptions) -> None:
    """Vote again on shards that are there.

    Raises:
        ValueError: If the folder has no scores, or they are of other data.
    """
    from mmalign.data.datasets import find_data_files, load_rows
    from mmalign.data.hashing import hash_file
    from mmalign.difficulty.fuse import fuse_shards

    record = options.out / "scoring.json"
    if not record.is_file():
        raise ValueError(f"no scores in {options.out}; run mmalign score-difficulty first")
    held = json.loads(record.read_text(encoding="utf-8"))["data"]
    given = {path.name: hash_file(path) for path in find_data_files(options.pairs)}
    if held != given:
        raise ValueError(f"{options.out} holds scores of {held}, not of {given}; name the pairs that were scored")
    shards = sorted((options.out / "shards").glob("*.jsonl"))
    dataset = load_rows(options.pairs)
    print_summary(fuse_shards(dataset, shards, out=options.out, weighting=options.weighting, by_source=options.by_source), options.out)


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print what the proxies did, a line each."""
    print(f"{summary['num_scored']:,} pairs scored, {summary['num_rejected']:,} rejected; proxies agree on {summary['agreement']:.1%}")
    for group, proxies in summary["statistics"].items():
        for name, s in proxies.items():
            print(f"  {group}/{name}: gap {s['mean']:+.3f} +- {s['std']:.3f}, accuracy {s['accuracy']:.1%}, weight {s['weight']:.3f}")
    print(f"saved in {out / 'scored.parquet'}")
