"""Scoring pairs: what is read, by which models, and how they vote."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.options.precision import PrecisionOptions
from mmalign.options.rows import AnswerOptions


@dataclass(frozen=True, kw_only=True)
class PairsOptions:
    """What is scored, and where the scores go."""

    pairs: Path = field(metadata={"positional": True})
    """pairs: parquet, json or jsonl file, or a folder of them"""
    out: Path
    """folder of shards and results"""


@dataclass(frozen=True, kw_only=True)
class VoteOptions(PairsOptions):
    """How the proxies vote."""

    weighting: Literal["accuracy", "above-chance", "equal"] = "accuracy"
    """a proxy's vote: its preference accuracy, what of it is above chance, or equal"""
    weights: list[str] = field(default_factory=list)
    """fixed weights instead, one for each proxy: contrastive=0.3,generative=0.7"""
    extra_gaps: list[str] = field(default_factory=list)
    """other proxies that vote too: NAME for each column gap_NAME of the pairs"""
    by_source: bool = False
    """vote within each data source (column source)"""


@dataclass(frozen=True, kw_only=True)
class ReadOptions(PairsOptions, PrecisionOptions, AnswerOptions):
    """How pairs are read and run through a multimodal LLM."""

    batch_size: int = 16
    """pairs at once"""
    max_length: int | None = None
    """longest row in tokens, images included; longer ones are rejected"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    max_reject_share: float = 0.05
    """stop if more than this share of rows is broken"""
    shard: str = "1/1"
    """score part i/N alone, i from 1; the parts may run on different machines"""


@dataclass(frozen=True, kw_only=True)
class CacheOptions(ReadOptions):
    """Options of ``mmalign cache-logps``."""

    model: str
    """the reference: a multimodal LLM, folder or hub id"""


@dataclass(frozen=True, kw_only=True)
class CacheTeacherOptions(AnswerOptions):
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
    batch_size: int = 16
    """chats at once"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """precision of the weights"""
    max_length: int | None = None
    """longest row in tokens, images included; longer ones are rejected"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    max_reject_share: float = 0.05
    """stop if more than this share of rows is broken"""
    shard: str = "1/1"
    """part i/N alone, i from 1; the parts may run on different machines"""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(VoteOptions, ReadOptions):
    """Options of ``mmalign score-difficulty``."""

    clip: str
    """contrastive model: folder or hub id"""
    mllm: str
    """multimodal LLM before alignment: folder or hub id"""


@dataclass(frozen=True, kw_only=True)
class FuseOptions(VoteOptions):
    """Options of ``mmalign fuse-difficulty``."""
