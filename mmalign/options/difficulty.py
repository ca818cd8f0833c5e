"""Scoring pairs: what is read, by which models, and how they vote; and keeping what a reference or a teacher says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
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


@dataclass(frozen=True, kw_only=True)
class ScoreRewardsOptions(ReadOptions):
    """Options of ``mmalign score-rewards``."""

    model: str
    """the reward model, or the policy whose implicit reward is wanted: multimodal LLM, folder or hub id"""
    kind: Literal["verifier", "implicit"] = "verifier"
    """ask about each response and compare two words; or beta (log p under the model - log p under --reference)"""
    question: str | None = None
    """verifier: what to ask behind a response; as the model was trained if not given"""
    answers: list[str] = field(default_factory=list)
    """verifier: the words for right and for wrong; as the model was trained if not given"""
    reference: str | None = None
    """implicit: the model that the policy started from: folder or hub id"""
    beta: float = 0.1
    """implicit: the beta that the policy was trained with"""

    def __post_init__(self) -> None:
        """Refuse what is of the other kind."""
        super().__post_init__()
        if (self.kind == "implicit") != (self.reference is not None):
            raise UserError("--kind implicit and --reference MODEL go together; give both or neither")
        if self.kind == "implicit" and (self.question is not None or self.answers):
            raise UserError("--question and --answers are for --kind verifier; leave them out")
        if not self.beta > 0:
            raise UserError(f"beta is {self.beta}; expected a positive number, such as 0.1")
