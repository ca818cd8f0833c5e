"""In what form the weights of a multimodal LLM are held."""

from dataclasses import dataclass
from typing import Literal

from mmalign.options.base import Options

Quantization = Literal["none", "nf4", "nf4-double"]
"""``nf4-double`` quantises the scales of the blocks as well: 4.13 bits a weight instead of 4.5."""


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(Options):
    """What every command that loads a multimodal LLM takes."""

    dtype: Dtype = "auto"
    """precision of the weights; of what is left of them with --quantization"""
    quantization: Quantization = "none"
    """hold the language model's linear layers in 4 bits, with nf4-double their scales in 8"""
