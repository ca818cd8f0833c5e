"""``mmalign train denoiser`` and ``mmalign train image-preference``: pictures through the one trainer, to a stock pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import set_seed

from mmalign.denoisers.method import DenoiserMethod, ImagePreferenceMethod, PictureMethod
from mmalign.denoisers.model import Denoiser
from mmalign.denoisers.path_method import PathPreferenceMethod
from mmalign.denoisers.pipeline import TextToImage, load_pipeline
from mmalign.errors import UserError
from mmalign.files import writing
from mmalign.models.parameters import ParameterCounts
from mmalign.options.denoisers import DenoiserOptions, ImagePreferenceOptions, TrainDenoiserOptions
from mmalign.reports.model_card import CardFacts, write_model_card
from mmalign.runs.run_record import claiming
from mmalign.runs.training import TrainedRun, finish_record, train_and_save
from mmalign.training.trainer import MethodTrainer

# The linear layers of attention, as all denoisers of diffusers call them.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LIMITS = (
    "It was trained on the data above alone; look at what it makes of your own captions before you rely on it.",
    "It can draw what a caption does not name, and leave out what it names.",
    "One run with one seed: the spread between seeds is not in this card.",
)


def run(options: DenoiserOptions) -> TrainedRun:
    """Train a pipeline's denoiser, or resume, and save the pipeline with its card.

    Raises:
        ValueError: If the pipeline, the options or the data can't be used, or ``out`` holds another run.
    """
    # A new adapter is drawn.
    set_seed(options.seed)
    source = load_pipeline(options.model)
    model, method = build(options, source)

    def save(trainer: MethodTrainer, parameters: ParameterCounts, record: dict[str, Any]) -> None:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        with writing(options.out):
            source.save(options.out, trained.merge_and_unload() if isinstance(trained, PeftModel) else trained)
        finish_record(options, trainer, parameters, record)
        write_denoiser_card(options.out, source, method, record)
        print(f"saved in {options.out}")

    with claiming(options.out):
        return train_and_save(options, model, None, method, save=save)


def build(options: DenoiserOptions, source: TextToImage) -> tuple[nn.Module, PictureMethod]:
    """Make what trains, and the method.

    Raises:
        ValueError: If options don't fit together.
    """
    if isinstance(options, TrainDenoiserOptions):
        return source.denoiser(options.target), DenoiserMethod(source, options)
    assert isinstance(options, ImagePreferenceOptions), type(options)
    on_paths = options.noise == "path"
    policy = source.path_denoiser() if on_paths else source.denoiser()
    if policy.share_logit is not None:
        # Where k moved, so would the space that policy and reference are compared in.
        policy.share_logit.requires_grad_(False)
    reference: Denoiser | None = None
    if options.reference_model is not None:
        other = load_pipeline(options.reference_model)
        reference = other.path_denoiser() if on_paths else other.denoiser()
        check_comparable(policy, reference)
    trained: nn.Module = policy
    if options.lora_rank:
        alpha = options.lora_alpha or 2 * options.lora_rank
        config = LoraConfig(r=options.lora_rank, lora_alpha=alpha, target_modules=ATTENTION)
        trained = get_peft_model(policy, config)
    method = PathPreferenceMethod if on_paths else ImagePreferenceMethod
    return trained, method(source, options, policy=trained, reference=reference)


def check_comparable(policy: Denoiser, reference: Denoiser) -> None:
    """Refuse a reference whose errors are of something else than the policy's.

    Raises:
        ValueError: With both targets, or where the schedules differ.
    """
    if (reference.target, reference.channels) != (policy.target, policy.channels):
        raise UserError(
            f"reference_model predicts {reference.target} of {reference.channels} channels and the model {policy.target} of "
            f"{policy.channels}; expected the same, as their errors are compared"
        )
    own, other = policy.alphas_cumprod, reference.alphas_cumprod
    if own.shape != other.shape or not torch.allclose(own, other, rtol=1e-3, atol=1e-6):
        raise UserError(
            "the schedulers of reference_model and the model add other shares of noise at the same step; expected the same schedule, as "
            "their errors at one noisy image are compared"
        )


def write_denoiser_card(folder: Path, source: TextToImage, method: PictureMethod, record: Mapping[str, Any]) -> Path:
    """Write the card of a finished run."""
    options = record["options"]
    facts = CardFacts(
        model_name=folder.resolve().name,
        summary=f"This is {method.summary}.",
        kind="denoiser",
        license=options.get("license") or "unknown",
        language="en",
        started_from=options["model"],
        architecture=f"{source.name} with a {type(source.network).__name__}, {method.side} pixels",
        parameters=ParameterCounts(**record["parameters"]),
        data_description=f"{record['num_rows'] - record['num_rejected']:,} rows of {options['data']}.",
        data=record["data"],
        recipe=f"`mmalign train {method.name}`, {record['steps']:,} optimiser steps of {record['batch']:,} rows.",
        config=options,
        version=record["mmalign"],
        commit=record["commit"] or "none (installed package)",
        intended_use=method.intended_use,
        limits=LIMITS,
        tags=[method.name],
    )
    return write_model_card(folder, facts)
