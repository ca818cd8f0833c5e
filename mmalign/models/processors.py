"""Whether a processor fits its model, and what it lacks."""

import json
from pathlib import Path
from typing import Any

from mmalign.errors import UserError

# Fields of processors that are None unless processor_config.json says more.
_TOKEN_COUNTS = ("patch_size", "num_image_tokens", "num_query_tokens")


def give_padding(tokenizer: Any) -> None:
    """Let a tokenizer without a token for padding pad with one that it has; padding is masked, whichever it is.

    Raises:
        ValueError: If it has none for that.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError("the tokenizer has no pad_token, no unk_token and no eos_token; name one in its tokenizer_config.json")


def check_processor(processor: Any, source: str, config: Any) -> None:
    """Check that a processor fits its model, which fails at the first image otherwise.

    Older checkpoints don't say how many tokens an image takes. A config may be of another vocabulary than the tokenizer beside it.

    Args:
        processor: Of a multimodal LLM.
        source: Where it comes from.
        config: The model's, which has the values.

    Raises:
        ValueError: With the fields, and what to write where.
    """
    _check_image_place(processor, source, config)
    missing = [name for name in _TOKEN_COUNTS if getattr(processor, name, 0) is None]
    if not missing:
        return
    vision = getattr(config, "vision_config", None)
    patch, side = (getattr(vision, name, None) for name in ("patch_size", "image_size"))
    known: dict[str, Any] = {"patch_size": patch}
    if isinstance(patch, int) and isinstance(side, int):
        known["num_image_tokens"] = (side // patch) ** 2
    values = {name: known.get(name) for name in missing}
    if hasattr(processor, "vision_feature_select_strategy"):
        values["vision_feature_select_strategy"] = getattr(config, "vision_feature_select_strategy", "default")
    if hasattr(processor, "num_additional_image_tokens"):
        # CLIP's class token; SigLIP has none.
        values["num_additional_image_tokens"] = int(getattr(vision, "model_type", "") == "clip_vision_model")
    raise UserError(
        f"the processor of {source} has no {' and no '.join(missing)}, by which it counts an image's tokens; write into "
        f"{Path(source) / 'processor_config.json'}, as the model's config says: {json.dumps(values)[1:-1]}"
    )


def _check_image_place(processor: Any, source: str, config: Any) -> None:
    place, tokenizer = getattr(config, "image_token_id", None), getattr(processor, "tokenizer", None)
    # Families mark the place by tokens of many names, but by no word of theirs.
    if not isinstance(place, int) or tokenizer is None or place in tokenizer.added_tokens_decoder:
        return
    if place in (getattr(processor, "image_token_ids", None) or ()):
        return
    word, written = tokenizer.convert_ids_to_tokens(place), getattr(processor, "image_token", None)
    own = f"; its processor writes {written!r}, token {tokenizer.convert_tokens_to_ids(written)}" if written else ""
    raise UserError(
        f"the model's config takes token {place} for the place of an image, which is {word!r} to the tokenizer of {source}{own}: they are "
        "of different checkpoints; bring the model's own processor files, or set image_token_id in config.json"
    )
