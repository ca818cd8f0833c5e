"""A task's settings of lmms-eval in the words of the sampler."""

from collections.abc import Mapping
from typing import Any

from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Decoding, Greedy, Sampling
from mmalign.errors import UserError

# Those of stock generate, where neither the task nor the checkpoint names them.
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}


def choose_decoding(settings: Mapping[str, Any], checkpoint: Any) -> Decoding | Beams:
    """Read how a task decodes; what it doesn't name is the checkpoint's. A temperature of 0 means greedy.

    Args:
        settings: A task's ``generation_kwargs``.
        checkpoint: The model's generation config.

    Raises:
        ValueError: If a task samples with beams.
    """
    beams = settings.get("num_beams") or 1
    samples = bool(settings.get("do_sample")) and settings.get("temperature") != 0
    if samples and beams > 1:
        raise UserError(f"the task samples and has num_beams {beams}; expected one of both: set num_beams to 1 or do_sample to false")
    if samples:
        own = {name: getattr(checkpoint, name, None) for name in _SAMPLING}
        values = [_first(settings.get(name), own[name], default) for name, default in _SAMPLING.items()]
        return Sampling(*values)
    penalty = _first(settings.get("length_penalty"), getattr(checkpoint, "length_penalty", None), 1.0)
    return Beams(beams, penalty) if beams > 1 else Greedy()


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
