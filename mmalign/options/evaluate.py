"""A benchmark: its files, the model or its answers, the judge."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmalign.errors import UserError
from mmalign.options.endpoint import EndpointOptions
from mmalign.options.judges import JudgeOptions
from mmalign.options.precision import PrecisionOptions

# Name -> module of the evaluation room and class, in the order of reports. A new benchmark is its own module and one line here.
BENCHMARKS = {
    "pope": "pope:Pope",
    "repope": "repope:Repope",
    "chair": "chair:Chair",
    "amber": "amber:Amber",
    "mme": "mme:Mme",
    "hallusionbench": "hallusionbench:HallusionBench",
    "dash-b": "dash_b:DashB",
    "mmvp": "mmvp:Mmvp",
    "naturalbench": "naturalbench:NaturalBench",
    "haloquest": "haloquest:HaloQuest",
    "mmhal": "mmhal:Mmhal",
    "object-halbench": "object_halbench:ObjectHalBench",
}
if TYPE_CHECKING:
    # A type checker can't read a Literal from a table.
    Name = str
else:
    Name = Literal[tuple(BENCHMARKS)]
Mode = Literal["official", "strict"]
ChairVariant = Literal["original", "wordnet"]
HallusionQuestions = Literal["all", "image"]


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(JudgeOptions, PrecisionOptions):
    """How answers are made, judged and scored."""

    mode: Mode = "official"
    """read answers as the original script does, or whole words only"""
    allow_partial: bool = False
    """score what is there, although answers are missing, doubled or foreign"""
    variant: ChairVariant = "original"
    """CHAIR: how words become singular"""
    similarity: str = "auto"
    """AMBER: which words are near: spacy, exact, a table's path, or auto for the best there is"""
    questions: HallusionQuestions = "all"
    """HallusionBench: all 1,129 questions, or the 951 with an image"""
    judgements: Path | None = None
    """a judge's saved replies, instead of asking: by id, in the questions' order, or the judge's cache"""
    prompt_suffix: str = ""
    """text behind every question, such as LLaVA's single-word request"""
    max_new_tokens: int | None = None
    """longest answer in tokens; the benchmark's own if not given: 128 for a word, 512 or 1024 for texts"""
    beams: int = 1
    """search for the likeliest answer with this many beams; 1 is greedy"""
    length_penalty: float = 0.0
    """of beams: an answer's score is its summed log-probability over its length to this power; 0 is the sum, 1 the mean per token"""
    batch_size: int = 64
    """questions at once; with beams, that many rows: questions times beams"""
    max_reject_share: float = 0.05
    """stop if more than this share of questions has a broken image"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "batch_size", "max_new_tokens", "beams")
        if self.beams == 1 and self.length_penalty:
            raise UserError(f"length_penalty is {self.length_penalty} without beams, which it is of; give --beams 2 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EndpointOptions, ScoringOptions):
    """Options of ``mmalign evaluate``."""

    benchmark: Name = field(metadata={"positional": True})
    """which benchmark; for several of them and several models see mmalign evaluate --benchmarks --help"""
    data: Path
    """the benchmark's own files: their folder, or the question file"""
    model: str | None = None
    """answer with this model: folder or hub id"""
    endpoint_model: str | None = None
    """its name at the --endpoint"""
    answers: Path | None = None
    """score these saved answers instead: JSONL of id and response, or the benchmark's own format"""
    images: Path | None = None
    """folder of the images; DATA/images if not given"""
    out: Path | None = None
    """folder for answers and result; needed with --model"""
    json: bool = False
    """print one JSON object instead of a table"""

    def __post_init__(self) -> None:
        """Refuse half an endpoint."""
        super().__post_init__()
        if (self.endpoint is None) != (self.endpoint_model is None):
            raise UserError("a model behind an endpoint needs both --endpoint and --endpoint-model")
        if self.endpoint is not None and self.beams > 1:
            raise UserError(f"beams is {self.beams}; an endpoint decodes by itself: leave --beams out")


@dataclass(frozen=True, kw_only=True)
class EvaluateManyOptions(ScoringOptions):
    """Options of ``mmalign evaluate --benchmarks``."""

    benchmarks: list[str]
    """several of them, such as pope,repope,chair,amber,mmvp"""
    data: Path
    """root of the benchmarks' files, one folder for each by its name; DATA/images serves those without images of their own"""
    model: list[str]
    """models that answer, folders or hub ids: --model A --model B; each is loaded once"""
    out: Path
    """folder of the report, with a folder of answers and results for each model; a stopped run is resumed"""
    names: list[str] = field(default_factory=list)
    """the models' names in that order; the last part of their folders or ids if not given"""
    settings: dict[str, Any] = field(default_factory=dict)
    """other options of mmalign evaluate by benchmark: '{pope: {images: val2014}, chair: {max_new_tokens: 64}}'"""

    def __post_init__(self) -> None:
        """Split names at commas; refuse what is not known or named twice."""
        super().__post_init__()
        named = [name for text in self.benchmarks for name in text.split(",") if name]
        object.__setattr__(self, "benchmarks", named)
        unknown = [name for name in named if name not in BENCHMARKS]
        if unknown or not named or len(set(named)) != len(named):
            given = ", ".join(unknown or named) or "empty"
            raise UserError(f"benchmarks is {given}; expected each once, of {', '.join(BENCHMARKS)}")
        if unused := [name for name in self.settings if name not in named]:
            raise UserError(f"settings are of {', '.join(unused)}, which --benchmarks does not name")
        if self.judgements is not None:
            raise UserError("judgements are of one benchmark: give them in --settings, such as '{mmhal: {judgements: FILE}}'")
        names = self.model_names
        if (
            not self.model
            or len(names) != len(self.model)
            or len(set(names)) != len(names)
            or any(set(name) & {"/", "\0"} for name in names)
        ):
            raise UserError(f"{len(self.model)} models and the names {', '.join(names)}; give each its own name with --names, without /")

    @property
    def model_names(self) -> list[str]:
        """What the models are called in the report."""
        return self.names or [Path(model).name for model in self.model]
