"""A teacher as the reference of preference training: rewards that don't begin at 0, and what tames them."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.losses.pair_kernel import PairValues, compute_rewards, objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.preference_metrics import describe_start
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from tests.tiny_models import build_tiny_llava, pair_rows

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = [{**row, "pair_beta_scale": 1.0, "pair_weight": 1.0} for row in pair_rows(5)]


def build(**options: Any) -> tuple[Any, PreferenceMethod]:
    policy, processor = build_tiny_llava(scale=2.0)
    teacher, _ = build_tiny_llava(scale=2.2, seed=1)
    config = PairLossOptions(**options)
    return policy, PreferenceMethod(processor, config, reference=Reference(policy, kind="copy", model=teacher))


def test_rewards_before_training_are_told_by_hand() -> None:
    rewards = PairValues(torch.tensor([10.0, -50.0]), torch.tensor([-40.0, -40.0]))
    (line,) = describe_start(PAIR_OBJECTIVES.build("dpo", beta=0.1), rewards)
    # Margins 5 and -1.
    assert line.startswith("rewards before the first step, on 2 pairs: chosen -2.00, rejected -4.00, margin 2.00; in 50% of them")
    zero = PairValues(torch.zeros(2), torch.zeros(2))
    assert describe_start(PAIR_OBJECTIVES.build("dpo"), zero) == []


@pytest.mark.parametrize("objective", ["dpo", "kto_pair", "kto_pair:score=mean", "dpo:score=mean"])
def test_centred_rewards_begin_with_a_mean_of_zero(objective: str) -> None:
    policy, method = build(objective=[objective], center_rewards=True)
    _, plain = build(objective=[objective])
    told = method.start(policy, ROWS)
    metrics = plain.compute(policy, plain.collate(ROWS)).metrics
    means = {side: float(metrics[f"rewards/{side}"].total) / 5 for side in ("chosen", "rejected")}
    assert f"chosen {means['chosen']:.2f}, rejected {means['rejected']:.2f}" in told
    center = method._centers[method.objectives[0].name]
    assert [0.1 * value for value in center] == pytest.approx(list(means.values()), abs=1e-4)
    with torch.no_grad():
        pairs = plain.read_pairs(policy, plain.collate(ROWS))
        objective = plain.objectives[0].objective
        rewards = compute_rewards(objective, pairs)
        moved = PairValues(rewards.chosen - center[0], rewards.rejected - center[1])
        expected = objective_loss(objective, pairs, rewards=moved).sum()
    assert method.compute(policy, method.collate(ROWS)).loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - plain.compute(policy, plain.collate(ROWS)).loss_sum.item()) > 1e-6


def test_subtracting_each_pairs_own_first_margin_is_plain_dpo() -> None:
    """The teacher cancels: what remains is the policy against itself before training. So there is no such option."""
    policy, method = build()
    own = Reference(policy, kind="copy")
    batch = method.collate(ROWS)
    with torch.no_grad():
        before = method.read_pairs(policy, batch)
        for parameter in policy.parameters():
            parameter.mul_(1.01)
        after = method.read_pairs(policy, batch)
        first, now = (pairs.policy.sums - pairs.reference.sums for pairs in (before, after))  # type: ignore[union-attr]
        shifted = (now[0::2] - now[1::2]) - (first[0::2] - first[1::2])
        plain = PreferenceMethod(method.processor, PairLossOptions(), reference=own).read_pairs(policy, batch)
        margin = plain.policy.sums - plain.reference.sums  # type: ignore[union-attr]
    assert shifted.abs().max() > 1e-2
    torch.testing.assert_close(shifted, margin[0::2] - margin[1::2], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_two_processes_share_means_over_the_batch() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m"]
    done = subprocess.run(
        [*command, "tests.methods.two_batch_means"], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("loss and gradients equal") == 3, done.stdout
