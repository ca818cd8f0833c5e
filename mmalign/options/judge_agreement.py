"""Two judges of the same answers."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.evaluate import HallusionQuestions, Mode, Name


@dataclass(frozen=True, kw_only=True)
class JudgeAgreementOptions(Options):
    """Options of ``mmalign judge-agreement``."""

    benchmark: Name = field(metadata={"positional": True})
    """a benchmark that asks a judge: mmhal, object-halbench, haloquest, hallusionbench or mmvp"""
    data: Path
    """the benchmark's own files: their folder, or the question file"""
    answers: Path
    """the answers that both judges read: JSONL of id and response, or the benchmark's own format"""
    judgements: list[Path]
    """two files of saved replies, such as published ones and ours: by id, in the questions' order, or a judge's cache"""
    names: list[str] = field(default_factory=list)
    """the judges' names in that order; of a cache that holds several judges' replies, they say whose"""
    mode: Mode = "strict"
    """how replies are read: as a careful reader, or official, as the original script, which may take what it can't read for a verdict"""
    questions: HallusionQuestions = "all"
    """HallusionBench: all 1,129 questions, or the 951 with an image"""
    judge_prompt: Path | None = None
    """text file with the wording that the judges were asked in, if it was not ours; for caches"""
    allow_partial: bool = False
    """compare what is there, although answers are missing, doubled or foreign"""
    resamples: int = 2000
    """resamples of the images for the intervals"""
    seed: int = 0
    """of the resampling"""
    out: Path | None = None
    """folder for the table as JSON, and the answers on which the judges differ"""
    json: bool = False
    """print one JSON object instead of tables"""

    def __post_init__(self) -> None:
        """Refuse all but two files, and two names if any."""
        super().__post_init__()
        self.refuse_below(100, "resamples")
        if len(self.judgements) != 2:
            raise UserError(f"judgements are {len(self.judgements)} files; expected two: --judgements A --judgements B")
        if self.names and len(set(self.names)) != 2:
            raise UserError(f"names are {', '.join(self.names)}; expected two, one for each file of judgements")
