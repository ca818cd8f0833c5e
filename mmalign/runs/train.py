"""``mmalign train contrastive | sft | mimic | preference | listwise``."""

from functools import partial
from typing import Literal

from mmalign.engine.divergence import Divergence
from mmalign.errors import UserError
from mmalign.methods.contrastive import ContrastiveMethod
from mmalign.methods.listwise import ListwiseConfig, ListwiseMethod
from mmalign.methods.mimic import MimicConfig, MimicMethod
from mmalign.methods.pair_selection import SelectionConfig, select_pairs
from mmalign.methods.preference import PreferenceConfig, PreferenceMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.models.contrastive import build_or_load_clip
from mmalign.options.methods import ListwiseOptions, MimicOptions, PreferenceOptions, SftOptions
from mmalign.options.training import ContrastiveOptions
from mmalign.runs.training_run import PROBE_ROWS, build_reference, build_teacher, fingerprint_reference, load_policy, route, train_and_save


def run_contrastive(options: ContrastiveOptions) -> None:
    """Train an image-text scorer."""
    model, processor = build_or_load_clip(options.model, tokenizer=options.tokenizer, seed=options.seed)
    limit = model.config.text_config.max_position_embeddings
    method = ContrastiveMethod(processor, max_length=min(options.max_length or limit, limit), image_root=options.image_root)
    train_and_save(options, model, processor, method)


def run_sft(options: SftOptions) -> None:
    """Fine-tune a multimodal LLM on chats."""
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
        raise UserError("--teacher cached knows the right places at temperature 1 alone; leave --legacy-mask and --temperature out")
    if options.teacher_model is not None and not cached:
        raise UserError(f"--teacher-model is for --teacher cached; the teacher is {options.teacher}")
    model, processor = load_policy(options)
    method = MimicMethod(processor, config, teacher=build_teacher(options, model, processor), image_root=options.image_root)
    train_and_save(options, model, processor, route(options, model, method), prepare=method.prepare)


START_ROWS = 64
"""Pairs on which rewards before training are measured."""


def run_preference(options: PreferenceOptions) -> None:
    """Train a multimodal LLM on preference pairs."""
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
        raise UserError(
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


def _read_selection(options: PreferenceOptions) -> SelectionConfig:
    """Turn the options into a SelectionConfig."""
    bounds = options.difficulty_range
    if len(bounds) not in (0, 2):
        raise UserError(f"difficulty_range is {' '.join(map(str, bounds))}; expected two numbers in [0, 1], such as 0.2 0.9")
    if options.curriculum_buckets < 1:
        raise UserError(f"curriculum_buckets is {options.curriculum_buckets}; expected 1 or more, such as 20")
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
    config = ListwiseConfig(tuple(options.objective), options.beta, options.max_length, options.answer_end, options.row_tokens)
    model, processor = load_policy(options)
    reference, fingerprint = build_reference(options, model), fingerprint_reference(options)
    method = ListwiseMethod(processor, config, reference=reference, reference_fingerprint=fingerprint, image_root=options.image_root)
    train_and_save(options, model, processor, route(options, model, method), prepare=method.prepare)
