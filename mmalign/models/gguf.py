"""Language models in GGUF files, as llama.cpp and its packages ship them: read by transformers, their weights made whole."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mmalign.errors import UserError
from mmalign.models.load import from_pretrained


def is_gguf(source: str) -> bool:
    """Tell whether a checkpoint is one GGUF file."""
    return source.endswith(".gguf")


def gguf_options(source: str) -> dict[str, str]:
    """What transformers' ``from_pretrained`` takes of a file beside its folder; nothing for other checkpoints.

    Raises:
        ValueError: If the file is not there, or the package that reads it.
    """
    if not is_gguf(source):
        return {}
    if not Path(source).is_file():
        raise UserError(f"there is no {source}; expected a GGUF file, a folder of a checkpoint, or a hub id such as org/name")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{source} is read by the package gguf: pip install gguf")
    return {"gguf_file": Path(source).name}


def folder_of(source: str) -> str:
    """The folder of a GGUF file, and any other checkpoint as it is."""
    return str(Path(source).parent) if is_gguf(source) else source


def load_gguf(source: str) -> PreTrainedModel:
    """Load a causal language model; quantised weights become float32 ones.

    Raises:
        ValueError: If it can't be read, with the reason.
    """
    model: Any = from_pretrained(AutoModelForCausalLM, folder_of(source), dtype=torch.float32, **gguf_options(source))
    if hasattr(model.config, "quantization_config"):
        # The weights are whole now; what says otherwise makes the saved model unreadable.
        del model.config.quantization_config
        model.hf_quantizer = None
    assert isinstance(model, PreTrainedModel), type(model)
    return model
