"""The generative gap: the log-ratio of chosen and rejected answer under the multimodal LLM before alignment.

It is the reference's part of the DPO margin, so the log-probabilities behind it are kept as the cached reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps


def score_generative(
    model: Any, encoded: Sequence[EncodedPrompt], *, pad_token_id: int, shared: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """Compute the token log-probabilities of chosen and rejected for each pair.

    Args:
        model: The un-aligned model, in eval mode.
        encoded: Pairs with two responses each.
        pad_token_id: The tokenizer's.
        shared: Whether the two responses share their prompt's row; see ``probe_rows``.

    Returns:
        For each pair two float32 tensors on the CPU, one value per response token.
    """
    found = score_responses(model, encoded, pad_token_id=pad_token_id, shared=shared)
    return [(chosen, rejected) for chosen, rejected in found]


@torch.no_grad()
def score_responses(model: Any, encoded: Sequence[EncodedPrompt], *, pad_token_id: int, shared: bool = True) -> list[list[Tensor]]:
    """Compute the token log-probabilities of every response of each prompt; arguments as in ``score_generative``."""
    batch = send_to_device(collate_prompts(encoded, pad_token_id=pad_token_id, shared=shared), next(model.parameters()).device)
    values = iter([value.cpu() for value in compute_response_logps(model, batch).per_response()])
    return [[next(values) for _ in prompt.responses] for prompt in encoded]
