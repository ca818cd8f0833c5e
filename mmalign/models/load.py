"""Load multimodal LLMs and CLIP models from disk or the hub, always through the stock auto classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "flex_attention"]


def resolve_dtype(dtype: Dtype) -> torch.dtype:
    """Return the torch dtype; ``auto`` is float32 on the CPU and bfloat16 on an accelerator."""
    if dtype == "auto":
        return torch.bfloat16 if torch.accelerator.is_available() else torch.float32
    return getattr(torch, dtype)


def best_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if device is None else device


def load_mllm(
    source: str, *, dtype: Dtype = "auto", attention: Attention = "sdpa", nf4: bool = False, trust_remote_code: bool = False
) -> tuple[nn.Module, Any]:
    """Load a multimodal LLM and its processor; a folder with a LoRA adapter loads its base below it.

    Args:
        source: Checkpoint folder or hub id.
        dtype: Precision of the weights.
        attention: Implementation of the language model's attention; the vision tower keeps its own.
        nf4: Hold the language model's linear layers in 4 bits, all but the output head. For frozen models; ``dtype`` is that of
            everything else, and of the products.
        trust_remote_code: Run code that comes with the checkpoint. Off unless asked for.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        ValueError: If there is no checkpoint at ``source``, or it is damaged.
    """
    check_exists(source, "config.json", "adapter_config.json")
    options = {"dtype": resolve_dtype(dtype), "trust_remote_code": trust_remote_code, "use_safetensors": True}
    if nf4 and (Path(source) / "adapter_config.json").is_file():
        raise ValueError(f"{source} is a LoRA adapter, and can't be loaded in 4 bits; merge it into its base model first")
    with named_errors(source):
        if nf4:
            options |= {"quantization_config": _nf4_config(source, resolve_dtype(dtype)), "device_map": {"": best_device()}}
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
        if (Path(source) / "adapter_config.json").is_file():
            base = AutoModelForImageTextToText.from_pretrained(PeftConfig.from_pretrained(source).base_model_name_or_path, **options)
            model = PeftModel.from_pretrained(base, source)
        else:
            model = base = AutoModelForImageTextToText.from_pretrained(source, **options)
        for module in base.modules() if nf4 else ():
            # The packed kernel of CPUs with AVX512-BF16 gives other numbers in eval mode than the plain one.
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
        if attention != "sdpa":
            base.set_attn_implementation({"text_config": attention})
        return model.eval(), processor


def _nf4_config(source: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Quantise the language model alone; bitsandbytes takes the names of what is left out, and they differ from family to family."""
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source))
    inside = {id(module) for module in empty.get_decoder().modules()}
    outside = [name for name, module in empty.named_modules() if isinstance(module, nn.Linear) and id(module) not in inside]
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=outside or ["lm_head"]
    )


def load_clip(source: str, *, dtype: Dtype = "auto") -> tuple[nn.Module, Any]:
    """Load a contrastive image-text model (CLIP and its like) and its processor, in eval mode.

    Raises:
        ValueError: If there is no checkpoint at ``source``, or it has no image and text features.
    """
    check_exists(source, "config.json")
    with named_errors(source):
        model = AutoModel.from_pretrained(source, dtype=resolve_dtype(dtype), use_safetensors=True).eval()
        processor = AutoProcessor.from_pretrained(source)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"{source} is a {type(model).__name__}; expected a contrastive model such as CLIPModel")
    return model, processor


def load_config(source: str) -> Any:
    """Load a checkpoint's config alone, to look before the weights are loaded.

    Raises:
        ValueError: If there is no checkpoint at ``source``.
    """
    check_exists(source, "config.json")
    with named_errors(source):
        return AutoConfig.from_pretrained(source)


@contextmanager
def named_errors(source: str) -> Iterator[None]:
    """Name the checkpoint where files are missing, on disk or on the hub, or weights are cut off."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{source} can't be loaded: {error}") from error


def check_exists(source: str, *names: str) -> None:
    """Check that a local folder has one of the files; a hub id is left to the hub.

    Raises:
        ValueError: If it has none.
    """
    folder = Path(source)
    # A hub id looks like a relative path of one or two parts; anything that looks like a local path must exist.
    looks_local = folder.exists() or folder.is_absolute() or source.startswith(".") or len(folder.parts) != 2
    if looks_local and not any((folder / name).is_file() for name in names):
        raise ValueError(f"no checkpoint at {source}: expected a folder with {' or '.join(names)}, or a hub id such as org/name")
