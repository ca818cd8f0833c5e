"""Making models: join, upcycle, merge, combine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.precision import Dtype, Quantization
from mmalign.options.rows import AnswerOptions


@dataclass(frozen=True, kw_only=True)
class HalvesOptions(Options):
    """Which halves are joined."""

    vision: str
    """vision encoder: folder, hub id (CLIP, SigLIP, timm) or JSON config for random weights"""
    llm: str
    """language model: folder, hub id, GGUF file or JSON config for random weights"""
    tokenizer: str | None = None
    """tokenizer folder or hub id; the language model's own if not given"""
    chat_template: str = "vicuna"
    """vicuna, chatml, or a Jinja file"""
    vision_feature_layer: int | None = None
    """tower layer to project; LLaVA's -2 if not given"""
    image_size: int = 256
    """input side of a timm tower, whose config names none"""
    seed: int = 0
    """of what is not loaded: the projector, halves given as a config"""


@dataclass(frozen=True, kw_only=True)
class ComposeOptions(HalvesOptions):
    """Options of ``mmalign compose``."""

    out: Path
    """folder of the composed model"""


@dataclass(frozen=True, kw_only=True)
class ExpertsOptions(Options):
    """What becomes of the feed-forward networks."""

    num_experts: int = 4
    """copies of each feed-forward network"""
    top_k: int = 2
    """copies that a token passes through"""
    layers: list[str] = field(default_factory=lambda: ["alternate"])
    """layers that get experts: alternate (0, 2, 4, ...), all, or numbers"""
    granularity: int = 1
    """cut each copy into this many narrower experts"""
    router_init: Literal["normal", "uniform"] = "normal"
    """uniform is LLaVA-MoD's"""
    router_std: float = 0.02
    """standard deviation of a normal router"""
    shared_expert: bool = False
    """half of a layer's output from a copy that every token passes"""
    norm_topk_prob: bool = True
    """weights of the chosen experts sum to 1; off is refused"""
    seed: int = 0
    """of the router"""

    def __post_init__(self) -> None:
        """Refuse what can't compute the same as the dense model.

        Raises:
            ValueError: With the value, and what was expected.
        """
        super().__post_init__()
        if self.num_experts < 2:
            raise UserError(f"num_experts is {self.num_experts}; expected 2 or more")
        if not 1 <= self.top_k <= self.num_experts:
            raise UserError(f"top_k is {self.top_k}; expected 1 to num_experts ({self.num_experts})")
        if self.granularity < 1:
            raise UserError(f"granularity is {self.granularity}; expected 1 (whole copies) or more parts")
        if not self.router_std > 0:
            raise UserError(
                f"router_std is {self.router_std}; expected a positive number: with equal router logits every token takes the same experts"
            )
        if not self.norm_topk_prob:
            raise UserError(
                "norm_topk_prob is off: the weights of the chosen experts would sum to less than 1, and the sparse model would not "
                "compute what the dense one does; leave it on"
            )


@dataclass(frozen=True, kw_only=True)
class UpcycleOptions(ExpertsOptions):
    """Options of ``mmalign upcycle``."""

    model: str = field(metadata={"positional": True})
    """dense multimodal LLM: folder or hub id"""
    out: Path
    """folder of the sparse model"""


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Options):
    """Options of ``mmalign merge``."""

    adapter: str = field(metadata={"positional": True})
    """folder of the adapter, as mmalign train --lora-rank leaves it"""
    out: Path
    """folder of the merged model"""
    dtype: Dtype = "auto"
    """precision of the merged weights"""
    quantization: Quantization | None = None
    """how the base was held in training; what the adapter's run says if not given"""


@dataclass(frozen=True, kw_only=True)
class CombineOptions(AnswerOptions):
    """Options of ``mmalign combine-adapters``."""

    adapters: list[str] = field(metadata={"positional": True})
    """two or more LoRA adapters of one base: folders, as mmalign train --lora-rank leaves them"""
    out: Path
    """folder of the combined adapter"""
    data: list[Path] = field(default_factory=list)
    """preference pairs to find the weights on, a file or folder for each domain; with --weights they are only measured"""
    weights: list[float] = field(default_factory=list)
    """a factor for each adapter; if not given, those on a grid of tenths that sum to 1 with the lowest mean of the sets' DPO losses"""
    max_pairs: int = 64
    """pairs of each set, spread over it"""
    beta: float = 0.1
    """DPO's, for the losses"""
    batch_size: int = 8
    """pairs at once"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    dtype: Dtype = "auto"
    """precision of the base's weights"""
    quantization: Quantization | None = None
    """how the base is held; what the adapters' runs say if not given"""

    def __post_init__(self) -> None:
        """Refuse what can't be summed or weighted."""
        super().__post_init__()
        if len(self.adapters) < 2:
            raise UserError(f"adapters is {' '.join(self.adapters)}; expected two or more")
        if not self.weights and not self.data:
            raise UserError("no weights are given, and no pairs to find them on; add --data or --weights")
        if self.weights and len(self.weights) != len(self.adapters):
            raise UserError(f"weights has {len(self.weights)} numbers for {len(self.adapters)} adapters; expected one for each")
        self.refuse_below(1, "max_pairs", "batch_size")
        if not self.beta > 0:
            raise UserError(f"beta is {self.beta}; expected a positive number, such as 0.1")
