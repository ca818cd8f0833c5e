"""What every training command does around its method: policy, reference, data, resume, save."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from mmalign.data.datasets import keep_good_rows, load_rows
from mmalign.data.rejects import Rejects
from mmalign.data.rows import check_columns, unused_columns
from mmalign.data.templates import describe_end
from mmalign.engine.generation import end_tokens
from mmalign.engine.logps import unwrap
from mmalign.engine.method import Method
from mmalign.engine.router import find_routers
from mmalign.errors import UserError
from mmalign.methods.cached_teacher import CachedTeacher
from mmalign.methods.pair_selection import Selection
from mmalign.methods.router import RoutedMethod, RouterConfig
from mmalign.methods.teachers import LiveTeacher, Teacher
from mmalign.models.adapters import LoraOptions, add_lora, freeze_parts
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import load_mllm
from mmalign.models.parameters import ParameterCounts, count_parameters
from mmalign.models.quantize import describe_quantization, is_quantized
from mmalign.models.references import Reference
from mmalign.models.stages import find_frozen
from mmalign.options.methods import ListwiseOptions, MimicOptions, PreferenceOptions
from mmalign.options.precision import Quantization
from mmalign.options.training import MllmOptions, ReferencedOptions, RunOptions
from mmalign.runs.cards import write_card
from mmalign.runs.run_record import claim_folder, describe_run, is_first_process, write_record
from mmalign.runs.train_eval import build_score
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback
from mmalign.training.optimizers import build_optimizer
from mmalign.training.running import choose_checkpoint, train_to_end
from mmalign.training.sampler import BucketSampler
from mmalign.training.scoring import ScoringCallback
from mmalign.training.trainer import MethodTrainer

# Rows on which a method looks at the model before training.
PROBE_ROWS = 2


def load_policy(options: MllmOptions) -> tuple[nn.Module, Any]:
    """Load the model to train, with its adapter or frozen parts.

    Raises:
        ValueError: If the model is an adapter, frozen parts and an adapter are both asked for, weights in 4 bits are to train, or the
            stage is not the model's.
    """
    set_seed(options.seed)
    if options.quantization != "none" and options.lora_rank == 0:
        raise UserError(f"--quantization {options.quantization} freezes the weights; set --lora-rank to train an adapter on them (QLoRA)")
    model, processor = load_model(options, options.model, options.quantization)
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{options.model} is a LoRA adapter; merge it into its base model with mmalign merge and train that")
    if is_quantized(model):
        if options.lora_rank == 0:
            raise UserError(f"{options.model} is quantised and can't train; set --lora-rank to train an adapter on it (QLoRA)")
        print(describe_quantization(model))
    if options.lora_rank and (options.freeze or options.stage):
        raise UserError("--freeze and --stage are for full weights; with --lora-rank everything but the adapter is frozen")
    if options.freeze and options.stage:
        raise UserError(f"--stage {options.stage} says what is frozen; leave --freeze {' '.join(options.freeze)} out, or the stage")
    frozen = options.freeze if options.stage is None else find_frozen(options.stage, sparse=bool(find_routers(model)))
    freeze_parts(model, frozen)
    if options.lora_rank == 0:
        return model, processor
    alpha = 2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
    return add_lora(model, LoraOptions(rank=options.lora_rank, alpha=alpha, dropout=options.lora_dropout)), processor


def load_model(options: MllmOptions, source: str, quantization: Quantization) -> tuple[nn.Module, Any]:
    """Load a model in the run's precision and with its attention."""
    return load_mllm(source, dtype=options.dtype, quantization=quantization, attention=options.attention)


def build_reference(options: PreferenceOptions | ListwiseOptions, policy: nn.Module) -> Reference | None:
    """Make the frozen reference; None where its log-probabilities are read from the data.

    Raises:
        ValueError: If a reference model or its quantisation is named for a kind that has no use for it.
    """
    kind = options.reference
    if kind == "cached":
        return None
    quantization = reference_quantization(options)
    if kind == "model" and options.reference_model is None:
        raise UserError("--reference model needs the model: name it with --reference-model")
    if options.reference_model is not None:
        if kind not in ("auto", "model"):
            raise UserError(f"--reference {kind} and --reference-model exclude each other; leave one out")
        return Reference(policy, kind="copy", model=load_model(options, options.reference_model, quantization)[0])
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


def reference_quantization(options: ReferencedOptions) -> Quantization:
    """How a reference with weights of its own is held: as the policy, unless said otherwise."""
    return options.quantization if options.reference_quantization is None else options.reference_quantization


def build_teacher(options: MimicOptions, student: nn.Module, processor: Any) -> Teacher:
    """Load whom the student mimics.

    Raises:
        ValueError: If the teacher doesn't share the student's tokens.
    """
    if options.teacher == "cached":
        named, quantization = options.teacher_model, options.teacher_quantization
        if named is None:
            return CachedTeacher(student, fingerprint=None)
        return CachedTeacher(student, fingerprint=fingerprint_checkpoint(named, dtype=options.teacher_dtype, quantization=quantization))
    model, teacher_processor = load_mllm(
        options.teacher, dtype=options.teacher_dtype, quantization=options.teacher_quantization, attention=options.attention
    )
    reference = Reference(student, kind="copy", model=model)
    return LiveTeacher(reference, teacher_processor, student=student, student_processor=processor, answer_end=options.answer_end)


def fingerprint_reference(options: PreferenceOptions | ListwiseOptions) -> str | None:
    """Say what cached log-probabilities must come from; None where the reference is a model."""
    if options.reference != "cached":
        return None
    source = options.reference_model or options.model
    return fingerprint_checkpoint(source, dtype=options.dtype, quantization=reference_quantization(options))


def route(options: MllmOptions, model: nn.Module, method: Method) -> Method:
    """Add the router's losses and metrics to a method where the model is sparse.

    Raises:
        ValueError: If the model is dense and a weight of the router's losses is given.
    """
    if find_routers(model):
        balance_weight = RouterConfig.balance_weight if options.balance_weight is None else options.balance_weight
        return RoutedMethod(method, RouterConfig(balance_weight, options.router_z_weight))
    if options.balance_weight is not None or options.router_z_weight:
        raise UserError(
            f"{options.model} is dense and has no router; leave --balance-weight and --router-z-weight out, or run mmalign upcycle first"
        )
    return method


def train_and_save(
    options: RunOptions,
    model: nn.Module,
    processor: Any,
    method: Method,
    *,
    select: Callable[[Dataset], Selection] | None = None,
    prepare: Callable[[Dataset], Dataset] | None = None,
    num_buckets: int | None = None,
    start_rows: int = PROBE_ROWS,
) -> None:
    """Check the data, train or go on training, and save the model with its card.

    Args:
        options: Of the run.
        model: What trains.
        processor: Saved beside it.
        method: What is trained.
        select: Chooses and orders the checked rows; what it says is printed and kept in the record.
        prepare: Adds columns that depend on all rows.
        num_buckets: Go through the rows in their order, shuffled within this many buckets an epoch; None: shuffled.
        start_rows: Rows that are shown to the method before the first step.

    Raises:
        ValueError: If the data can't be used, or ``out`` holds another run.
    """
    score = build_score(options, processor) if isinstance(options, MllmOptions) else None
    record = describe_run(options, method=method.name)
    claim_folder(options.out, record)
    dataset = load_rows(options.data)
    num_rows, selected = len(dataset), {}
    check_columns(dataset.column_names, method.columns, what=str(options.data))
    if unused := unused_columns(dataset.column_names, method.columns):
        print(f"columns of {options.data} that training does not use: {', '.join(unused)}")
    if isinstance(options, MllmOptions) and (told := describe_end(processor, end_tokens(unwrap(model)), options.answer_end)):
        print(told)
        record["answer_end"] = told
    rejects = Rejects(options.out / "rejects.jsonl", max_share=options.max_reject_share, write=is_first_process())
    dataset = keep_good_rows(dataset, method.check, rejects=rejects)
    if select is not None:
        selection = select(dataset)
        dataset, selected = selection.dataset, {"selection": selection.counts} if selection.counts else {}
        for line in selection.notes:
            print(line)
    if prepare is not None:
        dataset = prepare(dataset)
    checkpoints = options.out / "checkpoints"
    arguments = build_training_arguments(options, output_dir=checkpoints)
    checkpoint = choose_checkpoint(checkpoints)
    trainer = MethodTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=processor,
        method=method,
        callbacks=[ManifestCallback()],
        optimizers=(build_optimizer(model, options), None),
        sampler=None if num_buckets is None else BucketSampler(len(dataset), num_buckets=num_buckets, seed=options.seed),
    )
    if is_quantized(model) and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise UserError("weights in 4 bits can't be sharded; train them with plain data parallelism, or leave --quantization out")
    if isinstance(options, MllmOptions) and score is not None:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError("--eval-benchmarks needs whole weights on the main process; with FSDP or DeepSpeed evaluate the checkpoints")
        trainer.add_callback(ScoringCallback(score, every=options.eval_every, log=trainer.log))
    found = method.start(trainer.model, [dataset[i] for i in range(min(start_rows, len(dataset)))])
    if found is not None:
        print(found)
    trainable = count_parameters(model)
    print(f"training {trainable.trainable:,} of {trainable.total:,} parameters on {len(dataset):,} of {num_rows:,} rows")
    train_to_end(trainer, checkpoint)
    weights = trainer.gather_weights()
    if trainer.is_world_process_zero():
        record |= {"num_rows": num_rows, "num_rejected": rejects.num_rejected, **selected}
        save_run(options, trainer, processor, trainable, record, weights=weights)


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
    try:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(options.out, state_dict=weights)
    except SafetensorError as error:
        raise OSError(f"the model can't be saved in {options.out}: {error}; the same command saves it from its last checkpoint") from error
    processor.save_pretrained(options.out)
    record["parameters"] = dataclasses.asdict(parameters)
    record["steps"] = trainer.state.global_step
    record["batch"] = options.batch_size * options.gradient_accumulation_steps * trainer.accelerator.num_processes
    (options.out / "train_log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    write_record(options.out, record)
    write_card(options.out)
    print(f"saved in {options.out}")
