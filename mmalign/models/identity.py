"""Whether two models compute the same: their logits on the same random text."""

import torch
from transformers import PreTrainedModel

IDENTITY_TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit (or 1): rounding grows with depth, and a wrong layer is far above it."""


@torch.no_grad()
def compute_largest_difference(expected: PreTrainedModel, model: PreTrainedModel, *, num_tokens: int = 64, seed: int = 0) -> float:
    """Compare both models' logits on random text: largest difference, relative to the largest logit or 1.

    Args:
        expected: The model that the other one was made from; the text is of its vocabulary.
        model: The other one, which may have more tokens.
        num_tokens: Of the text.
        seed: Of the text.
    """
    size = expected.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(size, (1, num_tokens), generator=generator)
    # Placeholders of images stand for features that are not given here.
    configs = (expected.config, model.config)
    special = [value for one in configs for key, value in one.to_dict().items() if key.endswith(("_token_id", "_token_index"))]
    usable = next(number for number in range(size) if number not in special)
    for value in special:
        ids[ids == value] = usable
    wanted, got = (one(input_ids=ids.to(one.device), use_cache=False).logits.float() for one in (expected, model))
    return float((got[..., : wanted.shape[-1]] - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))
