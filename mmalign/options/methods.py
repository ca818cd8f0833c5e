"""What each method of training can be set to."""

from dataclasses import dataclass, field
from typing import Literal

from mmalign.options.precision import Dtype, Quantization
from mmalign.options.training import MllmOptions, ReferencedOptions


@dataclass(frozen=True, kw_only=True)
class SftOptions(MllmOptions):
    """Options of ``mmalign train sft``."""

    learning_rate: float = 2e-5
    """peak learning rate"""


@dataclass(frozen=True, kw_only=True)
class MimicOptions(MllmOptions):
    """Options of ``mmalign train mimic``."""

    teacher: str
    """whom to mimic: folder or hub id of a multimodal LLM with the student's tokens, or cached: columns of the data"""
    teacher_model: str | None = None
    """the model that a cached teacher's columns must come from: folder or hub id"""
    teacher_dtype: Dtype = "auto"
    """precision of the teacher's weights"""
    teacher_quantization: Quantization = "none"
    """hold the teacher's language model in 4 bits"""
    learning_rate: float = 2e-5
    """peak learning rate"""
    divergence: Literal["forward-kl", "reverse-kl", "js"] = "forward-kl"
    """of the student from the teacher: KL(teacher, student), KL(student, teacher), Jensen-Shannon"""
    temperature: float = 1.0
    """softens both distributions; the divergence is multiplied by its square"""
    kl_weight: float = 1.0
    """weight of the divergence"""
    ce_weight: float = 0.0
    """weight of the cross-entropy on the chats' own tokens; 1 in dense-to-sparse"""
    legacy_mask: bool = False
    """compare one place late, as LLaVA-MoD's released code does; to replicate it only"""


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(ReferencedOptions):
    """Options of ``mmalign train preference``."""

    learning_rate: float = 2e-6
    """peak learning rate"""
    objective: list[str] = field(default_factory=lambda: ["dpo"])
    """NAME or NAME:parameter=value,...; several are summed, each times its parameter weight (docs/objectives.md): dpo, cdpo, rdpo,
    ipo, hinge, fdpo, clipped_dpo, flex_dpo, madpo, ld_dpo, asft, orpo, simpo, kto_pair, dno, smpo, step_dpo, adpo_pair, ddo
    """
    beta: float | None = None
    """pull towards the reference; the objective's own if not given (dpo: 0.1)"""
    difficulty_mode: Literal["off", "paper", "paper-norm", "loss-weight", "both"] = "off"
    """what a pair's difficulty changes: nothing (DPO), its beta, its loss weight, or both"""
    difficulty_range: list[float] = field(default_factory=list)
    """train on pairs with a difficulty from the first to the second number, such as 0.2 0.9"""
    curriculum: Literal["none", "easy-to-hard", "hard-to-easy"] = "none"
    """order of the pairs in an epoch, by difficulty; none: shuffled"""
    curriculum_buckets: int = 20
    """parts of an epoch that are shuffled within, one after the other"""
    noisy_gap: Literal["keep", "drop", "flip", "smooth"] = "keep"
    """pairs whose rejected answer the proxies clearly prefer: leave out, swap, or soften the label"""
    noisy_gap_std: float = 1.0
    """clearly: fused gap this many standard deviations below zero, or more"""
    noisy_gap_quantile: float | None = None
    """instead: this share of the pairs, with the lowest fused gaps, as far as they are negative"""
    noisy_gap_label_flip: float = 0.3
    """smooth: share of such a pair's loss that is the swapped pair's"""
    center_rewards: bool = False
    """subtract the rewards' means before training: for a teacher as the reference"""
    sft_weight: float = 0.0
    """adds this times the chosen response's mean negative log-likelihood"""
    row_tokens: int | None = None
    """pack several pairs into rows of about this many tokens"""
    reference: Literal["auto", "adapter-off", "copy", "model", "cached"] = "auto"
    """frozen model: the policy without its adapter, a copy, reference-model, or log-probs in the data; auto: reference-model where one
    is named, else adapter-off with LoRA, else a copy
    """


@dataclass(frozen=True, kw_only=True)
class ListwiseOptions(ReferencedOptions):
    """Options of ``mmalign train listwise``."""

    learning_rate: float = 2e-6
    """peak learning rate"""
    objective: list[str] = field(default_factory=lambda: ["adpo"])
    """NAME or NAME:parameter=value,...; several are summed, each times its parameter weight (docs/objectives.md): adpo, plackett_luce,
    irpo, tpo
    """
    beta: float | None = None
    """pull towards the reference; the objective's own if not given"""
    row_tokens: int | None = None
    """pack several prompts into rows of about this many tokens"""
    reference: Literal["auto", "adapter-off", "copy", "cached"] = "auto"
    """frozen model: the policy without its adapter, a copy, or log-probs in the data; auto: adapter-off with LoRA"""
    reference_model: str | None = None
    """another model as the reference, or the one that cached log-probs are of: folder or hub id"""
