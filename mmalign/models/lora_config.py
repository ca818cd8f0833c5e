"""PEFT's configuration of an adapter, from the options of a training."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peft import LoraConfig

from mmalign.errors import UserError
from mmalign.options.training import LoraOptions
from mmalign.yaml_reader import read_yaml

# Fields of LoraConfig that an option says, or that are this model's own.
_OWN = {
    "r": "--lora-rank",
    "lora_alpha": "--lora-alpha",
    "lora_dropout": "--lora-dropout",
    "target_modules": "--lora-targets",
    "rank_pattern": "--lora-ranks",
    "use_rslora": "--rslora",
    "use_dora": "--dora",
}
# Those that would change the base's weights: the model without its adapter would no longer be the start.
_KEEPS_BASE = (True, False, "gaussian", "orthogonal")
_NOT_HERE = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")


def build_lora_config(options: LoraOptions, *, prefix: str, layers: Collection[str], projector: str | None) -> LoraConfig:
    """Write what PEFT needs to know.

    Args:
        options: The run's.
        prefix: Path of the language model.
        layers: Names of its linear layers, without their paths.
        projector: Path of the projector, where it trains beside the adapter.

    Raises:
        UserError: If a layer or a field is not there, or the base would not stay as it is.
    """
    chosen = _known_layers(options.lora_targets, layers, option="--lora-targets") or sorted(layers)
    ranks = {str(name): rank for name, rank in options.lora_ranks.items()}
    _known_layers(ranks, chosen, option="--lora-ranks")
    if odd := {name: rank for name, rank in ranks.items() if type(rank) is not int or rank < 1}:
        raise UserError(f"--lora-ranks holds {odd}; expected a whole number from 1 for each layer")
    given = {} if options.peft_config is None else read_peft_config(options.peft_config)
    saved = [*given.pop("modules_to_save", []), *([] if projector is None else [projector])]
    return LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        # A pattern over full paths: bare leaf names such as q_proj would reach into the vision tower.
        target_modules=rf"{re.escape(prefix)}\..*\.({'|'.join(chosen)})",
        rank_pattern=ranks,
        use_rslora=options.rslora,
        use_dora=options.dora,
        modules_to_save=saved or None,
        **given,
    )


def _known_layers(names: Collection[str], layers: Collection[str], *, option: str) -> list[str]:
    for name in names:
        if name not in layers:
            near = get_close_matches(name, layers, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(layers))}"
            raise UserError(f"{option} names {name!r}, which is no linear layer of the language model that gets an adapter; {hint}")
    return sorted(names)


def read_peft_config(path: Path) -> dict[str, Any]:
    """Read other fields of LoraConfig, as YAML or JSON.

    Raises:
        UserError: If the file can't be read, or a field is unknown, has an option here, or would change the base.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"--peft-config {path} can't be read: {error}") from error
    values = read_yaml(text, what=f"--peft-config {path}")
    if not isinstance(values, Mapping):
        raise UserError(f"--peft-config {path} holds a {type(values).__name__}; expected fields of peft.LoraConfig")
    known = {field.name for field in dataclasses.fields(LoraConfig)} - set(_NOT_HERE)
    for name in values:
        if name in _OWN:
            raise UserError(f"--peft-config {path} has {name}, which is {_OWN[name]} here")
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"--peft-config {path} has {name!r}, which is no field of peft.LoraConfig that can be set here{hint}")
    if values.get("init_lora_weights", True) not in _KEEPS_BASE:
        raise UserError(
            f"--peft-config {path} has init_lora_weights {values['init_lora_weights']!r}, which changes the weights below the adapter: "
            "without it the model would not be the start, and the saved adapter would not fit the start; expected true or gaussian"
        )
    if values.get("bias", "none") != "none":
        raise UserError(f"--peft-config {path} trains biases below the adapter, which would move the reference; leave bias out")
    return dict(values)
