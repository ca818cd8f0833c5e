"""What trains in each stage of distillation to a sparse student (LLaVA-MoD, arXiv:2408.15881, section 3)."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from mmalign.errors import UserError
from mmalign.models.adapters import find_parameters
from mmalign.options.training import Frozen

DENSE_STAGES: dict[str, tuple[Frozen, ...]] = {
    "init": ("vision_tower", "language_model"),
    "dense-to-dense": ("vision_tower",),
}
"""Frozen parts by stage, before upcycling: the projector trains, then the language model with it."""
SPARSE_STAGES: dict[str, tuple[Frozen, ...]] = {
    "dense-to-sparse": ("vision_tower", "attention_and_embeddings"),
    "preference": ("vision_tower", "attention_and_embeddings"),
}
"""After upcycling: all feed-forward networks (experts, and those of the layers that stayed dense), routers and projector train."""


def find_frozen(stage: str, *, sparse: bool) -> tuple[Frozen, ...]:
    """Return the parts that a stage freezes.

    Raises:
        ValueError: If the stage is of the dense model and this one is sparse, or the other way round.
    """
    stages = SPARSE_STAGES if sparse else DENSE_STAGES
    if stage not in stages:
        kind, remedy = ("sparse", "train the model that it was made from") if sparse else ("dense", "run mmalign upcycle first")
        names = ", ".join(stages)
        raise UserError(f"stage {stage} is not of a {kind} model, whose stages are {names}; {remedy}, or name parts with --freeze")
    return stages[stage]


def count_trainable(model: PreTrainedModel, frozen: Sequence[Frozen]) -> int:
    """Count the weights outside the frozen parts; nothing is frozen here."""
    held = {id(parameter) for part in frozen for parameter in find_parameters(model, part)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in held)
