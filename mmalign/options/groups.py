"""Groups of answers that a policy samples in training, and what they are worth."""

from dataclasses import dataclass
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.judges import JudgeOptions
from mmalign.options.tokens import TokenOptions

REWARDS = {
    "answers": "1 where an answer is that of column answer, else 0",
    "objects:FOLDER": "objects named and there less those absent, by a folder in CHAIR's form",
    "judge": "a judge's rating from 1 to 10 by column reference",
    "model:DIR": "a reward model's, as train reward leaves it, or any multimodal LLM's",
    "function:FILE.py:NAME": "NAME(prompt, responses, row), a list of numbers",
}
"""How a reward is written, and what it is."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions(TokenOptions):
    """Answers that the policy samples at each step."""

    samples: int = 8
    """answers per prompt"""
    passes: int = 1
    """optimiser steps on each batch of answers, before new ones are sampled"""
    temperature: float = 1.0
    """of sampling"""
    max_new_tokens: int = 256
    """longest answer in tokens"""
    cut: Literal["keep", "drop"] = "keep"
    """answers that are cut at the longest length: keep them in their group, or leave them out"""

    def __post_init__(self) -> None:
        """Refuse groups of one, and what is no distribution."""
        super().__post_init__()
        self.refuse_below(2, "samples")
        self.refuse_below(1, "passes", "max_new_tokens")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class GroupRewardOptions(JudgeOptions):
    """What an answer is worth."""

    reward: str
    """answers, objects:FOLDER, judge, model:DIR or function:FILE.py:NAME; docs/online.md describes them"""
    correct: float | None = None
    """answers of this reward or more are right (1), others wrong (0); the rewards as they are if not given"""
    win_rates: bool = False
    """learn from the share of a group's other answers that each one beats by its reward (DNO), instead of the reward"""

    def __post_init__(self) -> None:
        """Refuse names of no reward, a judge without use, and shares of right and wrong."""
        super().__post_init__()
        kind, _, argument = self.reward.partition(":")
        forms = {form.partition(":")[0]: form for form in REWARDS}
        if kind not in forms or bool(argument) != (":" in forms[kind]):
            raise UserError(f"reward is {self.reward!r}; expected one of {', '.join(REWARDS)}")
        judges = [name for name in ("judge_url", "judge", "judge_prompt") if getattr(self, name) is not None]
        if kind != "judge" and judges:
            raise UserError(f"--{judges[0].replace('_', '-')} is for --reward judge; the reward is {self.reward}")
        if self.correct is not None and self.win_rates:
            raise UserError("--correct makes rewards right or wrong, and --win-rates makes shares of them; give one")
