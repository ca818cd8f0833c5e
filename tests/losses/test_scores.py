"""Token weights by hand, and links where they could break."""

import math

import pytest
import torch

from mmalign.losses.links import MAX_LOG_RATIO, alpha_divergence, clipped_log_ratio, forward_kl, jensen_shannon, log_odds
from mmalign.losses.scores import (
    MEAN,
    SUM,
    Logps,
    ScoredTokens,
    TokenWeighting,
    length_desensitized_weights,
    step_weights,
    suffix_weights,
)

F64 = torch.float64
# Two pairs: 2 and 4 tokens, 3 and 1.
TOKENS = ScoredTokens(torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 3]), 4, torch.tensor([5, 6, 5, 7, 6, 6, 1, 2, 3, 1]))
VALUES = -torch.arange(1.0, 11.0, dtype=F64)
LOGPS = Logps(TOKENS.sums(VALUES), VALUES)


def test_sum_and_mean() -> None:
    assert SUM(LOGPS, TOKENS).tolist() == [-3, -18, -24, -10]
    assert MEAN(LOGPS, TOKENS).tolist() == [-1.5, -4.5, -8, -10]
    assert TOKENS.positions().tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 0]


def test_a_response_without_tokens_scores_zero() -> None:
    tokens = ScoredTokens(torch.tensor([1]), 3, torch.tensor([4]))
    logps = Logps(tokens.sums(torch.tensor([-2.0])), torch.tensor([-2.0]))
    for score in (SUM, MEAN, TokenWeighting(lambda t: torch.ones(1), mean=True)):
        assert score(logps, tokens).tolist() == [0, -2, 0]


def test_tail_of_the_longer_response() -> None:
    assert length_desensitized_weights(TOKENS, tail_weight=0.25).tolist() == [1, 1, 1, 1, 0.25, 0.25, 1, 0.25, 0.25, 1]


def test_suffix_from_the_first_difference() -> None:
    """5 6 | 5 7 6 6 share one token, and a later equal one counts; 1 2 3 | 1: the shorter one is a prefix and has no suffix."""
    assert suffix_weights(TOKENS).tolist() == [0, 1, 0, 1, 1, 1, 0, 1, 1, 0]
    same = ScoredTokens(torch.tensor([0, 0, 1, 1]), 2, torch.tensor([3, 4, 3, 4]))
    assert suffix_weights(same).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="compares token ids"):
        suffix_weights(ScoredTokens(TOKENS.response, 4))


def test_mean_of_some_tokens_and_of_none() -> None:
    counted = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 0, 1])
    assert TokenWeighting(lambda tokens: counted, mean=True)(LOGPS, TOKENS).tolist() == [-1, -4.5, 0, -10]


def test_steps_count_by_weight_and_not_by_length() -> None:
    """Response 1 holds steps 1 (-3) and 2 (-4, -5, -6), weights 1 and 3: (1 * -3 + 3 * -5) / 4 = -4.5."""
    step = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 3, 4])
    score = TokenWeighting(step_weights(step, torch.tensor([1.0, 1.0, 3.0, 2.0, 1.0], dtype=F64)), mean=True)
    torch.testing.assert_close(score(LOGPS, TOKENS), torch.tensor([-1.5, -4.5, -8, -10], dtype=F64))


def test_links_by_hand() -> None:
    h = torch.tensor([0.8, -1.2], dtype=F64)
    torch.testing.assert_close(forward_kl(h), torch.tensor([-math.exp(-0.8), -math.exp(1.2)], dtype=F64))
    margins = [(jensen_shannon, 1.092181801390), (alpha_divergence(0.5), 2.303597508710), (forward_kl, 2.870787958619)]
    for link, margin in margins:
        assert (link(h)[0] - link(h)[1]).item() == pytest.approx(margin, abs=1e-9)
    torch.testing.assert_close(clipped_log_ratio(0.1)(h), torch.tensor([math.log(1.1), math.log(0.9)], dtype=F64))
    torch.testing.assert_close(log_odds(torch.tensor([-1.23, math.log(0.5)], dtype=F64)), torch.tensor([-0.884275483990, 0.0], dtype=F64))


@pytest.mark.parametrize("link", [forward_kl, jensen_shannon, alpha_divergence(0.5), alpha_divergence(1.0)])
def test_links_stay_finite_on_long_responses(link: object) -> None:
    """A ratio of e^-500 overflows float32; beyond the bound value and gradient stop."""
    h = torch.tensor([-500.0, 500.0], requires_grad=True)
    assert callable(link)
    out = link(h)
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()
    if link is forward_kl:
        assert out[0].item() == pytest.approx(-math.exp(MAX_LOG_RATIO), rel=1e-5)
        assert h.grad.tolist() == [0, 0]


def test_log_odds_of_a_sure_response_are_finite() -> None:
    q = torch.tensor([0.0, -1e-9, -1e-3, -40.0], requires_grad=True)
    out = log_odds(q)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()
    assert out[2].item() == pytest.approx(math.log(math.exp(-1e-3) / (1 - math.exp(-1e-3))), abs=1e-3)


def test_link_parameters_outside_their_range() -> None:
    for value in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=rf"divergence_coefficient is {value}"):
            alpha_divergence(value)
        with pytest.raises(ValueError, match=rf"clip_range is {value}"):
            clipped_log_ratio(value)
