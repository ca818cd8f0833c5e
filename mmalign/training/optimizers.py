"""Optimisers that the trainer is handed; what is not here, transformers' own arguments choose."""

from collections.abc import Iterable

from timm.optim.muon import Muon
from torch import nn
from torch.optim import Optimizer

from mmalign.errors import UserError
from mmalign.options.training import TrainerOptions
from mmalign.training.dct_adamw import DctAdamW


def build_optimizer(model: nn.Module, options: TrainerOptions) -> Optimizer | None:
    """Build what ``options.optimizer`` names; None leaves AdamW to the trainer.

    ``muon`` (Jordan et al. 2024) orthogonalises the momentum of weight matrices; embeddings, the output head, biases, norms and the
    stacked matrices of experts take AdamW. Its steps are scaled to AdamW's size (arXiv:2502.16982), so that one learning rate serves both.

    ``dct-adamw`` (arXiv:2505.17967) is AdamW with the moments of matrices in ``dct_rank`` columns of a cosine basis.

    Raises:
        ValueError: If the rank is below 1.
    """
    if options.optimizer == "adamw":
        return None
    if options.optimizer == "dct-adamw":
        training = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in training if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in training if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas, feedback = (0.9, options.adam_beta2), options.dct_error_feedback
        groups = [group for group in groups if group["params"]]
        return DctAdamW(groups, options.learning_rate, rank=options.dct_rank, betas=betas, error_feedback=feedback)
    tables = {id(parameter) for module in model.modules() if isinstance(module, nn.Embedding) for parameter in module.parameters()}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tables |= set() if head is None else {id(parameter) for parameter in head.parameters()}
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in training if parameter.ndim == 2 and id(parameter) not in tables]
    chosen = {id(parameter) for parameter in matrices}
    groups = [
        {"params": matrices, "use_fallback": False, "weight_decay": options.weight_decay},
        {"params": [p for p in training if id(p) not in chosen], "use_fallback": True, "weight_decay": 0.0},
    ]
    return Muon([group for group in groups if group["params"]], lr=options.learning_rate, betas=(0.9, options.adam_beta2))


def set_own_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], *, learning_rate: float, option: str) -> None:
    """Give some parameters a peak learning rate of their own, under the schedule of all; every other setting stays.

    Their groups stand last, so that the first group's rate is still that of the rest.

    Args:
        optimizer: Before its first step, and before a schedule is made for it.
        parameters: Some of those that it updates.
        learning_rate: Their peak.
        option: What asks for it, for the error.

    Raises:
        ValueError: If the optimiser updates none of them.
    """
    own = {id(parameter) for parameter in parameters}
    groups = list(getattr(optimizer, "param_groups", []))
    if not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise UserError(
            f"{type(optimizer).__name__} keeps its weights in no groups that could have a learning rate of their own; leave "
            f"{option} out, or choose another optimiser"
        )
    for group in groups:
        moved = [parameter for parameter in group["params"] if id(parameter) in own]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        if moved:
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
