"""Text-to-image denoisers: what they are trained on, and how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.training import RunOptions

Target = Literal["epsilon", "sample", "v_prediction", "k"]
"""As diffusers names them in ``prediction_type``; k is not one of diffusers' own."""
NoiseSource = Literal["random", "ddim", "renoise", "path"]


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions(RunOptions):
    """The pipeline whose denoiser trains."""

    model: str
    """text-to-image pipeline of diffusers: folder or hub id"""
    resolution: int | None = None
    """side of the images in pixels, which are cut to squares; the denoiser's own if not given"""

    def __post_init__(self) -> None:
        """Refuse images without pixels."""
        super().__post_init__()
        self.refuse_below(1, "resolution")


@dataclass(frozen=True, kw_only=True)
class TrainDenoiserOptions(DenoiserOptions):
    """Options of ``mmalign train denoiser``."""

    target: Target | None = None
    """what the denoiser predicts: epsilon, sample, v_prediction, or k, a learned mixture; the pipeline's own if not given"""
    caption_dropout: float = 0.1
    """share of the rows that are shown without their caption, for guidance"""
    learning_rate: float = 1e-4
    """peak learning rate"""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        super().__post_init__()
        if not 0 <= self.caption_dropout < 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}; expected a share of the rows from 0 to less than 1")


@dataclass(frozen=True, kw_only=True)
class ImagePreferenceOptions(DenoiserOptions):
    """Options of ``mmalign train image-preference``."""

    objective: str = "dpo"
    """NAME or NAME:parameter=value,...: of pairs as for text, such as dpo, smpo or ddo, or rank for lists; docs/denoisers.md"""
    beta: float | None = None
    """pull towards the reference, of the log-ratio; the paper's if not given"""
    noise: NoiseSource = "random"
    """of the image that is denoised: drawn, or the one that the policy would make the image from (ddim, renoise); path: steps of
    sampled paths are compared (D3PO)"""
    inversion_steps: int = 10
    """ddim and renoise: steps from the image to pure noise; as many times are trained at"""
    sft_weight: float = 0.0
    """adds this times the chosen image's squared error"""
    reference_model: str | None = None
    """pipeline of the reference: folder or hub id; if not given, the model without its adapter with LoRA, else a copy of it"""
    lora_rank: int = 0
    """LoRA on the denoiser's attention, merged into the saved pipeline; 0 trains full weights"""
    lora_alpha: int | None = None
    """LoRA scale is alpha / rank; twice the rank if not given"""
    learning_rate: float = 1e-5
    """peak learning rate"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "inversion_steps")
        self.refuse_below(0, "sft_weight", "lora_rank")
        if self.lora_alpha is not None and self.lora_rank == 0:
            raise UserError("lora_alpha is for LoRA; set lora_rank, or leave it out")
        if self.lists and self.sft_weight:
            raise UserError(f"sft_weight is {self.sft_weight}, and a list has no chosen image; leave it out")
        if self.noise == "path":
            given = {"objective rank": self.lists, "sft_weight": self.sft_weight != 0, "resolution": self.resolution is not None}
            if name := next((name for name, found in given.items() if found), None):
                raise UserError(f"{name} is of pictures, and noise path compares two paths; leave one out")

    @property
    def lists(self) -> bool:
        """Whether rows are lists of scored images."""
        return self.objective.partition(":")[0] == "rank"


@dataclass(frozen=True, kw_only=True)
class SampleDenoiserOptions(Options):
    """Options of ``mmalign sample-denoiser``."""

    data: Path = field(metadata={"positional": True})
    """captions: parquet, json or jsonl file, or a folder of them"""
    model: str
    """text-to-image pipeline of diffusers: folder or hub id"""
    out: Path
    """folder; the same command resumes after a stop"""
    num_samples: int = 1
    """pictures of each caption"""
    pairs: bool = False
    """write each picture as the rejected one of a pair, with the row's own as chosen: what ddo learns from"""
    paths: bool = False
    """keep the path of each picture from noise, sampled by DDIM with eta 1: what --noise path trains on (D3PO)"""
    sampling_steps: int = 20
    """of the pipeline's own scheduler, or of a path"""
    guidance: float = 5.0
    """factor of what the caption changes; 1 is none"""
    resolution: int | None = None
    """side of the pictures in pixels; the denoiser's own if not given"""
    batch_size: int = 16
    """pictures at once"""
    seed: int = 0
    """of the pictures' noise"""
    shard: str = "1/1"
    """do part i/N alone, i from 1; the parts may run on different machines"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "num_samples", "sampling_steps", "guidance", "resolution", "batch_size")
        if self.paths and self.pairs:
            raise UserError("pairs and paths are two kinds of rows; give one of them")
        if self.paths and self.sampling_steps < 2:
            raise UserError(f"sampling_steps is {self.sampling_steps}; expected 2 or more for paths, whose last step nothing is drawn in")
