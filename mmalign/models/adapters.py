"""Which weights train: LoRA on the language model, and parts of the model frozen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import recursively_apply
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmalign.errors import UserError
from mmalign.models.load import (
    check_exists,
    fetch_adapter,
    find_base,
    load_adapter_weights,
    load_mllm,
    load_processor,
    put_adapter,
    read_adapter_config,
)
from mmalign.models.lora_config import build_lora_config, refuse_unmatched, told_by_peft
from mmalign.models.quantize import is_quantized
from mmalign.options.precision import Dtype, Quantization
from mmalign.options.training import Frozen, LoraOptions

Part = Literal["vision_tower", "projector", "language_model"]


def find_part(model: PreTrainedModel, part: Part, *, option: str | None = None) -> nn.Module:
    """Return a part of a multimodal LLM.

    Args:
        model: Without wrappers.
        part: Its name.
        option: What asks for the part, for the error; ``--freeze`` if not given.

    Raises:
        ValueError: If the model has no such part under a name known here.
    """
    if part == "vision_tower":
        found = model.get_encoder(modality="image")
    elif part == "language_model":
        found = model.get_decoder()
    else:
        names = ("multi_modal_projector", "connector", "embed_vision", "aligner")
        found = next((getattr(model.base_model, name) for name in names if hasattr(model.base_model, name)), model)
    if found is model or found is model.base_model:
        raise UserError(f"{type(model).__name__} has no {part} of its own; leave {option or f'--freeze {part}'} out")
    return found


def freeze_parts(model: PreTrainedModel, parts: Sequence[Frozen]) -> None:
    """Stop gradients to some parts.

    Raises:
        ValueError: If nothing is left to train, or the model has no such part.
    """
    for part in parts:
        for parameter in find_parameters(model, part):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"nothing is left to train with {', '.join(parts)} frozen; leave one out of --freeze")


def check_projector_trains(model: PreTrainedModel, *, option: str) -> None:
    """Check that an option of the projector's training has an effect.

    Raises:
        ValueError: If the model has no projector, or it is frozen.
    """
    if not any(parameter.requires_grad for parameter in find_part(model, "projector", option=option).parameters()):
        raise UserError(f"the projector of {type(model).__name__} is frozen; leave {option} out, or let the projector train")


def find_parameters(model: PreTrainedModel, part: Frozen) -> Iterator[nn.Parameter]:
    """Return the weights of a part. The output head belongs to the language model.

    Raises:
        ValueError: If the model has no such part.
    """
    if part in ("vision_tower", "projector"):
        yield from find_part(model, part).parameters()
        return
    decoder: Any = find_part(model, "language_model")
    kept: set[int] = set()
    if part == "attention_and_embeddings":
        for layer in decoder.layers:
            if not hasattr(layer, "mlp"):
                raise UserError(f"{type(layer).__name__} has no feed-forward network of the name mlp; use --freeze language_model")
            kept |= {id(parameter) for parameter in layer.mlp.parameters()}
    for module in (decoder, model.get_output_embeddings()):
        yield from (parameter for parameter in module.parameters() if id(parameter) not in kept)


def add_lora(model: PreTrainedModel, options: LoraOptions) -> PeftModel:
    """Put a LoRA adapter on the language model. All else is frozen, so that the adapter-off model never moves.

    A projector that trains beside it does so in a copy (PEFT's ``modules_to_save``), which is switched off with the adapter.

    Raises:
        ValueError: If the model has no such part or layer, or the adapter to begin with is another one.
    """
    decoder: Any = find_part(model, "language_model", option="--lora-rank")
    projector = find_part(model, "projector", option="--train-projector") if options.train_projector else None
    config = build_lora_config(
        options,
        prefix=_path(model, decoder),
        layers={name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)},
        depth=len(getattr(decoder, "layers", ())),
        projector=None if projector is None else _path(model, projector),
    )
    with told_by_peft():
        policy = get_peft_model(model, config)
    assert isinstance(policy, PeftModel)
    refuse_unmatched(policy, config)
    if options.lora_init is not None:
        begin_with(policy, options.lora_init)
    for module in policy.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                _hold_in_float32(copy)
    return policy


def _hold_in_float32(module: nn.Module) -> None:
    """Hold weights that train in float32, as PEFT holds an adapter's, in a model in half precision, which rounds small steps away."""
    dtype = next(module.parameters()).dtype
    if dtype.itemsize < 4:
        module.float()
        module.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
        module.register_forward_hook(lambda _, inputs, output: _cast(output, dtype))


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return recursively_apply(lambda value: value.to(dtype), values, test_type=_is_floating)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def begin_with(policy: PeftModel, source: Path) -> None:
    """Give a new adapter the weights of a trained one.

    Raises:
        UserError: If there is no adapter, or it has other layers, ranks or a DoRA of its own.
    """
    check_exists(str(source), "adapter_config.json")
    held, own = read_adapter_config(str(source)), policy.peft_config["default"]
    for name, option in {"r": "--lora-rank", "lora_alpha": "--lora-alpha", "use_rslora": "--rslora", "use_dora": "--dora"}.items():
        if getattr(held, name) != getattr(own, name):
            raise UserError(f"the adapter in {source} has {name} {getattr(held, name)}, and this one {getattr(own, name)}; see {option}")
    load_adapter_weights(policy, str(source), remedy="see --lora-targets and --train-projector")


def _path(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def _untie_adapted(model: PreTrainedModel) -> None:
    """Give the embedding and the output head weights of their own where an adapter of either is to be added to its weights.

    Tied, what is added to the one is added to the other.
    """
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    embedding, head = (end.get_base_layer() if isinstance(end, LoraLayer) else end for end in ends)
    if head is None or head.weight is not embedding.weight or not any(isinstance(end, LoraLayer) for end in ends):
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def load_merged(source: str, *, dtype: Dtype = "auto", quantization: Quantization = "none") -> tuple[PreTrainedModel, Any]:
    """Load an adapter's base model with the adapter added to its weights.

    A 4-bit base is turned into what its 4 bits stand for first: merged into 4 bits, the sum is rounded again, and much of the adapter
    with it; merged into the weights that the 4 bits were made from, the adapter corrects errors that are not there.

    Args:
        source: Folder or hub id of the adapter.
        dtype: Precision of the merged weights.
        quantization: How the base was held in training.

    Returns:
        The model, and the processor that lies beside the adapter, or its base's.

    Raises:
        ValueError: If there is no adapter at ``source``, or its base can't be loaded.
    """
    check_exists(source, "adapter_config.json")
    source = fetch_adapter(source)
    base, _ = load_mllm(find_base(source), dtype=dtype, quantization=quantization)
    assert isinstance(base, PreTrainedModel), type(base)
    if is_quantized(base):
        base.dequantize(dtype=base.dtype)
    policy = put_adapter(base, source)
    _untie_adapted(base)
    try:
        merged = policy.merge_and_unload()
    except RuntimeError as error:
        raise UserError(f"PEFT can't merge the adapter {source}: {error}") from error
    return merged.eval(), load_processor(source)
