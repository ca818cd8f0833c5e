"""Rewards by name: a new one is a class with the methods of ``Reward``, a function here, and a line of ``options/groups.py``."""

from collections.abc import Callable
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.judges.choice import choose_judge
from mmalign.evaluation.rows import read_text
from mmalign.options.groups import GroupRewardOptions
from mmalign.rewards.exact import AnswerReward, ObjectReward
from mmalign.rewards.function import FunctionReward
from mmalign.rewards.groups import Reward
from mmalign.rewards.learned import ModelReward
from mmalign.rewards.rating import JudgeReward


def build_reward(options: GroupRewardOptions, *, folder: Path) -> Reward:
    """Build the reward that the options name.

    Args:
        options: The reward, and its judge.
        folder: The run's own: a judge's replies are kept there.

    Raises:
        ValueError: If its parts are missing.
    """
    kind, _, argument = options.reward.partition(":")
    return _BUILDERS[kind](argument, options, folder)


def _build_judge(argument: str, options: GroupRewardOptions, folder: Path) -> Reward:
    judge = choose_judge(options, cache=folder / "judge_cache.jsonl")
    if judge is None:
        raise UserError("--reward judge needs a judge: --judge-url with --judge-model, or --judge")
    return JudgeReward(judge, None if options.judge_prompt is None else read_text(options.judge_prompt))


_BUILDERS: dict[str, Callable[[str, GroupRewardOptions, Path], Reward]] = {
    "answers": lambda argument, options, folder: AnswerReward(),
    "objects": lambda argument, options, folder: ObjectReward(Path(argument)),
    "judge": _build_judge,
    "model": lambda argument, options, folder: ModelReward(argument),
    "function": lambda argument, options, folder: FunctionReward(argument),
}
