"""Displacement, information, credit, separability and layers, by hand and against second derivations."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.data.token_texts import token_texts
from mmalign.diagnostics.credit import token_credits
from mmalign.diagnostics.displacement import measure_movement, per_token
from mmalign.diagnostics.information import information_entropy
from mmalign.diagnostics.layers import fisher_rao, spectral_exponent
from mmalign.diagnostics.search import describe_answers
from mmalign.diagnostics.separability import probe_pairs, surface_features
from mmalign.engine.generation import Generated
from tests.tiny_models import build_tokenizer

F64 = torch.float64


def test_movement_by_hand() -> None:
    """Log-ratios (0.8, -1.2), (-2, -6): one chosen fell, both rejected, and -6 over 4 tokens is a drop of 1.5 nats a token."""
    start = torch.tensor([[-13.1, -14.0], [-3.0, -4.0]], dtype=F64)
    policy = torch.tensor([[-12.3, -15.2], [-5.0, -10.0]], dtype=F64)
    lengths = torch.tensor([[10, 14], [2, 4]])
    moved = measure_movement(policy, start, lengths)
    assert (moved.num_pairs, moved.degraded, moved.rejected_below, moved.dropped) == (2, 0.5, 1.0, 0.5)
    assert moved.chosen == pytest.approx((0.8 - 2) / 2)
    assert moved.rejected == pytest.approx((-1.2 - 6) / 2)
    assert moved.chosen_per_token == pytest.approx((0.08 - 1) / 2)
    assert moved.rejected_per_token == pytest.approx((-1.2 / 14 - 1.5) / 2)
    assert moved.log_gradient_ratio_start == pytest.approx((0.9 + 1.0) / 2)
    assert moved.log_gradient_ratio == pytest.approx((2.9 + 5.0) / 2)
    torch.testing.assert_close(per_token(policy, start, lengths)[1], torch.tensor([-1.0, -1.5], dtype=F64))
    with pytest.raises(ValueError, match=r"\(2, 2\), \(1, 2\)"):
        measure_movement(policy, start[:1], lengths)


def test_the_gradient_ratio_is_that_of_dpo_by_probability() -> None:
    """Differentiate DPO by the two probabilities themselves."""
    p = torch.tensor([[0.3, 0.02]], dtype=F64, requires_grad=True)
    start = torch.tensor([[0.2, 0.1]], dtype=F64).log()
    h = p.log() - start
    (gradient,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(0.1 * (h[:, 0] - h[:, 1])).sum(), p)
    moved = measure_movement(p.detach().log(), start, torch.ones(1, 2))
    assert math.exp(moved.log_gradient_ratio) == pytest.approx(float(gradient[0, 1].abs() / gradient[0, 0].abs()))


def test_differential_information_by_hand() -> None:
    """With ref = (.5, .3, .2), pi = (.6, .3, .1): q = (12, 10, 5) / 27 and its entropy 1.040580559 nats."""
    ref, pi = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    q = [12 / 27, 10 / 27, 5 / 27]
    assert information_entropy(pi.log() - ref.log()).item() == pytest.approx(1.040580559, abs=1e-9)
    assert information_entropy(pi.log() - ref.log()).item() == pytest.approx(-sum(x * math.log(x) for x in q), abs=1e-12)


def test_entropy_does_not_see_constants_and_is_highest_for_equals() -> None:
    torch.manual_seed(0)
    ratio = 5 * torch.randn(4, 7, dtype=F64)
    torch.testing.assert_close(information_entropy(ratio + 3), information_entropy(ratio))
    torch.testing.assert_close(information_entropy(torch.zeros(2, 7)), torch.full((2,), math.log(7), dtype=F64))
    assert information_entropy(torch.tensor([0.0, -2000.0])).item() == 0.0


def test_credits_by_hand_add_up_to_the_reward() -> None:
    policy, reference = torch.tensor([-1.0, -2.5, -8.8], dtype=F64), torch.tensor([-1.4, -2.2, -9.5], dtype=F64)
    credits = token_credits(policy, reference, beta=0.1)
    torch.testing.assert_close(credits, torch.tensor([0.04, -0.03, 0.07], dtype=F64))
    assert credits.sum().item() == pytest.approx(0.1 * (policy.sum() - reference.sum()).item(), abs=1e-12)
    with pytest.raises(ValueError, match="3 tokens under the policy and 2"):
        token_credits(policy, reference[:2], beta=0.1)


@pytest.mark.parametrize("text", ["there is a red circle", "naïve 猫 <b>&amp;", "  two  spaces", "日本語"])
def test_pieces_join_to_the_text(text: str) -> None:
    """Bytes of one character lie in several tokens of this tokenizer: none is shown broken."""
    tokenizer = build_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert not any("\ufffd" in piece for piece in pieces)


def probe_by_scipy(features: Tensor) -> tuple[Tensor, float]:
    from scipy.optimize import minimize

    rows, sign = features.flatten(0, 1).numpy(), torch.tensor([1.0, -1.0]).repeat(len(features)).numpy()

    def loss(w: "object") -> float:
        z = torch.tensor(sign * (rows @ w[:-1] + w[-1]))  # type: ignore[index]
        return float(torch.nn.functional.softplus(-z).sum()) + 0.5 * float((w[:-1] ** 2).sum())  # type: ignore[index]

    best = minimize(loss, [0.0] * (rows.shape[1] + 1), method="Powell", options={"xtol": 1e-10, "ftol": 1e-14, "maxiter": 10000})
    return torch.tensor(best.x), best.fun


def test_the_probe_finds_the_minimum() -> None:
    pytest.importorskip("scipy")
    from mmalign.diagnostics.separability import _fit

    torch.manual_seed(0)
    features = torch.randn(30, 2, 2, dtype=F64)
    features[:, 0, 0] += 0.7
    expected, _ = probe_by_scipy(features)
    weight, bias = _fit(features)
    torch.testing.assert_close(torch.cat([weight, bias[None]]), expected, rtol=0, atol=1e-4)


def test_the_probe_tells_what_can_be_told() -> None:
    torch.manual_seed(0)
    noise = torch.randn(80, 2, 5)
    told = noise.clone()
    told[:, 0, 2] += 9
    assert probe_pairs(told, seed=0).accuracy == 1.0
    guessed = probe_pairs(noise, seed=0)
    assert guessed.low < 0.5 < guessed.high
    # Equal features are a toss-up, also where the bias is not quite zero.
    assert probe_pairs(torch.ones(10, 2, 1), seed=0).accuracy == 0.5
    with pytest.raises(ValueError, match="3 pairs for 5 folds"):
        probe_pairs(noise[:3], seed=0)


def test_pairs_are_not_split_over_folds() -> None:
    """Both responses carry their pair's own mark: a probe that saw one of them would know the other's label by exclusion."""
    marks = torch.eye(40)[:, None, :].repeat(1, 2, 1)
    assert probe_pairs(marks, seed=1).accuracy == pytest.approx(0.5)


def test_surface_features_by_hand() -> None:
    found = surface_features([("a, b.", "c"), ("d!", "e?!")], torch.tensor([[5, 1], [2, 3]]), torch.tensor([[7, 9], [7, 7]]))
    assert found["length"].squeeze(-1).tolist() == [[5, 1], [2, 3]]
    assert found["first token"].tolist() == [[[1, 0], [0, 1]], [[1, 0], [1, 0]]]
    assert found["punctuation"].sum(-1).tolist() == [[2, 0], [1, 2]]


def test_spinal_by_hand() -> None:
    rank = torch.arange(1, 65, dtype=F64)
    assert spectral_exponent(rank**-1.5) == pytest.approx(1.5, abs=1e-9)
    assert spectral_exponent(3 * rank**-0.4) == pytest.approx(0.4, abs=1e-9)
    one_hot, uniform = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    assert fisher_rao(one_hot, uniform).item() == pytest.approx(2.094395102, abs=1e-9)
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=F64), torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    assert fisher_rao(p, q).item() == pytest.approx(0.236390930, abs=1e-9)
    assert fisher_rao(q, q).item() == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="2 singular values to fit"):
        spectral_exponent(torch.tensor([1.0, 0.5]))


def test_rewards_of_searches_by_hand() -> None:
    """Greedy says a c, two beams b c; p(a) .6, then c .4; p(b) .4, then c .9; the reference is uniform over two words."""
    start = torch.tensor([2 * math.log(0.5)], dtype=torch.float64)
    for chances, reward in (((0.6, 0.4), -0.004082199452), ((0.4, 0.9), 0.036464311359)):
        policy = torch.tensor([math.log(chances[0] * chances[1])], dtype=torch.float64)
        answer = Generated([1, 2], None, [math.log(chance) for chance in chances])
        told = describe_answers([answer], policy, start, beta=0.1)
        assert told["reward"] == pytest.approx(reward, abs=1e-12)
        assert (told["tokens"], told["cut"]) == (2.0, 1.0)
