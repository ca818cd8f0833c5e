"""Prompts packed into rows: each once, no row longer than asked, and as little padding as there can be."""

import random

import pytest

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import PADDING, collate_prompts


def prompts(lengths: list[int]) -> list[EncodedPrompt]:
    """Prompts of these lengths with a response of one token each."""
    return [EncodedPrompt([1] * (length - 1), [[2]], [[True]], {}, {}) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "row_tokens", "shape"),
    [
        # 8 + 3, 6 + 5, 4 + 7: rows of 11 tokens, padded to 16.
        ([8, 7, 6, 5, 4, 3], 12, (3, 16)),
        # The longest is longer than a row may be, and the others fit beside each other.
        ([40, 20, 20, 10, 30], 16, (3, 40)),
        ([8, 8, 8, 8], 8, (4, 8)),
        ([8, 8, 8, 8], 1000, (1, 32)),
    ],
)
def test_rows_are_filled(lengths: list[int], row_tokens: int, shape: tuple[int, int]) -> None:
    assert tuple(collate_prompts(prompts(lengths), pad_token_id=0, row_tokens=row_tokens)["input_ids"].shape) == shape


def test_every_prompt_has_one_place_and_no_row_is_too_long() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(2, 60) for _ in range(rng.randint(1, 24))]
        row_tokens = rng.choice([1, 40, 64, 200])
        batch = collate_prompts(prompts(lengths), pad_token_id=0, row_tokens=row_tokens)
        prompt, segment = batch["layout"]["prompt"], batch["layout"]["segment"]
        for number, length in enumerate(lengths):
            places = (prompt == number).nonzero()
            assert len(places) == length
            assert len(set(places[:, 0].tolist())) == 1
        assert int((segment != PADDING).sum(1).max()) <= max(row_tokens, *lengths)
