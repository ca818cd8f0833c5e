"""Scoring pairs: what is read, by which models, and how they vote; and keeping what a reference or a teacher says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.options.base import Options
from mmalign.options.precision import DtypeOptions, PrecisionOptions
from mmalign.options.rows import ShardOptions, WeakenOptions

Weighting = Literal["accuracy", "above-chance", "equal"]


@dataclass(frozen=True, kw_only=True)
class PairsOptions(Options):
    """What is scored, and where the scores go."""

    pairs: Path = field(metadata={"positional": True})
    """pairs: parquet, json or jsonl file, or a folder of them"""
    out: Path
    """folder of shards and results"""


@dataclass(frozen=True, kw_only=True)
class VoteOptions(Options):
    """How the proxies vote."""

    weighting: Weighting = "accuracy"
    """a proxy's vote: its preference accuracy, what of it is above chance, or equal"""
    weights: list[str] = field(default_factory=list)
    """fixed weights instead, one for each proxy: contrastive=0.3,generative=0.7"""
    extra_gaps: list[str] = field(default_factory=list)
    """other proxies that vote too: NAME for each column gap_NAME of the pairs"""
    by_source: bool = False
    """vote within each data source (column source)"""


@dataclass(frozen=True, kw_only=True)
class ReadOptions(PairsOptions, PrecisionOptions, ShardOptions):
    """How pairs are read and run through a multimodal LLM."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ReadOptions, VoteOptions):
    """Options of ``mmalign score-difficulty``."""

    clip: str
    """contrastive model: folder or hub id"""
    mllm: str
    """multimodal LLM before alignment: folder or hub id"""


@dataclass(frozen=True, kw_only=True)
class FuseOptions(PairsOptions, VoteOptions):
    """Options of ``mmalign fuse-difficulty``."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions(ReadOptions, WeakenOptions):
    """Options of ``mmalign cache-logps``."""

    model: str
    """the reference: a multimodal LLM, folder or hub id"""
    objective: list[str] = field(default_factory=list)
    """objectives of pairs that the cache is for, as train preference takes them; needed where they compare images"""


@dataclass(frozen=True, kw_only=True)
class CacheTeacherOptions(ShardOptions, DtypeOptions):
    """Options of ``mmalign cache-teacher``."""

    chats: Path = field(metadata={"positional": True})
    """chats: parquet, json or jsonl file, or a folder of them"""
    out: Path
    """folder; its data/ is what train mimic reads"""
    model: str
    """the teacher: a multimodal LLM, folder or hub id"""
    top_k: int = 64
    """likeliest tokens kept of each response token"""
    storage: Literal["float16", "float32"] = "float16"
    """precision of the stored log-probabilities"""
