"""PEFT's configuration of an adapter, from the options of a training."""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

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
_NOT_HERE = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("layers_pattern", "layer_replication"),
)


def build_lora_config(options: LoraOptions, *, prefix: str, layers: Collection[str], depth: int, projector: str | None) -> LoraConfig:
    """Write what PEFT needs to know.

    Args:
        options: The run's.
        prefix: Path of the language model.
        layers: Names of its linear layers, without their paths.
        depth: How many blocks it has.
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
    blocks = _blocks(given.pop("layers_to_transform", None), depth)
    saved = [*_names(given.pop("modules_to_save", None)), *([] if projector is None else [projector])]
    with told_by_peft():
        return LoraConfig(
            r=options.lora_rank,
            lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
            lora_dropout=options.lora_dropout,
            # A pattern over full paths: bare leaf names such as q_proj would reach into the vision tower.
            target_modules=rf"{re.escape(prefix)}{blocks}\.({'|'.join(chosen)})",
            rank_pattern=ranks,
            use_rslora=options.rslora,
            use_dora=options.dora,
            modules_to_save=saved or None,
            **given,
        )


@contextmanager
def told_by_peft() -> Iterator[None]:
    """Tell what PEFT says of fields that it can't use, of which it checks few by itself."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"PEFT refuses the adapter: {error}") from error


def refuse_unmatched(policy: PeftModel, config: LoraConfig) -> None:
    """Refuse names that nothing in the model has, which PEFT passes over.

    Raises:
        UserError: With the field and the name.
    """
    adapted, copies = (
        [name for name, module in policy.named_modules() if isinstance(module, kind)] for kind in (LoraLayer, AuxiliaryTrainingWrapper)
    )
    found = {
        "modules_to_save": lambda name: any(copy.endswith(name) for copy in copies),
        "alpha_pattern": lambda name: any(re.match(rf"(.*\.)?({name})$", layer) for layer in adapted),
        "target_parameters": lambda name: any(parameter.endswith(name) for parameter in policy.base_model.targeted_parameter_names),
    }
    for field, has in found.items():
        for name in getattr(config, field) or ():
            if not has(name):
                raise UserError(f"{field} of --peft-config names {name!r}, which is nothing of this model that it could be of")


def _names(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _blocks(numbers: Any, depth: int) -> str:
    """The part of a path that says in which blocks: PEFT takes its own field beside bare names alone."""
    if numbers is None:
        return r"\..*"
    chosen = _names(numbers)
    if odd := [number for number in chosen if type(number) is not int or not 0 <= number < depth]:
        raise UserError(f"layers_to_transform of --peft-config holds {odd[0]!r}; expected numbers from 0 to {depth - 1}")
    return rf"\.layers\.({'|'.join(map(str, chosen))})(\..*)?"


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
