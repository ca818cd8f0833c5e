"""What every training command does around its method: policy, reference, data, resume, save."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, set_seed

from mmalign import __version__
from mmalign.commands.train import MllmOptions, PreferenceOptions, RunOptions
from mmalign.data.datasets import find_data_files, keep_good_rows, load_rows
from mmalign.data.hashing import hash_file
from mmalign.data.rejects import Rejects
from mmalign.data.rows import check_columns
from mmalign.engine.method import Method
from mmalign.models.adapters import LoraOptions, add_lora, freeze_parts
from mmalign.models.load import load_mllm
from mmalign.models.parameters import ParameterCounts, count_parameters
from mmalign.models.references import Reference
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback, find_checkpoint
from mmalign.training.trainer import MethodTrainer

RUN_FILE = "mmalign_run.json"


def load_policy(options: MllmOptions) -> tuple[nn.Module, Any]:
    """Load the model to train, with its adapter or frozen parts."""
    set_seed(options.seed)
    model, processor = load_mllm(options.model, dtype=options.dtype)
    assert isinstance(model, PreTrainedModel), "a LoRA adapter as the start of training is merged first"
    freeze_parts(model, options.freeze)
    if options.lora_rank == 0:
        return model, processor
    if options.freeze:
        raise ValueError("--freeze is for full weights; with --lora-rank everything but the adapter is frozen")
    alpha = 2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
    return add_lora(model, LoraOptions(rank=options.lora_rank, alpha=alpha, dropout=options.lora_dropout)), processor


def build_reference(options: PreferenceOptions, policy: nn.Module) -> Reference | None:
    """Make the frozen reference; None where its log-probabilities are read from the data.

    Raises:
        ValueError: If a reference model is named for a kind that has no use for it.
    """
    kind = options.reference
    if options.reference_model is not None:
        if kind != "auto":
            raise ValueError(f"--reference {kind} and --reference-model exclude each other; leave one out")
        return Reference(policy, kind="copy", model=load_mllm(options.reference_model, dtype=options.dtype)[0])
    if kind == "auto":
        kind = "adapter-off" if options.lora_rank else "copy"
    return None if kind == "cached" else Reference(policy, kind=kind)


def train_and_save(
    options: RunOptions, model: nn.Module, processor: Any, method: Method, *, prepare: Callable[[Dataset], Dataset] | None = None
) -> None:
    """Check the data, train or go on training, and save the model with its card.

    Raises:
        ValueError: If the data can't be used, or ``out`` holds another run.
    """
    record = describe_run(options)
    claim_folder(options.out, record)
    dataset = load_rows(options.data)
    num_rows = len(dataset)
    check_columns(dataset.column_names, method.columns, what=str(options.data))
    rejects = Rejects(options.out / "rejects.jsonl", max_share=options.max_reject_share)
    dataset = keep_good_rows(dataset, method.check, rejects=rejects)
    if prepare is not None:
        dataset = prepare(dataset)
    checkpoints = options.out / "checkpoints"
    arguments = build_training_arguments(options, output_dir=checkpoints)
    checkpoint, passed_over = find_checkpoint(checkpoints)
    for line in passed_over:
        print(f"passing over {line}")
    trainer = MethodTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=processor, method=method, callbacks=[ManifestCallback()]
    )
    trainable = count_parameters(model)
    print(f"training {trainable.trainable:,} of {trainable.total:,} parameters on {len(dataset):,} of {num_rows:,} rows")
    if checkpoint is not None:
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.is_world_process_zero():
        save_run(options, trainer, processor, trainable, {**record, "num_rows": num_rows, "num_rejected": rejects.num_rejected})


def describe_run(options: RunOptions) -> dict[str, Any]:
    """Record what a run is made of: options, data hashes, version and commit."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(options).items()}
    files = {path.name: hash_file(path) for path in find_data_files(options.data)}
    return {"options": values, "data": files, "mmalign": __version__, "commit": _commit()}


def claim_folder(out: Path, record: dict[str, Any]) -> None:
    """Write the run's record, or check that the folder's own is the same: only then is a stopped run gone on with.

    Raises:
        ValueError: If the folder holds a run with other options or data.
    """
    path = out / RUN_FILE
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        for part in ("options", "data"):
            differing = [key for key in {**held[part], **record[part]} if held[part].get(key) != record[part].get(key)]
            if differing:
                key = differing[0]
                raise ValueError(
                    f"{out} holds another run: its {key} is {held[part].get(key)!r}, this one's {record[part].get(key)!r}; "
                    "choose another --out, or remove the folder"
                )
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run of mmalign; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(partial, path)


def save_run(options: RunOptions, trainer: MethodTrainer, processor: Any, parameters: ParameterCounts, record: dict[str, Any]) -> None:
    """Save weights and processor as plain transformers loads them, the log, and the record that the card is made from."""
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(options.out)
    processor.save_pretrained(options.out)
    record["parameters"] = dataclasses.asdict(parameters)
    record["steps"] = trainer.state.global_step
    (options.out / RUN_FILE).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    (options.out / "train_log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    print(f"saved in {options.out}")


def _commit() -> str | None:
    """The commit of the checkout that mmalign runs from; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    return subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
