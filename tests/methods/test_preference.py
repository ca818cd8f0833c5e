"""The preference method: its loss from its parts, the SFT term, equal difficulties."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature

from mmalign.engine.logps import compute_response_logps
from mmalign.losses.preference import DifficultyMode
from mmalign.methods.preference import PreferenceConfig, PreferenceMethod, difficulty_quartiles
from mmalign.models.references import Reference
from tests.tiny_models import build_tiny_llava, pair_rows

NUM_PAIRS = 4


def loss_of(difficulty: list[float] | None = None, **options: Any) -> float:
    policy, processor = build_tiny_llava(seed=0)
    reference, _ = build_tiny_llava(seed=1)
    frozen = Reference(policy, kind="copy", model=reference)
    method = PreferenceMethod(processor, PreferenceConfig(**options), reference=frozen)
    rows = Dataset.from_list(pair_rows(NUM_PAIRS)).cast_column("images", List(ImageFeature(decode=False)))
    if difficulty is not None:
        rows = rows.add_column("difficulty", difficulty)
    batch = method.collate(list(method.prepare(rows)))
    with torch.no_grad():
        return method.compute(policy, batch).loss_sum.item() / NUM_PAIRS


def test_sft_term_is_the_chosen_responses_mean_nll() -> None:
    policy, processor = build_tiny_llava(seed=0)
    method = PreferenceMethod(processor, PreferenceConfig(), reference=Reference(policy, kind="copy"))
    rows = Dataset.from_list(pair_rows(NUM_PAIRS)).cast_column("images", List(ImageFeature(decode=False)))
    batch = method.collate(list(method.prepare(rows)))
    with torch.no_grad():
        chosen = compute_response_logps(policy, {k: v for k, v in batch.items() if k != "pairs"}).per_response()[::2]
    nll = sum(-values.mean().item() for values in chosen) / NUM_PAIRS
    assert loss_of(sft_weight=0.7) - loss_of() == pytest.approx(0.7 * nll, abs=1e-4)
    assert nll > 1


@pytest.mark.parametrize(("mode", "factor"), [("paper-norm", 1.0), ("loss-weight", 1.0), ("paper", 1.75)])
def test_equal_difficulties_are_plain_dpo(mode: DifficultyMode, factor: float) -> None:
    """With every difficulty 1/4, easiness is 3/4: the paper's beta is beta (1 + 3/4) for every pair, the other modes change nothing."""
    plain = loss_of(beta=0.1 * factor)
    assert loss_of([0.25] * NUM_PAIRS, difficulty_mode=mode) == pytest.approx(plain, abs=1e-6)
    assert loss_of([0.1, 0.9, 0.2, 0.7], difficulty_mode=mode) != pytest.approx(plain, abs=1e-4)
    assert abs(plain - math.log(2)) > 0.01


def test_quartiles_by_hand() -> None:
    difficulty = torch.tensor([0.9, 0.1, 0.4, 0.4, 0.7, 0.2, 0.8, 0.3])
    # In order: 0.1 0.2 | 0.3 0.4 | 0.4 0.7 | 0.8 0.9; of the equal ones the first comes first.
    assert difficulty_quartiles(difficulty).tolist() == [4, 1, 2, 3, 3, 1, 4, 2]
