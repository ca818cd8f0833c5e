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


@torch.no_grad()
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
        For each pair two float32 tensors on the CPU, one value a response token.
    """
    batch = send_to_device(collate_prompts(encoded, pad_token_id=pad_token_id, shared=shared), next(model.parameters()).device)
    values = [value.cpu() for value in compute_response_logps(model, batch).per_response()]
    return list(zip(values[::2], values[1::2], strict=True))
