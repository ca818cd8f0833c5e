"""Answers that several optimiser steps learn from: held from the step that samples them to the last one, and in every checkpoint between.

Shape legend: K = scored tokens of a micro-batch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from mmalign.engine.generation import Generated
from mmalign.files import read_json_object, write_whole
from mmalign.rewards.groups import Rewards

ANSWERS_FILE = "answers.json"


@dataclass
class Held:
    """What was said to the questions of a micro-batch."""

    answers: list[list[Generated]]
    rewards: list[Rewards]
    old: Tensor | None = None
    """(K,) log-probabilities under the policy that sampled, in the order of the batch; known once it has been trained on."""


class HeldAnswers:
    """The micro-batches of the steps that share their answers, each known by the seeds of its rows."""

    def __init__(self, passes: int) -> None:
        """Hold answers for so many steps."""
        self.passes = passes
        self.first = -1
        """The step that sampled."""
        self.batches: dict[str, Held] = {}

    def begin(self, step: int) -> int:
        """Forget what steps before this one's first pass were answered; return the step of that pass."""
        first = step - step % self.passes
        if first != self.first:
            self.first, self.batches = first, {}
        return first

    def find(self, seeds: Sequence[int]) -> Held | None:
        """What was said to these rows, if they were asked before."""
        return self.batches.get(_name(seeds))

    def keep(self, seeds: Sequence[int], held: Held) -> Held:
        """Hold it, and return it."""
        self.batches[_name(seeds)] = held
        return held


def _name(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))


class HeldAnswersCallback(TrainerCallback):
    """Writes the answers that are held into every checkpoint, and reads them where training resumes.

    Stands before ``ManifestCallback``, so that a checkpoint's manifest counts its file.
    """

    def __init__(self, held: HeldAnswers, *, checkpoint: Path | None) -> None:
        """Take what is held, and the checkpoint that training resumes from."""
        self.held, self.checkpoint = held, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start with nothing, or with the checkpoint's answers."""
        if self.checkpoint is not None:
            read = read_json_object(self.checkpoint / ANSWERS_FILE)
            self.held.first = read["first"]
            self.held.batches = {name: _read_held(one) for name, one in read["batches"].items()}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write those of all processes."""
        own = {name: _plain_held(one) for name, one in self.held.batches.items()}
        every = {name: one for batches in gather_object([own]) for name, one in batches.items()}
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_whole(folder / ANSWERS_FILE, json.dumps({"first": self.held.first, "batches": every}))


def _plain_held(held: Held) -> dict[str, Any]:
    """As JSON, which keeps every bit of a float32."""
    answers = [[asdict(answer) for answer in group] for group in held.answers]
    return {"answers": answers, "rewards": held.rewards, "old": None if held.old is None else held.old.tolist()}


def _read_held(plain: dict[str, Any]) -> Held:
    answers = [[Generated(**answer) for answer in group] for group in plain["answers"]]
    return Held(answers, plain["rewards"], None if plain["old"] is None else torch.tensor(plain["old"], dtype=torch.float32))
