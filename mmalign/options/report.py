"""Pages and tables."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class ReportEvalOptions(Options):
    """Options of ``mmalign report eval``."""

    results: list[Path] = field(metadata={"positional": True})
    """folders that mmalign evaluate --out wrote, one per model"""
    out: Path
    """folder of report.html, report.md and report.csv"""
    names: list[str] = field(default_factory=list)
    """the models' names in that order; the folders' names if not given"""
    images: list[Path] = field(default_factory=list)
    """folders to look for the images of wrong answers in"""
    links: list[Path] = field(default_factory=list)
    """other pages to link to from the top, such as those of the other reports"""
    title: str = "Evaluation"
    """title of the page"""
    max_wrong: int = 40
    """most wrong answers shown of a model and benchmark, drawn at random"""
    resamples: int = 2000
    """resamples of the images for the intervals"""
    seed: int = 0
    """of the resampling and of the wrong answers that are shown"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(0, "max_wrong")
        self.refuse_below(1, "resamples")


@dataclass(frozen=True, kw_only=True)
class ReportTrainingOptions(Options):
    """Options of ``mmalign report training``."""

    runs: list[Path] = field(metadata={"positional": True})
    """folders that mmalign train wrote, one per run"""
    out: Path
    """.html: a page of everything that was logged; .png or .svg: reward margin and accuracy by difficulty"""
    names: list[str] = field(default_factory=list)
    """the runs' names in that order; the folders' names if not given"""
    smooth: int = 5
    """each point is the mean of this many logs; 1 shows the logs as they are"""
    title: str = "Training"
    """title of the page"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "smooth")


@dataclass(frozen=True, kw_only=True)
class ReportDifficultyOptions(Options):
    """Options of ``mmalign report difficulty``."""

    scores: Path = field(metadata={"positional": True})
    """folder that mmalign score-difficulty --out wrote"""
    out: Path
    """the page: an .html file"""
    num_pairs: int = 24
    """pairs shown, evenly spaced from the easiest to the hardest"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    group_by: str = "source"
    """column of the pairs that the page compares groups of"""
    title: str = "Difficulty of preference pairs"
    """title of the page"""
