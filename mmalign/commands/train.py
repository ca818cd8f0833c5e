"""``mmalign train contrastive | sft | mimic | preference | listwise``."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmalign.commands.evaluate import Name
from mmalign.data.options import AnswerOptions
from mmalign.models.precision import Dtype, PrecisionOptions, Quantization
from mmalign.training.config import TrainConfig

OBJECTIVE_HELP = "NAME or NAME:parameter=value,...; several are summed, each times its parameter weight (docs/objectives.md)"
# Names and not the registries, which need torch. A test holds the two together.
PAIR_NAMES = (
    "dpo, cdpo, rdpo, ipo, hinge, fdpo, clipped_dpo, flex_dpo, madpo, ld_dpo, asft, orpo, simpo, kto_pair, dno, smpo, step_dpo, "
    "adpo_pair, ddo"
)
LIST_NAMES = "adpo, plackett_luce, irpo, tpo"


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainConfig):
    """What every training run reads and writes."""

    data: Path = field(metadata={"help": "parquet, json or jsonl file, or a folder of them"})
    out: Path = field(metadata={"help": "folder of the trained model; run the same command again to go on after a stop"})
    image_root: Path | None = field(default=None, metadata={"help": "folder that relative image paths in the data start from"})
    max_length: int | None = field(default=None, metadata={"help": "longest row in tokens, images included; longer ones are rejected"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of rows is broken"})
    license: str | None = field(default=None, metadata={"help": "licence named in the model card; that of the starting model if not given"})


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(RunOptions):
    """Options of ``mmalign train contrastive``."""

    model: str = field(metadata={"help": "CLIP model: folder, hub id, or JSON config for random weights"})
    tokenizer: str | None = field(default=None, metadata={"help": "tokenizer folder; needed where the model is a config"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate"})


@dataclass(frozen=True, kw_only=True)
class MllmOptions(RunOptions, PrecisionOptions, AnswerOptions):
    """What training a multimodal LLM needs beside."""

    model: str = field(metadata={"help": "multimodal LLM: folder or hub id"})
    attention: Literal["sdpa", "flex_attention"] = field(default="sdpa", metadata={"help": "language model only; flex trains on GPUs"})
    freeze: list[Literal["vision_tower", "projector", "language_model", "attention_and_embeddings"]] = field(
        default_factory=list,
        metadata={"help": "parts that don't train: vision_tower, projector, language_model, attention_and_embeddings (all of it but FFNs)"},
    )
    stage: Literal["init", "dense-to-dense", "dense-to-sparse", "preference"] | None = field(
        default=None, metadata={"help": "LLaVA-MoD's stage, which freezes what trains elsewhere (docs/distillation.md); instead of freeze"}
    )
    lora_rank: int = field(default=0, metadata={"help": "LoRA on the language model; 0 trains full weights"})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA scale is alpha / rank; twice the rank if not given"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before the adapter"})
    eval_benchmarks: list[Name] = field(
        default_factory=list, metadata={"help": "benchmarks that the model in training is scored on, such as pope chair"}
    )
    eval_data: list[Path] = field(
        default_factory=list, metadata={"help": "their files, as mmalign evaluate --data takes them: one folder for all, or one for each"}
    )
    eval_every: int = field(default=500, metadata={"help": "steps between scores; the last step is always scored"})
    eval_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "other options of mmalign evaluate by benchmark: '{pope: {images: val2014, max_new_tokens: 16}}'"},
    )
    balance_weight: float | None = field(
        default=None, metadata={"help": "sparse models: load-balancing loss, summed over layers; 0.01 if not given"}
    )
    router_z_weight: float = field(default=0.0, metadata={"help": "sparse models: squared log-sum of router logits, summed over layers"})


@dataclass(frozen=True, kw_only=True)
class ReferencedOptions(MllmOptions):
    """What methods need beside that hold the model to a frozen one."""

    reference_model: str | None = field(
        default=None, metadata={"help": "another model as the reference, or the one that cached log-probs are of: folder or hub id"}
    )
    reference_quantization: Quantization | None = field(
        default=None, metadata={"help": "hold a reference of its own in 4 bits, or not; as --quantization if not given"}
    )


@dataclass(frozen=True, kw_only=True)
class SftOptions(MllmOptions):
    """Options of ``mmalign train sft``."""

    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})


@dataclass(frozen=True, kw_only=True)
class MimicOptions(MllmOptions):
    """Options of ``mmalign train mimic``."""

    teacher: str = field(
        metadata={"help": "whom to mimic: folder or hub id of a multimodal LLM with the student's tokens, or cached: columns of the data"}
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "the model that a cached teacher's columns must come from: folder or hub id"}
    )
    teacher_dtype: Dtype = field(default="auto", metadata={"help": "precision of the teacher's weights"})
    teacher_quantization: Quantization = field(default="none", metadata={"help": "hold the teacher's language model in 4 bits"})
    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})
    divergence: Literal["forward-kl", "reverse-kl", "js"] = field(
        default="forward-kl",
        metadata={"help": "of the student from the teacher: KL(teacher, student), KL(student, teacher), Jensen-Shannon"},
    )
    temperature: float = field(default=1.0, metadata={"help": "softens both distributions; the divergence is multiplied by its square"})
    kl_weight: float = field(default=1.0, metadata={"help": "weight of the divergence"})
    ce_weight: float = field(default=0.0, metadata={"help": "weight of the cross-entropy on the chats' own tokens; 1 in dense-to-sparse"})
    legacy_mask: bool = field(
        default=False, metadata={"help": "compare one place late, as LLaVA-MoD's released code does; to replicate it only"}
    )


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(ReferencedOptions):
    """Options of ``mmalign train preference``."""

    learning_rate: float = field(default=2e-6, metadata={"help": "peak learning rate"})
    objective: list[str] = field(default_factory=lambda: ["dpo"], metadata={"help": f"{OBJECTIVE_HELP}: {PAIR_NAMES}"})
    beta: float | None = field(default=None, metadata={"help": "pull towards the reference; the objective's own if not given (dpo: 0.1)"})
    difficulty_mode: Literal["off", "paper", "paper-norm", "loss-weight", "both"] = field(
        default="off", metadata={"help": "what a pair's difficulty changes: nothing (DPO), its beta, its loss weight, or both"}
    )
    difficulty_range: list[float] = field(
        default_factory=list, metadata={"help": "train on pairs with a difficulty from the first to the second number, such as 0.2 0.9"}
    )
    curriculum: Literal["none", "easy-to-hard", "hard-to-easy"] = field(
        default="none", metadata={"help": "order of the pairs in an epoch, by difficulty; none: shuffled"}
    )
    curriculum_buckets: int = field(default=20, metadata={"help": "parts of an epoch that are shuffled within, one after the other"})
    noisy_gap: Literal["keep", "drop", "flip", "smooth"] = field(
        default="keep", metadata={"help": "pairs whose rejected answer the proxies clearly prefer: leave out, swap, or soften the label"}
    )
    noisy_gap_std: float = field(default=1.0, metadata={"help": "clearly: fused gap this many standard deviations below zero, or more"})
    noisy_gap_quantile: float | None = field(
        default=None, metadata={"help": "instead: this share of the pairs, with the lowest fused gaps, as far as they are negative"}
    )
    noisy_gap_label_flip: float = field(default=0.3, metadata={"help": "smooth: share of such a pair's loss that is the swapped pair's"})
    center_rewards: bool = field(
        default=False, metadata={"help": "subtract the rewards' means before training: for a teacher as the reference"}
    )
    sft_weight: float = field(default=0.0, metadata={"help": "adds this times the chosen response's mean negative log-likelihood"})
    row_tokens: int | None = field(default=None, metadata={"help": "pack several pairs into rows of about this many tokens"})
    reference: Literal["auto", "adapter-off", "copy", "model", "cached"] = field(
        default="auto",
        metadata={
            "help": "frozen model: the policy without its adapter, a copy, reference-model, or log-probs in the data; auto: "
            "reference-model where one is named, else adapter-off with LoRA, else a copy"
        },
    )


@dataclass(frozen=True, kw_only=True)
class ListwiseOptions(ReferencedOptions):
    """Options of ``mmalign train listwise``."""

    learning_rate: float = field(default=2e-6, metadata={"help": "peak learning rate"})
    objective: list[str] = field(default_factory=lambda: ["adpo"], metadata={"help": f"{OBJECTIVE_HELP}: {LIST_NAMES}"})
    beta: float | None = field(default=None, metadata={"help": "pull towards the reference; the objective's own if not given"})
    row_tokens: int | None = field(default=None, metadata={"help": "pack several prompts into rows of about this many tokens"})
    reference: Literal["auto", "adapter-off", "copy", "cached"] = field(
        default="auto",
        metadata={"help": "frozen model: the policy without its adapter, a copy, or log-probs in the data; auto: adapter-off with LoRA"},
    )
    reference_model: str | None = field(
        default=None, metadata={"help": "another model as the reference, or the one that cached log-probs are of: folder or hub id"}
    )


def run_contrastive(options: ContrastiveOptions) -> None:
    """Train an image-text scorer."""
    from mmalign.commands.training_run import train_and_save
    from mmalign.methods.contrastive import ContrastiveMethod
    from mmalign.models.contrastive import build_or_load_clip

    model, processor = build_or_load_clip(options.model, tokenizer=options.tokenizer, seed=options.seed)
    limit = model.config.text_config.max_position_embeddings
    method = ContrastiveMethod(processor, max_length=min(options.max_length or limit, limit), image_root=options.image_root)
    train_and_save(options, model, processor, method)


def run_sft(options: SftOptions) -> None:
    """Fine-tune a multimodal LLM on chats."""
    from mmalign.commands.training_run import load_policy, route, train_and_save
    from mmalign.methods.sft import SupervisedMethod

    model, processor = load_policy(options)
    method = SupervisedMethod(processor, max_length=options.max_length, image_root=options.image_root, answer_end=options.answer_end)
    train_and_save(options, model, processor, route(options, model, method))


DIVERGENCES: dict[str, Literal["forward", "reverse", "jensen-shannon"]] = {
    "forward-kl": "forward",
    "reverse-kl": "reverse",
    "js": "jensen-shannon",
}


def run_mimic(options: MimicOptions) -> None:
    """Distil a teacher into a student on chats."""
    from mmalign.commands.training_run import build_teacher, load_policy, route, train_and_save
    from mmalign.engine.divergence import Divergence
    from mmalign.methods.mimic import MimicConfig, MimicMethod

    config = MimicConfig(
        divergence=Divergence(DIVERGENCES[options.divergence], options.temperature),
        kl_weight=options.kl_weight,
        ce_weight=options.ce_weight,
        legacy_mask=options.legacy_mask,
        max_length=options.max_length,
        answer_end=options.answer_end,
    )
    cached = options.teacher == "cached"
    if cached and (options.legacy_mask or options.temperature != 1.0):
        raise ValueError("--teacher cached knows the right places at temperature 1 alone; leave --legacy-mask and --temperature out")
    if options.teacher_model is not None and not cached:
        raise ValueError(f"--teacher-model is for --teacher cached; the teacher is {options.teacher}")
    model, processor = load_policy(options)
    method = MimicMethod(processor, config, teacher=build_teacher(options, model, processor), image_root=options.image_root)
    train_and_save(options, model, processor, route(options, model, method), prepare=method.prepare)


START_ROWS = 64
"""Pairs on which rewards before training are measured."""


def run_preference(options: PreferenceOptions) -> None:
    """Train a multimodal LLM on preference pairs."""
    from mmalign.commands.training_run import PROBE_ROWS, build_reference, fingerprint_reference, load_policy, route, train_and_save
    from mmalign.methods.pair_selection import select_pairs
    from mmalign.methods.preference import PreferenceConfig, PreferenceMethod

    selection = _read_selection(options)
    config = PreferenceConfig(
        objectives=tuple(options.objective),
        beta=options.beta,
        difficulty_mode=options.difficulty_mode,
        center_rewards=options.center_rewards,
        sft_weight=options.sft_weight,
        max_length=options.max_length,
        answer_end=options.answer_end,
        row_tokens=options.row_tokens,
    )
    uses_reference = any(named.objective.uses_reference for named in config.build_objectives())
    chosen = (options.reference != "auto", options.reference_model is not None, options.reference_quantization is not None)
    if not uses_reference and any(chosen):
        raise ValueError(
            f"objective {', '.join(options.objective)} compares with no reference; leave --reference, --reference-model and "
            "--reference-quantization out"
        )
    model, processor = load_policy(options)
    reference = build_reference(options, model) if uses_reference else None
    fingerprint = fingerprint_reference(options)
    # Against itself the policy's rewards are 0.
    rows = START_ROWS if options.reference_model is not None or options.center_rewards else PROBE_ROWS
    method = PreferenceMethod(processor, config, reference=reference, reference_fingerprint=fingerprint, image_root=options.image_root)
    train_and_save(
        options,
        model,
        processor,
        route(options, model, method),
        select=partial(select_pairs, config=selection),
        prepare=method.prepare,
        start_rows=rows,
        num_buckets=None if options.curriculum == "none" else options.curriculum_buckets,
    )


def _read_selection(options: PreferenceOptions) -> Any:
    """Turn the options into a SelectionConfig, whose module imports more than ``--help`` may."""
    from mmalign.methods.pair_selection import SelectionConfig

    bounds = options.difficulty_range
    if len(bounds) not in (0, 2):
        raise ValueError(f"difficulty_range is {' '.join(map(str, bounds))}; expected two numbers in [0, 1], such as 0.2 0.9")
    if options.curriculum_buckets < 1:
        raise ValueError(f"curriculum_buckets is {options.curriculum_buckets}; expected 1 or more, such as 20")
    return SelectionConfig(
        noisy_gap=options.noisy_gap,
        noisy_gap_std=options.noisy_gap_std,
        noisy_gap_quantile=options.noisy_gap_quantile,
        noisy_gap_label_flip=options.noisy_gap_label_flip,
        difficulty_range=(bounds[0], bounds[1]) if bounds else None,
        curriculum=options.curriculum,
    )


def run_listwise(options: ListwiseOptions) -> None:
    """Train a multimodal LLM on several scored responses of each prompt."""
    from mmalign.commands.training_run import build_reference, fingerprint_reference, load_policy, route, train_and_save
    from mmalign.methods.listwise import ListwiseConfig, ListwiseMethod

    config = ListwiseConfig(tuple(options.objective), options.beta, options.max_length, options.answer_end, options.row_tokens)
    model, processor = load_policy(options)
    reference, fingerprint = build_reference(options, model), fingerprint_reference(options)
    method = ListwiseMethod(processor, config, reference=reference, reference_fingerprint=fingerprint, image_root=options.image_root)
    train_and_save(options, model, processor, route(options, model, method), prepare=method.prepare)
