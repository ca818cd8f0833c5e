"""What is looked at in a trained model."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.errors import UserError
from mmalign.options.precision import DtypeOptions
from mmalign.options.rows import AnswerOptions, RowOptions


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(RowOptions, AnswerOptions, DtypeOptions):
    """Options of ``mmalign diagnose``."""

    pairs: Path = field(metadata={"positional": True})
    """pairs: parquet, json or jsonl file, or a folder of them"""
    model: str
    """the trained model: folder or hub id; a run's folder brings its log"""
    out: Path
    """folder of diagnosis.json and diagnosis.html"""
    reference: str | None = None
    """what training started from; a LoRA adapter's base if not given"""
    held_out: Path | None = None
    """pairs that were not trained on, for the dispersion"""
    checkpoints: list[Path] = field(default_factory=list)
    """models between start and end, in their order; a folder of checkpoint-N stands for all of them"""
    beta: float = 0.1
    """factor of the credits, as in training"""
    max_pairs: int = 256
    """pairs that are looked at, drawn at random; of the held-out ones as many"""
    max_tokens: int = 1024
    """response tokens whose states are kept for the layers and the information"""
    credited: int = 8
    """pairs whose credit is drawn"""
    search: int = 0
    """answer the pairs' prompts greedily and with so many beams, by policy and start, and compare the rewards; 0: don't"""
    search_tokens: int = 128
    """longest of these answers"""
    batch_size: int = 16
    """pairs at once"""
    title: str = "Diagnosis"
    """title of the page"""
    seed: int = 0
    """of the sample of pairs and the probe's folds"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "max_pairs", "max_tokens", "search_tokens", "batch_size")
        if self.search != 0:
            self.refuse_below(2, "search")
        if self.credited < 0 or not self.beta > 0:
            raise UserError(f"credited is {self.credited} and beta {self.beta}; expected a number from 0 and a positive one")
