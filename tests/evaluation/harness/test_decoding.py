"""A task's settings: which of them decide, and what holds where a task says nothing."""

from typing import Any

import pytest
from transformers import GenerationConfig

from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Greedy, Sampling
from mmalign.evaluation.harness.decoding import choose_decoding


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Greedy()),
        ({"temperature": 0.7, "top_p": 0.9, "num_beams": 1}, Greedy()),
        ({"do_sample": True, "temperature": 0, "top_p": None}, Greedy()),
        ({"do_sample": True}, Sampling(1.0, 0.8, 50)),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, Sampling(0.7, 0.9, 5)),
        ({"num_beams": 3}, Beams(3, 1.0)),
        ({"num_beams": 3, "length_penalty": 0.0, "do_sample": False}, Beams(3, 0.0)),
    ],
)
def test_settings_decide(settings: dict[str, Any], expected: Any) -> None:
    assert choose_decoding(settings, GenerationConfig(top_p=0.8, do_sample=True)) == expected


def test_sampling_with_beams_is_refused() -> None:
    with pytest.raises(ValueError, match="the task samples and has num_beams 3"):
        choose_decoding({"do_sample": True, "num_beams": 3}, GenerationConfig())
