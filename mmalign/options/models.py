"""Making models: join, upcycle, merge."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.options.precision import Dtype, Quantization


@dataclass(frozen=True, kw_only=True)
class ComposeOptions:
    """Options of ``mmalign compose``."""

    vision: str
    """vision encoder: folder, hub id (CLIP, SigLIP, timm) or JSON config for random weights"""
    llm: str
    """language model: folder, hub id or JSON config for random weights"""
    out: Path
    """folder of the composed model"""
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
class UpcycleOptions:
    """Options of ``mmalign upcycle``."""

    model: str = field(metadata={"positional": True})
    """dense multimodal LLM: folder or hub id"""
    out: Path
    """folder of the sparse model"""
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


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of ``mmalign merge``."""

    adapter: str = field(metadata={"positional": True})
    """folder of the adapter, as mmalign train --lora-rank leaves it"""
    out: Path
    """folder of the merged model"""
    dtype: Dtype = "auto"
    """precision of the merged weights"""
    quantization: Quantization | None = None
    """how the base was held in training; what the adapter's run says if not given"""
