"""In what form the weights of a multimodal LLM are held and run."""

from dataclasses import dataclass
from typing import Literal

from mmalign.options.base import Options

Attention = Literal["sdpa", "flex_attention"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "nf4", "nf4-double"]
"""``nf4-double`` quantises the scales of the blocks as well: 4.13 bits per weight instead of 4.5."""


@dataclass(frozen=True, kw_only=True)
class DtypeOptions(Options):
    """Precision of what is loaded."""

    dtype: Dtype = "auto"
    """precision of the weights; auto: bfloat16 on an accelerator, float32 on the CPU"""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(DtypeOptions):
    """How the weights are held."""

    quantization: Quantization = "none"
    """hold the language model's linear layers in 4 bits, with nf4-double their scales in 8; --dtype is that of all other weights"""
