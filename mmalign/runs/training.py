"""``mmalign train``: data, method, resume, save."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn

from mmalign.data.checking import choose_workers, keep_good_rows
from mmalign.data.datasets import load_rows
from mmalign.data.rejects import REJECTS_FILE, Rejects
from mmalign.data.rows import check_columns, unused_columns
from mmalign.data.templates import describe_end
from mmalign.data.verdicts import KeptVerdicts
from mmalign.engine.generation import end_tokens
from mmalign.engine.logps import unwrap
from mmalign.errors import UserError
from mmalign.files import open_to_readers, write_whole
from mmalign.methods.registry import find_method
from mmalign.models.adapter_pair import saved_folders
from mmalign.models.parameters import ParameterCounts, count_parameters, describe_rounding
from mmalign.models.quantize import is_quantized
from mmalign.options.chasing import ChasingOptions
from mmalign.options.methods import METHODS, MimicOptions, OnlineOptions
from mmalign.options.rows import PictureOptions
from mmalign.options.training import MllmOptions, ReferencedOptions, RunOptions
from mmalign.runs.cards import write_card
from mmalign.runs.run_record import claim_folder, claiming, describe_run, is_first_process, write_record
from mmalign.runs.train_eval import build_evaluation
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback
from mmalign.training.evaluating import EvaluationCallback
from mmalign.training.method import Method, Selection
from mmalign.training.optimizers import build_optimizer
from mmalign.training.resume import choose_checkpoint, train_to_end
from mmalign.training.router import build_router_losses
from mmalign.training.sampler import BucketSampler, EpochSampler, PassSampler
from mmalign.training.tracking import build_tracking
from mmalign.training.trainer import MethodTrainer

Save = Callable[[MethodTrainer, ParameterCounts, dict[str, Any]], None]
"""From the trainer after training, the counts of before and the record."""


class TrainedRun(NamedTuple):
    """A trained model, its processor, the log of its training, and the folder that holds them."""

    folder: Path
    model: Any
    processor: Any
    log: list[dict[str, float]]

    @property
    def metrics(self) -> dict[str, float]:
        """The last logged step's; empty where no step was logged, as in runs shorter than ``logging_steps``."""
        return next((entry for entry in reversed(self.log) if "loss" in entry), {})


def run(options: RunOptions) -> TrainedRun:
    """Train a model with the method that the options are of."""
    name = next(name for name, entry in METHODS.items() if entry.options is type(options))
    with claiming(options.out):
        return train_and_save(options, *find_method(name, vars(options)).build(options))


def train_and_save(
    options: RunOptions,
    model: nn.Module,
    processor: Any,
    method: Method,
    *,
    save: Save | None = None,
) -> TrainedRun:
    """Check the data, train or resume training, and save the model with its card.

    Args:
        options: Of the run.
        model: What trains.
        processor: Saved beside it.
        method: How it is trained.
        save: What writes the model and its card, where it is not a checkpoint of transformers.

    Raises:
        ValueError: If the data can't be used, ``out`` holds another run, or sharding does not go with the options.
    """
    router = build_router_losses(options, model) if isinstance(options, MllmOptions) else None
    evaluation = build_evaluation(options, processor) if isinstance(options, MllmOptions) else None
    record = describe_run(options, method=method.name)
    rows = claim_run(options, method, record)
    in_words = not (isinstance(options, PictureOptions) and options.pictures)
    if in_words and isinstance(options, MllmOptions) and (told := describe_end(processor, end_tokens(unwrap(model)), options.answer_end)):
        print(told)
        record["answer_end"] = told
    checkpoints = options.out / "checkpoints"
    rejects = Rejects(options.out / REJECTS_FILE, max_share=options.max_reject_share, write=is_first_process())
    # Processes that were launched find each other here, and share the check.
    arguments = build_training_arguments(options, output_dir=checkpoints)
    selection = select_rows(options, method, rows, record["data"], rejects)
    dataset = method.prepare(selection.dataset)
    tracking = build_tracking(options, options.out, record["options"], None if evaluation is None else evaluation.samples)
    step_rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    sampler = build_sampler(method, len(dataset), step_rows=step_rows, seed=options.seed)
    checkpoint = choose_checkpoint(checkpoints)
    trainer = MethodTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=processor,
        method=method,
        router=router,
        callbacks=[*method.callbacks(checkpoint), ManifestCallback(), *tracking],
        optimizers=(build_optimizer(model, options), None),
        sampler=sampler,
        projector_learning_rate=options.projector_learning_rate if isinstance(options, MllmOptions) else None,
    )
    if sharded := trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        refuse_sharded(options, model)
    # Where they shard, both train a float32 copy under autocast.
    if not (sharded and (arguments.bf16 or arguments.fp16)) and (rounded := describe_rounding(model)) is not None:
        print(rounded)
    if isinstance(options, MllmOptions) and evaluation is not None:
        trainer.add_callback(EvaluationCallback(evaluation, every=options.eval_every, log=trainer.log))
    found = method.start(trainer.model, [dataset[i] for i in range(min(method.start_rows, len(dataset)))])
    if found is not None:
        print(found)
    trainable = count_parameters(model)
    print(f"training {trainable.trainable:,} of {trainable.total:,} parameters on {len(dataset):,} of {len(rows):,} rows")
    train_to_end(trainer, checkpoint)
    weights = trainer.gather_weights()
    if trainer.is_world_process_zero():
        record |= {"num_rows": len(rows), "num_rejected": rejects.num_rejected}
        record |= {"selection": selection.counts} if selection.counts else {}
        if save is None:
            save_run(options, trainer, processor, trainable, record, weights=weights)
        else:
            save(trainer, trainable, record)
    return TrainedRun(options.out, trainer.accelerator.unwrap_model(trainer.model).eval(), processor, trainer.state.log_history)


def build_sampler(method: Method, num_rows: int, *, step_rows: int, seed: int) -> EpochSampler | None:
    """Build the order of a method's rows where it is not simply shuffled; ``step_rows`` are those of a step over all processes."""
    if method.passes > 1:
        return PassSampler(num_rows, step_rows=step_rows, passes=method.passes, seed=seed)
    return None if method.num_buckets is None else BucketSampler(num_rows, num_buckets=method.num_buckets, seed=seed)


def claim_run(options: RunOptions, method: Method, record: dict[str, Any]) -> Dataset:
    """Read the rows and claim ``out`` for the run.

    Raises:
        ValueError: If a column is missing or stale, or ``out`` holds another run.
    """
    rows = load_rows(options.data)
    check_columns(rows.column_names, method.columns, what=str(options.data))
    method.check_dataset(rows)
    # Not before: data of another kind leave no folder behind that refuses the right ones.
    claim_folder(options.out, record)
    if unused := unused_columns(rows.column_names, method.columns):
        print(f"columns of {options.data} that training does not use: {', '.join(unused)}")
    return rows


def select_rows(options: RunOptions, method: Method, rows: Dataset, data: Mapping[str, str], rejects: Rejects) -> Selection:
    """Take the rows that the method can train on, and tell what was left out."""
    workers = choose_workers(options.check_workers, len(rows))
    good = keep_good_rows(rows, method.check, rejects=rejects, num_workers=workers, kept=find_verdicts(method, data))
    selection = method.select(good)
    for line in selection.notes:
        print(line)
    return selection


def refuse_sharded(options: RunOptions, model: nn.Module) -> None:
    """Refuse what needs whole weights on each process; FSDP and DeepSpeed divide them.

    Raises:
        UserError: If the options ask for it.
    """
    plain = "with FSDP or DeepSpeed leave it out, or train with plain data parallelism"
    if is_quantized(model):
        raise UserError("weights in 4 bits can't be sharded; train them with plain data parallelism, or leave --quantization out")
    if options.optimizer == "dct-adamw":
        raise UserError(f"--optimizer dct-adamw transforms whole matrices; {plain}")
    if isinstance(options, ReferencedOptions) and options.moving is not None:
        raise UserError("--reference-update exchanges whole weights; with FSDP or DeepSpeed take --reference copy, or train an adapter")
    if isinstance(options, ChasingOptions) and options.chasing:
        raise UserError(f"--chasing runs two adapters in turn; {plain}")
    if (sampling := find_sampling(options)) is not None:
        raise UserError(f"{sampling} whole weights; {plain}")
    if isinstance(options, MllmOptions) and options.eval_benchmarks:
        raise UserError("--eval-benchmarks needs whole weights on the main process; with FSDP or DeepSpeed evaluate the checkpoints")


def find_sampling(options: RunOptions) -> str | None:
    """Say what samples with the model in training; None where nothing does."""
    if isinstance(options, OnlineOptions):
        return "train online samples with"
    return "--on-policy samples with" if isinstance(options, MimicOptions) and options.on_policy else None


def find_verdicts(method: Method, data: Mapping[str, str]) -> KeptVerdicts | None:
    """Name the verdicts of a method's check on these data files; None where they aren't kept.

    A method of another package may change, and the code that verdicts are kept for is this package's.
    """
    inputs = method.check_inputs()
    if inputs is None or not type(method).__module__.startswith("mmalign."):
        return None
    return KeptVerdicts({"method": method.name, "data": data, **inputs})


def save_run(
    options: RunOptions,
    trainer: MethodTrainer,
    processor: Any,
    parameters: ParameterCounts,
    record: dict[str, Any],
    *,
    weights: dict[str, Tensor] | None,
) -> None:
    """Save weights and processor as plain transformers loads them, the log, and the record that the card is made from.

    Args:
        options: The run's.
        trainer: After training.
        processor: The model's.
        parameters: Counted before the model was wrapped.
        record: What the card is made from.
        weights: Those of all processes together, where they were sharded; None takes the model's own.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        model.save_pretrained(options.out, state_dict=weights)
    except SafetensorError as error:
        raise OSError(f"the model can't be saved in {options.out}: {error}; the same command saves it from its last checkpoint") from error
    out, *others = saved_folders(model, options.out)
    processor.save_pretrained(out)
    finish_record(options, trainer, parameters, record)
    write_card(out)
    for folder in others:
        processor.save_pretrained(folder)
        open_to_readers(folder)
        write_record(folder, record)
        write_card(folder)
    print(f"saved in {options.out}")


def finish_record(options: RunOptions, trainer: MethodTrainer, parameters: ParameterCounts, record: dict[str, Any]) -> None:
    """Write the log, and the record with what is known of a run at its end."""
    open_to_readers(options.out)
    record["parameters"] = dataclasses.asdict(parameters)
    record["steps"] = trainer.state.global_step
    record["batch"] = options.batch_size * options.gradient_accumulation_steps * trainer.accelerator.num_processes
    write_whole(options.out / "train_log.json", json.dumps(trainer.state.log_history, indent=1))
    write_record(options.out, record)
