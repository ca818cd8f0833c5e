"""Student and teacher on the same tokens: the teacher's hidden states first, then the student's loss inside its own forward pass.

No tensor of the size of a vocabulary is held beyond one chunk, of either model (see ``divergence.py``).

Shape legend: K = scored tokens, G = groups of them, T = the teacher's hidden width, B = rows, L = row length.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.engine.aligned import Alignment, aligned_distance
from mmalign.engine.divergence import Head, Prediction, TeacherStates, TopTokens, linear_divergence
from mmalign.engine.head import LogitTransform, chunks, linear_token_logps
from mmalign.engine.logps import OutputHead, run_with_head, unwrap
from mmalign.options.methods import DivergenceOptions


class StudentOutput(NamedTuple):
    """The student's part, by token."""

    divergence: Tensor
    """(K,) in nats, with gradient; (G,) of groups of tokens where the teacher's are others."""
    logps: Tensor | None
    """(K,) log p of the token itself, with gradient; None where nobody asked."""


def head_size(model: nn.Module) -> int:
    """Rows of a model's output head."""
    head: Any = unwrap(model).get_output_embeddings()
    return head.out_features


@torch.no_grad()
def compute_teacher_states(teacher: nn.Module, batch: dict[str, Any], *, index: Tensor | None = None) -> TeacherStates:
    """Run the teacher up to its output head.

    Args:
        teacher: A multimodal LLM.
        batch: From ``collate_prompts``, of the teacher's own processor.
        index: (K,) places in B * L of the hidden states; those that predict the scored tokens if not given.
    """
    found: list[Head] = []
    chosen = batch["layout"]["index"] if index is None else index

    def keep(hidden: Tensor, head: OutputHead, transform: LogitTransform) -> Tensor:
        found.append(Head(head.weight, head.bias, transform))
        return hidden.index_select(0, chosen)

    hidden = run_with_head(teacher, batch, keep)
    return TeacherStates(hidden.to(found[0].weight.dtype), found[0])


@torch.no_grad()
def find_top_tokens(teacher: TeacherStates, number: int, *, vocabulary: int) -> TopTokens:
    """Find each token's likeliest successors, chunk by chunk.

    Args:
        teacher: From ``compute_teacher_states``.
        number: N, below ``vocabulary``.
        vocabulary: Tokens of the teacher; padding rows of its head are left out.

    Returns:
        Ids (K, N) and log-probabilities (K, N + 1), float32.
    """
    head = teacher.head.cut(vocabulary)
    found: list[tuple[Tensor, Tensor]] = []
    for part in chunks(len(teacher.hidden), vocabulary):
        logps = head.logits(teacher.hidden[part]).log_softmax(-1)
        values, ids = logps.topk(number)
        # Summed over the others themselves: 1 - the named ones cancels where the teacher is sure.
        found.append((ids, torch.cat([values, logps.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)], -1)))
    return TopTokens(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def compute_student_output(
    student: nn.Module,
    batch: dict[str, Any],
    teacher: Prediction | Alignment,
    options: DivergenceOptions,
    *,
    vocabulary: int,
    index: Tensor | None = None,
    with_logps: bool = False,
) -> StudentOutput:
    """Run the student, and compare it with the teacher token by token, or group by group.

    Args:
        student: A multimodal LLM, possibly wrapped by PEFT, DDP or FSDP.
        batch: From ``collate_prompts``, of the student's processor.
        teacher: For the same scored tokens, or for those of the same words.
        options: Divergence and temperature.
        vocabulary: Tokens, from id 0 on, that both share; both distributions are cut to them and sum to 1 again. The student's own where
            the teacher has others.
        index: (K,) places of the hidden states that are compared; those that predict the scored tokens if not given.
        with_logps: Whether log p of the tokens is wanted too, under the student's whole vocabulary.
    """
    layout = batch["layout"]
    compared = layout["index"] if index is None else index

    def compare(hidden: Tensor, head: OutputHead, transform: LogitTransform) -> Tensor:
        own = Head(head.weight, head.bias, transform).cut(vocabulary)
        told = hidden.index_select(0, compared)
        if isinstance(teacher, Alignment):
            value = aligned_distance(told, layout["target"], own, teacher, options)
        else:
            value = linear_divergence(told, own, teacher.cut(vocabulary), options)
        if not with_logps:
            return value
        scored = hidden.index_select(0, layout["index"])
        logps = linear_token_logps(scored, head.weight, head.bias, layout["target"], scale=transform.scale, softcap=transform.softcap)
        return torch.cat([value, logps])

    values = run_with_head(student, batch, compare)
    count = len(values) - len(layout["target"]) * with_logps
    return StudentOutput(values[:count], values[count:] if with_logps else None)
