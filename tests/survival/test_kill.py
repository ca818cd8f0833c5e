"""kill -9 at random moments: the same command goes on, and ends with the undisturbed run's weights, logs and metrics, bit for bit."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.survival.child import kill, run_command, start_command, wait
from tests.survival.commands import CASES, Inputs, make_inputs

TRIALS = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


class Undisturbed:
    """What each command ends with when nothing happens to it, and how long it takes; run once each."""

    def __init__(self, inputs: Inputs, folder: Path) -> None:
        self.inputs, self.folder = inputs, folder
        self.held: dict[str, tuple[Any, float]] = {}

    def __getitem__(self, name: str) -> tuple[Any, float]:
        if name not in self.held:
            # One folder for all runs of a command: its name stands in what it writes.
            out, begin = self.folder / name.replace(" ", "-") / "out", time.monotonic()
            out.parent.mkdir()
            log = out.parent / "log"
            assert run_command(CASES[name].words(self.inputs, out), log=log) == 0, log.read_text()
            self.held[name] = CASES[name].read(out), time.monotonic() - begin
        return self.held[name]


@pytest.fixture(scope="module")
def undisturbed(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(inputs, tmp_path_factory.mktemp("undisturbed"))


def check_trial(name: str, seed: int, *, inputs: Inputs, undisturbed: Undisturbed, folder: Path) -> int:
    """Kill a command once or several times, let it end, and compare.

    Returns:
        How many of the kills came before its end.
    """
    expected, seconds = undisturbed[name]
    rng, out, log = random.Random(f"{name} {seed}"), folder / "out", folder / "log"
    words, hits = CASES[name].words(inputs, out), 0
    for _ in range(rng.choice((1, 1, 2, 3))):
        process = start_command(words, log=log)
        time.sleep(rng.uniform(0.0, seconds))
        kill(process)
        hits += wait(process) < 0
    assert run_command(words, log=log) == 0, f"{name}, seed {seed}: {log.read_text()[-3000:]}"
    assert CASES[name].read(out) == expected, f"{name}, seed {seed}: the end differs from the undisturbed run's"
    return hits


ONCE = (
    "train preference",
    "train preference, pictures",
    "train online, two passes",
    "classifier distill-images",
    "score-difficulty",
    "evaluate",
)


@pytest.mark.parametrize("name", ONCE)
def test_one_kill(name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path) -> None:
    check_trial(name, 0, inputs=inputs, undisturbed=undisturbed, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 1 + TRIALS // len(CASES)))
@pytest.mark.parametrize("name", list(CASES))
def test_kills_at_random_moments(name: str, seed: int, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path) -> None:
    check_trial(name, seed, inputs=inputs, undisturbed=undisturbed, folder=tmp_path)
