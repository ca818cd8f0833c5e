"""Align and distil small multimodal LLMs: difficulty, preference training, distillation, hallucination evaluation.

What scores, trains and measures on the command line is a function here, imported when it is first asked for: see docs/python.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmalign.api import (
        evaluate,
        score_difficulty,
        train_classifier,
        train_contrastive,
        train_denoiser,
        train_image_preference,
        train_listwise,
        train_mimic,
        train_online,
        train_preference,
        train_reward,
        train_sft,
        upcycle,
    )

__version__ = "0.2.0"
__all__ = [
    "evaluate",
    "score_difficulty",
    "train_classifier",
    "train_contrastive",
    "train_denoiser",
    "train_image_preference",
    "train_listwise",
    "train_mimic",
    "train_online",
    "train_preference",
    "train_reward",
    "train_sft",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mmalign' has no attribute {name!r}")
    from mmalign.terminal import hold_back_messages

    hold_back_messages()
    from mmalign import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
