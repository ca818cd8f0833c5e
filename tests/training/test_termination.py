"""SIGTERM as a request: what counts as the same one, and what ends the process."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mmalign.training import termination
from mmalign.training.termination import TerminationCallback


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """The signals that came through to what was there before."""
    found: list[int] = []

    def note(number: int, frame: Any) -> None:
        found.append(number)

    before = signal.signal(signal.SIGTERM, note)
    yield found
    assert signal.getsignal(signal.SIGTERM) is note
    signal.signal(signal.SIGTERM, before)


def test_a_repeated_signal_is_the_same_request(ended: list[int]) -> None:
    """Slurm and ``timeout`` signal every process of a job, and a launcher passes its own on."""
    callback = TerminationCallback()
    with callback.listening():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert callback.asked
    assert ended == []


def test_a_later_signal_ends_the_process(ended: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    callback, now = TerminationCallback(), [100.0]
    monkeypatch.setattr(termination.time, "monotonic", lambda: now[0])
    with callback.listening():
        for now[0] in (100.0, 100.0 + termination.REPEAT_SECONDS, 100.1 + termination.REPEAT_SECONDS):
            assert ended == []
            signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM]
