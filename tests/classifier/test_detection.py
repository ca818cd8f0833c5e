"""How foreign images are told from known ones: by hand, against every pair, and the two ends."""

import pytest
import torch

from mmalign.classifier.detection import score_detection


def test_by_hand() -> None:
    """Of 12 pairs 8 are in order and one is a tie; all four known images must be kept, so that the threshold is 0.6."""
    found = score_detection(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0.85, 0.6, 0.1]))
    assert found == {"auroc": pytest.approx(8.5 / 12), "fpr_at_95": pytest.approx(2 / 3)}


def test_one_of_twenty_known_images_may_be_lost() -> None:
    inside = torch.arange(20.0)
    assert score_detection(inside, torch.tensor([0.5, 1.0, 7.0]))["fpr_at_95"] == pytest.approx(2 / 3)


def test_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, 9, (number,), generator=generator) / 8 for number in (50, 30))
    apart = inside[:, None] - outside
    assert score_detection(inside, outside)["auroc"] == pytest.approx(((apart > 0) + 0.5 * (apart == 0)).mean().item())
    assert score_detection(inside, inside)["auroc"] == pytest.approx(0.5)


def test_ends() -> None:
    high, low = torch.full((5,), 0.9), torch.full((7,), 0.2)
    assert score_detection(high, low) == {"auroc": 1.0, "fpr_at_95": 0.0}
    assert score_detection(low, high) == {"auroc": 0.0, "fpr_at_95": 1.0}
