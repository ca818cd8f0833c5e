"""Making models: join, upcycle, merge."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.precision import Dtype, Quantization


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
