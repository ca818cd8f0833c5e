"""Fields of TrainingArguments: passed on, or refused by name where they would change nothing."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from mmalign.errors import UserError
from mmalign.options.classifier import TrainClassifierOptions
from mmalign.options.methods import PreferenceOptions, SftOptions
from mmalign.runs.classifier import run_train
from mmalign.training import arguments
from mmalign.training.arguments import build_training_arguments


def build(tmp_path: Path, trainer: dict[str, Any], **options: Any) -> TrainingArguments:
    config = SftOptions(model="m", data=tmp_path, out=tmp_path, trainer={"use_cpu": True, **trainer}, **options)
    return build_training_arguments(config, output_dir=tmp_path / "checkpoints")


OTHER_VALUES = {
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "remove_unused_columns": True,
    "resume_from_checkpoint": "there",
    "output_dir": "there",
    "label_names": ["labels"],
    "include_for_metrics": ["loss"],
    "per_device_eval_batch_size": 3,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "eval_delay": 5,
    "eval_accumulation_steps": 2,
    "eval_do_concat_batches": False,
    "metric_for_best_model": "loss",
    "greater_is_better": True,
}


@pytest.mark.parametrize("name", list(arguments._VOID))
def test_what_would_be_void_is_refused(tmp_path: Path, name: str) -> None:
    value = OTHER_VALUES.get(name, True)
    with pytest.raises(ValueError, match=rf"trainer.{name} is .*, and would not do here what it says: .*; leave it out"):
        build(tmp_path, {name: value})


def test_the_fields_are_transformers_own_and_their_defaults_are_taken(tmp_path: Path) -> None:
    """A field that a new version renames is found here."""
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    assert {*arguments._VOID, *arguments._OPTIONS, *arguments._ADAMW_ALONE, "neftune_noise_alpha"} <= fields.keys()
    taken = {name: arguments._default(fields[name]) for name in arguments._VOID if name != "output_dir"}
    assert build(tmp_path, taken).label_smoothing_factor == 0


def test_an_optimiser_of_its_own_takes_no_settings_of_the_trainers(tmp_path: Path) -> None:
    assert build(tmp_path, {"adam_epsilon": 1e-6}).adam_epsilon == 1e-6
    for name in arguments._ADAMW_ALONE:
        with pytest.raises(ValueError, match=rf"trainer.{name} is .*--optimizer muon takes none"):
            build(tmp_path, {name: 0.5}, optimizer="muon")


def test_noise_on_embeddings_is_for_methods_without_a_reference(tmp_path: Path) -> None:
    assert build(tmp_path, {"neftune_noise_alpha": 5}).neftune_noise_alpha == 5
    noisy = {"neftune_noise_alpha": 5}
    preference = PreferenceOptions(model="m", data=tmp_path, out=tmp_path, trainer=noisy)
    with pytest.raises(ValueError, match="trainer.neftune_noise_alpha is 5, .* the reference's embeddings would get noise too"):
        build_training_arguments(preference, output_dir=tmp_path)
    with pytest.raises(ValueError, match="a classifier of images has none"):
        run_train(TrainClassifierOptions(data=tmp_path, out=tmp_path, form="ce-only", shots=1, trainer=noisy))


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_grad_norm": "much"}, "trainer.max_grad_norm is 'much'; expected float"),
        ({"use_cpu": "no"}, "trainer.use_cpu is 'no'; expected bool"),
        ({"torch_empty_cache_steps": 2.5}, r"trainer.torch_empty_cache_steps is 2.5; expected int \| None"),
        ({"optim": "nope"}, "which transformers.TrainingArguments refuses: .*nope"),
        ({"accelerator_config": 3}, r"trainer.accelerator_config is 3; expected dict \| str \| None"),
        ({"lr_scheduler_kwargs": [0.1]}, r"trainer.lr_scheduler_kwargs is \[0.1\]; expected dict \| str \| None"),
        ({"train_sampling_strategy": "shuffled"}, "trainer.train_sampling_strategy is 'shuffled'; expected one of random, sequential,"),
        ({"learning_rate": 1e-4}, "trainer.learning_rate is 0.0001, and has an option of its own: set --learning-rate"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, trainer)
    assert build(tmp_path, {"max_grad_norm": 1, "torch_empty_cache_steps": None}).max_grad_norm == 1


def test_unknown_fields_have_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.label_smoothing is no field of .*; did you mean 'label_smoothing_factor'\?"):
        build(tmp_path, {"label_smoothing": 0.1})
    with pytest.raises(ValueError, match="trainer.predict_with_generate is no field of transformers.TrainingArguments"):
        build(tmp_path, {"predict_with_generate": True})


def test_processes_that_load_data_are_none_on_the_cpu_and_four_at_most_where_cores_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.accelerator.is_available():
        assert build(tmp_path, {}).dataloader_num_workers == 0
    assert build(tmp_path, {}, num_workers=3).dataloader_num_workers == 3
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for cores, processes, expected in ((1, 1, 0), (2, 1, 1), (16, 1, 4), (16, 8, 1), (96, 8, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert arguments._free_cores() == expected, (cores, processes)
