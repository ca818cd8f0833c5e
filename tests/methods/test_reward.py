"""Training a reward model: the loss from plain forwards, pairs as lists of two, layouts, metrics by hand, an adapter, learning."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.data.rows import read_list, read_pair
from mmalign.errors import UserError
from mmalign.methods.reward import RewardMethod
from mmalign.models.adapters import add_lora
from mmalign.options.methods import RewardLossOptions
from mmalign.options.training import LoraOptions
from tests.engine.test_rewards import plain_reward
from tests.losses.test_bradley_terry import expected
from tests.tiny_models import build_tiny_llava, list_rows, pair_rows

QUESTION = "is there a dog yes or no"


def method_for(processor: Any, **options: Any) -> RewardMethod:
    return RewardMethod(processor, RewardLossOptions(question=QUESTION, **options))


def loss_of(method: RewardMethod, model: nn.Module, rows: list[dict[str, Any]]) -> float:
    with torch.no_grad():
        return method.compute(model, method.collate(rows)).loss_sum.item()


@pytest.mark.parametrize(("margin", "centering"), [(0.0, 0.0), (0.5, 0.05)])
def test_losses_from_plain_forwards(margin: float, centering: float) -> None:
    model, processor = build_tiny_llava(scale=1.5)
    pairs, lists = pair_rows(3), list_rows([3, 2])
    by_pair = [read_pair(row, index=0) for row in pairs]
    by_list = [read_list(row, index=0) for row in lists]
    wording = method_for(processor).prompts.wording
    of_pairs = [
        ([plain_reward(model, processor, row, text, wording) for text in (row.chosen, row.rejected)], [1.0, 0.0]) for row in by_pair
    ]
    of_lists = [([plain_reward(model, processor, row, text, wording) for text in row.responses], row.scores) for row in by_list]
    for rows, found, own in ((pairs, of_pairs, {}), (lists, of_lists, {"lists": True})):
        method = method_for(processor, margin=margin, centering=centering, **own)
        for index, row in enumerate(rows):
            method.check(row, index=index)
        total = sum(expected(rewards, scores, margin, centering) for rewards, scores in found)
        assert loss_of(method, model, rows) == pytest.approx(total, abs=5e-5)
        assert method.num_items(method.collate(rows)) == len(rows)


def test_a_pair_is_a_list_of_two_and_plain_rows_have_the_same_loss() -> None:
    model, processor = build_tiny_llava(scale=1.5)
    pairs = pair_rows(4)
    lists = [
        {**{key: row[key] for key in ("id", "images", "prompt")}, "responses": [row["rejected"], row["chosen"]], "scores": [-3, 5]}
        for row in pairs
    ]
    of_pairs = loss_of(method_for(processor), model, pairs)
    assert loss_of(method_for(processor, lists=True), model, lists) == pytest.approx(of_pairs, abs=1e-5)
    plain = method_for(processor)
    plain.shared = False
    assert loss_of(plain, model, pairs) == pytest.approx(of_pairs, abs=5e-5)


def test_metrics_by_hand() -> None:
    model, processor = build_tiny_llava(scale=1.5)
    rows = pair_rows(5)
    method = method_for(processor)
    pairs = [read_pair(row, index=0) for row in rows]
    found = [[plain_reward(model, processor, row, text, method.prompts.wording) for text in (row.chosen, row.rejected)] for row in pairs]
    metrics = method.compute(model, method.collate(rows)).metrics
    means = {name: float(value.total) / float(value.count) for name, value in metrics.items()}
    right = sum(chosen > rejected for chosen, rejected in found) / 5
    assert means == pytest.approx(
        {
            "rewards/margin": sum(chosen - rejected for chosen, rejected in found) / 5,
            "rewards/accuracy": right,
            "rewards/top1": right,
            "rewards/mean": sum(map(sum, found)) / 10,
        },
        abs=1e-4,
    )


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_to_prefer(lora: bool) -> None:
    model, processor = build_tiny_llava(scale=1.5)
    model = copy.deepcopy(model)
    policy: nn.Module = add_lora(model, LoraOptions(lora_rank=4)) if lora else model
    rows = pair_rows(6)
    method = method_for(processor)
    assert "responses share their prompt's row" in method.start(policy, rows)
    batch = method.collate(rows)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2 if lora else 2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        method.compute(policy, batch).loss_sum.div(6).backward()
        optimizer.step()
    metrics = method.compute(policy, batch).metrics
    assert float(metrics["rewards/accuracy"].total) == 6
    # Centring: 0.01 (r_w + r_l)^2 holds the mean far below the margin.
    assert abs(float(metrics["rewards/mean"].total)) / 12 < 0.5 * float(metrics["rewards/margin"].total) / 6


def test_rows_and_options_that_can_not_be_learnt_from() -> None:
    _, processor = build_tiny_llava()
    (scored,) = list_rows([3])
    with pytest.raises(UserError, match="no preference to learn"):
        method_for(processor, lists=True).check({**scored, "scores": [1.0] * 3}, index=0)
    with pytest.raises(UserError, match=r"centering is -0.1; expected at least 0"):
        RewardLossOptions(centering=-0.1)
