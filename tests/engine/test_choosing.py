"""The next token: the hash by its published values, the distribution by its frequencies, what may be drawn by hand."""

import pytest
import torch
from torch import Tensor

from mmalign.engine.choosing import Among, Greedy, Sampling, answer_seeds, fold_in

LOGITS = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
NUM_DRAWS = 100_000


def unsigned(value: Tensor) -> int:
    return int(value) % 2**64


def test_the_hash_is_splitmix64() -> None:
    """The generator's first three numbers from state 0, as its authors' code gives them (the state grows by the golden ratio)."""
    zero = torch.tensor(0)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [unsigned(fold_in(zero, number)) for number in range(3)] == expected
    assert [unsigned(seed) for seed in fold_in(zero, torch.arange(3))] == expected


def test_answers_have_seeds_of_their_own() -> None:
    seeds = answer_seeds(torch.tensor([7, 8]), 3)
    assert torch.equal(seeds[:3], answer_seeds(torch.tensor([7]), 3))
    assert torch.equal(seeds[::3], answer_seeds(torch.tensor([7, 8]), 1)), "more answers change none"
    assert len(set(seeds.tolist())) == 6


def frequencies(sampling: Sampling, logits: Tensor = LOGITS, *, step: int = 0) -> Tensor:
    tokens = sampling.choose(logits.expand(NUM_DRAWS, -1), torch.arange(NUM_DRAWS), step)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / NUM_DRAWS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.2, 0.15, 0.1, 0.05]),
        # Squares, divided by their sum of 0.325.
        ({"temperature": 0.5}, [0.25 / 0.325, 0.04 / 0.325, 0.0225 / 0.325, 0.01 / 0.325, 0.0025 / 0.325]),
        ({"top_k": 2}, [0.5 / 0.7, 0.2 / 0.7, 0, 0, 0]),
        # 0.5 + 0.2 are not enough.
        ({"top_p": 0.8}, [0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        # Of the three likeliest, 0.5 / 0.85 = 0.59 is enough for 0.55, though not of all.
        ({"top_k": 3, "top_p": 0.55}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.55}, [0.5 / 0.7, 0.2 / 0.7, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("step", [0, 5])
def test_tokens_are_as_frequent_as_they_are_likely(options: dict[str, float], expected: list[float], step: int) -> None:
    got = frequencies(Sampling(**options), step=step)  # type: ignore[arg-type]
    # Four standard deviations of the most uncertain frequency.
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=4 * 0.5 / NUM_DRAWS**0.5)
    assert not got[torch.tensor(expected) == 0].any()


def test_barred_tokens_are_never_drawn() -> None:
    """Of five tokens the first four without the second: 0.5, 0.15 and 0.1 of 0.75. An id behind the last one is no one's."""
    tokens = Among(Sampling(answers=3), 4, (1, 4)).choose(LOGITS.expand(NUM_DRAWS, -1), torch.arange(NUM_DRAWS), 0)
    expected = torch.tensor([0.5 / 0.75, 0, 0.15 / 0.75, 0.1 / 0.75, 0])
    got = torch.bincount(tokens, minlength=5) / NUM_DRAWS
    torch.testing.assert_close(got, expected, rtol=0, atol=4 * 0.5 / NUM_DRAWS**0.5)
    assert not got[expected == 0].any()
    assert Among(Sampling(answers=3), 4).answers == 3
    assert torch.equal(LOGITS, torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()), "the model's logits stay"


def test_steps_and_tokens_draw_independently() -> None:
    """Of two fair tosses, each of the four outcomes comes up a quarter of the time."""
    seeds, even = torch.arange(NUM_DRAWS), torch.zeros(NUM_DRAWS, 2)
    first, second = (Sampling().choose(even, seeds, step) for step in (0, 1))
    got = torch.bincount(2 * first + second, minlength=4) / NUM_DRAWS
    torch.testing.assert_close(got, torch.full((4,), 0.25), rtol=0, atol=4 * 0.5 / NUM_DRAWS**0.5)


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    torch.manual_seed(0)
    logits, seeds = 3 * torch.randn(16, 3000), torch.arange(16) * 1000
    for sampling in (Sampling(), Sampling(top_p=0.9), Sampling(top_k=50, temperature=2.0)):
        together = sampling.choose(logits, seeds, 4)
        assert torch.cat([sampling.choose(logits[i, None], seeds[i, None], 4) for i in range(16)]).tolist() == together.tolist()
        assert together.flip(0).tolist() == sampling.choose(logits.flip(0), seeds.flip(0), 4).tolist()


def test_flat_distributions_are_cut_in_the_whole_vocabulary() -> None:
    """The 1024 likeliest of 5000 don't reach 0.9: the same tokens may be drawn as where all are sorted by hand."""
    torch.manual_seed(0)
    logits = torch.randn(5000) / 10
    shares, order = logits.softmax(-1).sort(descending=True)
    allowed = set(order[: int((shares.cumsum(0) < 0.9).sum()) + 1].tolist())
    assert len(allowed) > 1024
    drawn = Sampling(top_p=0.9).choose(logits.expand(4000, -1), torch.arange(4000), 0).tolist()
    assert set(drawn) <= allowed
    assert set(drawn) - set(order[:1024].tolist())


def test_equally_likely_tokens_are_kept_together() -> None:
    got = frequencies(Sampling(top_k=1), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=4 * 0.5 / NUM_DRAWS**0.5)


def test_greedy_is_the_likeliest() -> None:
    assert Greedy().choose(torch.stack([LOGITS, LOGITS.flip(0)]), torch.zeros(2, dtype=torch.long), 0).tolist() == [0, 4]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"temperature": float("nan")}])
def test_what_is_no_distribution_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a temperature above 0, top_p above 0 and at most 1"):
        Sampling(**options)  # type: ignore[arg-type]
