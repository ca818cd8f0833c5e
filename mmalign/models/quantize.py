"""Language models in 4 bits (NF4, arXiv:2305.14314): frozen references and teachers, and the base under a LoRA adapter (QLoRA).

The linear layers of the language model are quantised, and nothing else: vision tower, projector, embeddings and output head keep their
precision. Fused experts of sparse models are no linear layers to the quantiser, and keep it too.
"""

from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

from mmalign.errors import UserError
from mmalign.files import COMBINATION_FILE, find_run_file, read_json_object
from mmalign.models.parameters import num_weights
from mmalign.options.precision import Quantization


def quantization_options(source: str, quantization: Quantization, *, dtype: torch.dtype, device: torch.device, **options: Any) -> Any:
    """Build the keyword arguments of ``from_pretrained`` that load a checkpoint in 4 bits; none where it is neither to be nor already.

    Args:
        source: Checkpoint folder or hub id.
        quantization: Kind of 4-bit weights.
        dtype: In which products are computed.
        device: Where the weights go: quantised ones are not moved afterwards.
        options: What reading the checkpoint's config needs.

    Raises:
        ValueError: If the checkpoint is quantised already, or the kind is unknown.
    """
    if quantization not in get_args(Quantization):
        raise UserError(f"quantization is {quantization!r}; expected one of {', '.join(get_args(Quantization))}")
    config = AutoConfig.from_pretrained(source, **options)
    already = getattr(config, "quantization_config", None) is not None
    if quantization == "none":
        return {"device_map": {"": device}} if already else {}
    if already:
        raise UserError(f"{source} is quantised already; leave --quantization out, or name the checkpoint that it was made from")
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config, **options)
    quantiser = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=find_unquantised(skeleton),
    )
    return {"quantization_config": quantiser, "device_map": {"": device}}


def recorded_quantization(adapter: str) -> Quantization:
    """How the base of an adapter was held in training, as its record says; in full precision where there is none."""
    combination = Path(adapter) / COMBINATION_FILE
    if combination.is_file():
        return read_json_object(combination).get("quantization", "none")
    run = find_run_file(adapter)
    return "none" if run is None else read_json_object(run).get("options", {}).get("quantization", "none")


def find_unquantised(model: PreTrainedModel) -> list[str]:
    """List the modules to leave alone, by full path: everything with linear layers that is not the language model's body.

    The quantiser compares names from the start of the path: ``vision_tower`` alone would match nothing in LLaVA, whose paths begin
    with ``model.``, and a list of any kind replaces its own exception for the output head.

    Raises:
        ValueError: If the language model can't be told from the rest.
    """
    decoder = model.get_decoder()
    if decoder is model or decoder is model.base_model:
        raise UserError(f"{type(model).__name__} has no language model of its own; it can't be held in 4 bits")
    return list(_outside(model, decoder, model.get_output_embeddings(), prefix=""))


def _outside(module: nn.Module, decoder: nn.Module, head: nn.Module | None, *, prefix: str) -> Any:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inside = set(map(id, child.modules()))
        if child is not head and (id(decoder) in inside or id(head) in inside):
            if child is not decoder:
                yield from _outside(child, decoder, head, prefix=f"{path}.")
        elif any(isinstance(part, nn.Linear) for part in child.modules()):
            yield path


def is_quantized(model: nn.Module) -> bool:
    """Tell whether weights of a loaded model are quantised, by any method; such weights don't train."""
    return bool(getattr(model, "is_quantized", False))


def find_four_bit(model: nn.Module) -> list[Any]:
    """Return the layers in 4 bits."""
    if not is_quantized(model):
        return []
    # Its import costs a second and prints a line about a kernel that is not used here.
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def keep_gradients(model: nn.Module) -> None:
    """Hold 4-bit layers to the one kernel that has a gradient.

    On CPUs with AVX512-BF16 a forward pass in eval mode packs the weights for a faster kernel. They stay packed in train mode, that
    kernel has no gradient, and adapters below get none or a wrong one without a word; log-probabilities depend on the mode as well.
    """
    for module in find_four_bit(model):
        module.support_avx512bf16_for_cpu = False


def describe_quantization(model: PreTrainedModel) -> str:
    """Say how much of the language model is in 4 bits, for the log: little of a sparse one."""
    layers = find_four_bit(model)
    held = sum(num_weights(layer.weight) for layer in layers)
    whole = sum(num_weights(parameter) for parameter in model.get_decoder().parameters())
    return f"{len(layers)} linear layers of the language model are in 4 bits, {held / whole:.0%} of its weights"
