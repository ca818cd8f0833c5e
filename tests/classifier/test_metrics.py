"""Accuracy, calibration error and the search for the mixing, by hand."""

import itertools
import math

import pytest
import torch

from mmalign.classifier.metrics import CE_HEAD_WEIGHTS, KD_HEAD_TEMPERATURES, score_classifier, score_probabilities, search_mixing
from tests.tiny_classifiers import build_tiny_classifier


def test_scores_by_hand() -> None:
    """Confidences 0.9 (right), 0.6 (wrong) and 0.58 (right): the last two share a bin of fifteen."""
    probabilities = torch.tensor([[0.9, 0.1], [0.61, 0.39], [0.63, 0.37]])
    scores = score_probabilities(probabilities, torch.tensor([0, 1, 0]))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    # |1 - 0.9| + |(0 - 0.61) + (1 - 0.63)| = 0.1 + 0.24, over 3.
    assert scores["ece"] == pytest.approx(0.34 / 3)
    assert scores["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.39) + math.log(0.63)) / 3)


def test_sure_and_right_is_calibrated() -> None:
    assert score_probabilities(torch.eye(3), torch.arange(3)) == pytest.approx({"accuracy": 1, "ece": 0, "nll": 0})


def test_a_teacher_is_scored_where_it_says_something() -> None:
    model, labels = build_tiny_classifier(), torch.tensor([0, 1, 2])
    logits = torch.eye(3), torch.eye(3)
    teacher = torch.tensor([[9.0, 0, 0], [torch.nan] * 3, [9.0, 0, -torch.inf]])
    assert score_classifier(model, logits, labels, teacher=teacher)["teacher"]["accuracy"] == 0.5
    assert "teacher" not in score_classifier(model, logits, labels, teacher=torch.full((3, 3), torch.nan))


def test_search_takes_the_first_of_equals() -> None:
    """Both heads right everywhere: all pairs are equal, and the first is weight 0 at the lowest temperature."""
    logits, labels = 5 * torch.eye(4), torch.arange(4)
    found = search_mixing(logits, logits, labels)
    assert (found.ce_head_weight, found.kd_head_temperature, found.accuracy) == (0.0, KD_HEAD_TEMPERATURES[0], 1.0)
    assert found.grid.shape == (len(CE_HEAD_WEIGHTS), len(KD_HEAD_TEMPERATURES)) == (21, 10)


def test_of_pairs_as_accurate_the_likeliest_wins() -> None:
    """Both heads agree, and are wrong on one image of four: every pair is as accurate, and only likelihood tells them apart."""
    logits = 5 * torch.eye(4)
    labels = torch.tensor([0, 1, 2, 0])

    def nll(pair: tuple[float, float]) -> float:
        """Of the sure class p, of each other one (1 - p) / 3; three images are right."""
        weight, temperature = pair
        sure, softened = (math.exp(5 / t) / (math.exp(5 / t) + 3) for t in (1, temperature))
        p = weight * sure + (1 - weight) * softened
        return -3 * math.log(p) - math.log(max((1 - p) / 3, 1e-12))

    found = search_mixing(logits, logits, labels)
    assert (found.accuracy, found.grid.min()) == (0.75, 0.75)
    best = min(itertools.product(CE_HEAD_WEIGHTS, KD_HEAD_TEMPERATURES), key=nll)
    assert (found.ce_head_weight, found.kd_head_temperature) == best == (0.5, 4.0)


def test_search_finds_the_head_that_is_right() -> None:
    right, labels = 5 * torch.eye(4), torch.arange(4)
    wrong = right.roll(1, 0)
    found = search_mixing(right, wrong, labels)
    assert found.accuracy == 1.0
    assert found.grid[0].max() == 0.0
    assert found.ce_head_weight > 0
    # softmax(5, 0, 0, 0) gives 0.980: the CE head's weight must be above 1/2 where the other is sharp, less where it is flat.
    sharp = found.grid[:, 0]
    assert CE_HEAD_WEIGHTS[int((sharp == 1).nonzero()[0])] == 0.55


def test_mixture_can_beat_both_heads() -> None:
    """Each head is surely right on one image and nearly undecided on the other."""
    ce_logits, kd_logits = torch.tensor([[4.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 0.1], [0.0, 4.0]])
    found = search_mixing(ce_logits, kd_logits, torch.tensor([0, 1]))
    assert found.accuracy == 1.0
    assert found.grid[0].max() == found.grid[-1].max() == 0.5
