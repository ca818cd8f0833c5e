"""``mmalign diagnose``: what preference training did to a model, and what its pairs are like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.data.options import AnswerOptions


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(AnswerOptions):
    """Options of ``mmalign diagnose``."""

    pairs: Path = field(metadata={"help": "pairs: parquet, json or jsonl file, or a folder of them", "positional": True})
    model: str = field(metadata={"help": "the trained model: folder or hub id; a run's folder brings its log"})
    out: Path = field(metadata={"help": "folder of diagnosis.json and diagnosis.html"})
    reference: str | None = field(default=None, metadata={"help": "what training started from; a LoRA adapter's base if not given"})
    held_out: Path | None = field(default=None, metadata={"help": "pairs that were not trained on, for the dispersion"})
    checkpoints: list[Path] = field(
        default_factory=list,
        metadata={"help": "models between start and end, in their order; a folder of checkpoint-N stands for all of them"},
    )
    beta: float = field(default=0.1, metadata={"help": "factor of the credits, as in training"})
    max_pairs: int = field(default=256, metadata={"help": "pairs that are looked at, drawn at random; of the held-out ones as many"})
    max_tokens: int = field(default=1024, metadata={"help": "response tokens whose states are kept for the layers and the information"})
    credited: int = field(default=8, metadata={"help": "pairs whose credit is drawn"})
    batch_size: int = field(default=16, metadata={"help": "pairs at once"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="auto", metadata={"help": "precision of the weights"})
    max_length: int | None = field(default=None, metadata={"help": "longest row in tokens, images included; longer ones are rejected"})
    image_root: Path | None = field(default=None, metadata={"help": "folder that relative image paths in the data start from"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of rows is broken"})
    title: str = field(default="Diagnosis", metadata={"help": "title of the page"})
    seed: int = field(default=0, metadata={"help": "of the sample of pairs and the probe's folds"})


def run(options: DiagnoseOptions) -> None:
    """Diagnose, write both files, and print the counters.

    Raises:
        ValueError: If a number makes no sense, and as ``diagnose``.
    """
    from mmalign.commands.diagnosis import diagnose

    for name in ("max_pairs", "max_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}; expected at least 1")
    if options.credited < 0 or not options.beta > 0:
        raise ValueError(f"credited is {options.credited} and beta {options.beta}; expected a number from 0 and a positive one")

    diagnosis, page = diagnose(options)
    for name, moved in diagnosis["movement"].items():
        print(
            f"{name.replace('_', '-')} ({moved['num_pairs']:,}): h of chosen {moved['chosen']:+.3f}, of rejected {moved['rejected']:+.3f}; "
            f"below the start: {moved['degraded']:.1%} of chosen, {moved['rejected_below']:.1%} of rejected; dropped {moved['dropped']:.1%}"
        )
    for name, probe in diagnosis["separability"].items():
        print(f"chosen told from rejected by {name}: {probe['accuracy']:.1%} [{probe['low']:.1%}, {probe['high']:.1%}]")
    print(f"saved in {page}")
