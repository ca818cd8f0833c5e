"""A multimodal LLM where it decodes fastest."""

from typing import Any

import torch

from mmalign.models.load import load_mllm
from mmalign.options.precision import Dtype


def load_on_accelerator(source: str, *, dtype: Dtype) -> tuple[Any, Any]:
    """Load a model and its processor; the model goes to the accelerator where there is one."""
    model, processor = load_mllm(source, dtype=dtype)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, processor
