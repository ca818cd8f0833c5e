"""Options refuse numbers that would change a run without a word, or end it in a traceback."""

import dataclasses
import importlib
import math
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import mmalign.options
from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.classifier import TrainClassifierOptions
from mmalign.options.methods import METHODS
from mmalign.options.report import ReportEvalOptions, ReportTrainingOptions

MODULES = [importlib.import_module(f"mmalign.options.{module.name}") for module in pkgutil.iter_modules(mmalign.options.__path__)]
CLASSES = {
    held.__name__: held
    for module in MODULES
    for held in vars(module).values()
    if isinstance(held, type) and issubclass(held, Options) and dataclasses.is_dataclass(held)
}
SFT, PREFERENCE = METHODS["sft"].options, METHODS["preference"].options
RUN = {"model": "x", "data": Path("x"), "out": Path("y")}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CLASSES)
def test_no_option_is_not_a_number(name: str, value: float) -> None:
    """Each float by its default's type or its annotation; what a class needs besides is never looked at."""
    fields = [field for field in dataclasses.fields(CLASSES[name]) if re.fullmatch(r"(list\[)?float\]?( \| None)?", str(_type(field)))]
    for field in fields:
        held = object.__new__(CLASSES[name])
        for other in dataclasses.fields(CLASSES[name]):
            object.__setattr__(held, other.name, None if other.default is dataclasses.MISSING else other.default)
        object.__setattr__(held, field.name, [0.5, value] if "list" in str(_type(field)) else value)
        with pytest.raises(UserError, match=f"{field.name} is .*(nan|inf).*; expected a finite number"):
            Options.__post_init__(held)


def _type(field: Any) -> str:
    return str(field.type).removeprefix("<class '").removesuffix("'>")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan; expected a finite number"),
        ({"max_reject_share": 5.0}, "max_reject_share is 5.0; expected a share, from 0 to 1"),
        ({"lora_alpha": 16}, "lora_alpha is for LoRA; set lora_rank, or leave it out"),
        ({"lora_dropout": 0.05}, "lora_dropout is for LoRA; set lora_rank, or leave it out"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001; expected at least 0"),
        ({"max_steps": 0}, "max_steps is 0; expected at least 1, or -1 to train by epochs"),
        ({"max_steps": -5}, "max_steps is -5; expected at least 1, or -1"),
        ({"epochs": 0.0}, "epochs is 0.0; expected a positive number"),
        ({"warmup_ratio": 100.0}, "warmup_ratio is 100.0; expected from 0 to below 1"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; expected from 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected at least 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; expected at least 0"),
        ({"save_total_limit": 0}, "save_total_limit is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"lora_rank": -4}, "lora_rank is -4; expected at least 0"),
        ({"lora_rank": 4, "lora_alpha": 0}, "lora_alpha is 0; expected at least 1"),
        ({"lora_rank": 4, "lora_dropout": 1.0}, "lora_dropout is 1.0; expected from 0 to below 1"),
    ],
)
def test_runs(changed: dict[str, Any], message: str) -> None:
    SFT(**RUN)
    with pytest.raises(UserError, match=message):
        SFT(**{**RUN, **changed})


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        (
            METHODS["mimic"].options,
            {**RUN, "teacher": ["x"], "teacher_column": "kind"},
            "teacher_column is kind, which only a run with several --teacher NAME=MODEL reads; add that, or leave it out",
        ),
        (PREFERENCE, {**RUN, "sft_weight": -0.1}, "sft_weight is -0.1; expected at least 0"),
        (PREFERENCE, {**RUN, "weaken_seed": -1}, "weaken_seed is -1; expected at least 0"),
        (ReportTrainingOptions, {"runs": [Path("x")], "out": Path("y"), "smooth": 0}, "smooth is 0; expected at least 1"),
        (ReportEvalOptions, {"results": [Path("x")], "out": Path("y"), "resamples": 0}, "resamples is 0; expected at least 1"),
    ],
)
def test_others(options: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected a positive number"),
        ({"unlabeled_per_label": -1}, "unlabeled_per_label is -1; expected at least 0"),
        ({"image_size": 0}, "image_size is 0; expected at least 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; expected from 0 to below 1"),
    ],
)
def test_classifiers(changed: dict[str, Any], message: str) -> None:
    needed = {
        field.name: "x" if field.name == "backbone" else Path("x")
        for field in dataclasses.fields(TrainClassifierOptions)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    TrainClassifierOptions(**needed)
    with pytest.raises(UserError, match=message):
        TrainClassifierOptions(**{**needed, **changed})
