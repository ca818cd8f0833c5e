"""The multimodal LLM that a command trains, and the frozen one that it is held to."""

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel, set_seed

from mmalign.data.vocabulary import check_same_reading
from mmalign.engine.router import find_routers
from mmalign.errors import UserError
from mmalign.held import find_held
from mmalign.models.adapters import add_lora, check_projector_trains, freeze_parts
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import load_mllm
from mmalign.models.moving_reference import MovingReference
from mmalign.models.quantize import describe_quantization, is_quantized
from mmalign.models.references import Reference
from mmalign.models.stages import find_frozen
from mmalign.options.precision import Quantization
from mmalign.options.training import MllmOptions, ReferencedOptions


def load_policy(options: MllmOptions) -> tuple[nn.Module, Any]:
    """Load the model to train, with its adapter or frozen parts, and its processor.

    Raises:
        ValueError: If the model is an adapter, frozen parts and an adapter are both asked for, weights in 4 bits are to train, the
            stage is not the model's, or the projector has a learning rate and doesn't train.
    """
    set_seed(options.seed)
    if options.quantization != "none" and options.lora_rank == 0:
        raise UserError(f"--quantization {options.quantization} freezes the weights; set --lora-rank to train an adapter on them (QLoRA)")
    if options.lora_rank and (options.freeze or options.stage):
        raise UserError(
            "--freeze and --stage are for full weights; with --lora-rank the adapter trains, and the projector with --train-projector"
        )
    if options.freeze and options.stage:
        raise UserError(f"--stage {options.stage} says what is frozen; leave --freeze {' '.join(options.freeze)} out, or the stage")
    # Small steps are rounded away in bfloat16; a model in memory is as it was loaded.
    in_float32 = options.dtype == "auto" and options.lora_rank == 0 and find_held(options.model) is None
    model, processor = load_model(replace(options, dtype="float32") if in_float32 else options, options.model, options.quantization)
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{options.model} is a LoRA adapter; merge it into its base model with mmalign merge and train that")
    if is_quantized(model):
        if options.lora_rank == 0:
            raise UserError(f"{options.model} is quantised and can't train; set --lora-rank to train an adapter on it (QLoRA)")
        print(describe_quantization(model))
    frozen = options.freeze if options.stage is None else find_frozen(options.stage, sparse=bool(find_routers(model)))
    freeze_parts(model, frozen)
    policy = add_lora(model, options) if options.lora_rank else model
    if options.projector_learning_rate is not None:
        check_projector_trains(model, option="--projector-learning-rate")
    return policy, processor


def load_model(options: MllmOptions, source: str, quantization: Quantization) -> tuple[nn.Module, Any]:
    """Load a model in the run's precision and with its attention."""
    return load_mllm(source, dtype=options.dtype, quantization=quantization, attention=options.attention)


def build_reference(options: ReferencedOptions, policy: nn.Module, processor: Any) -> Reference | None:
    """Make the frozen reference; None where its log-probabilities are read from the data.

    Raises:
        ValueError: If a quantisation is named for a kind that has no use for it, or another model reads rows otherwise than the policy.
    """
    kind, quantization = options.reference, _reference_quantization(options)
    if kind == "cached":
        return None
    if options.moving is not None:
        return MovingReference(policy, options.moving)
    if options.reference_model is not None:
        model, own = load_model(options, options.reference_model, quantization)
        check_same_reading(processor, own, source=options.reference_model)
        return Reference(policy, kind="copy", model=model)
    if kind not in ("adapter-off", "copy"):
        kind = "adapter-off" if options.lora_rank and quantization == options.quantization else "copy"
    if quantization == options.quantization:
        return Reference(policy, kind=kind)
    if kind == "adapter-off":
        raise UserError(
            f"--reference adapter-off is the policy's own weights, with --quantization {options.quantization}; "
            f"for --reference-quantization {quantization} use --reference copy"
        )
    return Reference(policy, kind="copy", model=load_model(options, options.model, quantization)[0])


def fingerprint_reference(options: ReferencedOptions) -> str | None:
    """Say what cached log-probabilities must come from; None where the reference is a model."""
    if options.reference != "cached":
        return None
    source = options.reference_model or options.model
    return fingerprint_checkpoint(source, dtype=options.dtype, quantization=_reference_quantization(options))


def _reference_quantization(options: ReferencedOptions) -> Quantization:
    """How a reference with weights of its own is held: as the policy, unless said otherwise."""
    return options.quantization if options.reference_quantization is None else options.reference_quantization
