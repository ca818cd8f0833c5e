"""Which pairs are trained on, and how: noisy labels, a range of difficulty, an order, all by hand."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from mmalign.data.caches import REFERENCE_FINGERPRINT, REFERENCE_IMAGES, REFERENCE_TEXT, TOKEN_LOGPS, digest_text
from mmalign.engine.logps import compute_response_logps
from mmalign.methods.pair_selection import check_selection, noise_threshold, select_pairs, swap_sides
from mmalign.options.methods import NoisyGap, SelectionOptions
from tests.methods.test_objectives import NUM_PAIRS, data_set, loss_of, method_for, models

GAPS = [-2.0, 0.5, -1.0, 1.5, -0.5, 0.0]
DIFFICULTY = [0.9, 0.4, 0.8, 0.1, 0.6, 0.4]


def scored(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"id": list("abcdef"), "difficulty": DIFFICULTY, "gap_fused": GAPS, **columns})


def ids(**options: Any) -> str:
    return "".join(select_pairs(scored(), SelectionOptions(**options)).dataset["id"])


def test_nothing_asked_for_changes_nothing() -> None:
    selection = select_pairs(scored(), SelectionOptions())
    assert selection.dataset.column_names == ["id", "difficulty", "gap_fused"]
    assert (selection.dataset.to_list(), selection.counts, selection.notes) == (scored().to_list(), {}, ())


def test_range_keeps_its_ends_and_counts() -> None:
    selection = select_pairs(scored(), SelectionOptions(difficulty_range=[0.4, 0.8]))
    assert "".join(selection.dataset["id"]) == "bcef"
    assert selection.counts == {"outside_difficulty_range": 2, "trained_on": 4}
    assert selection.notes == ("difficulty from 0.4 to 0.8: 4 of 6 pairs remain",)


def test_curriculum_sorts_and_keeps_the_order_of_ties() -> None:
    assert ids(curriculum="easy-to-hard") == "dbfeca"
    assert ids(curriculum="hard-to-easy") == "acebfd"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "bdef"),
        ({"noisy_gap_std": 0.5}, "bdf"),
        ({"noisy_gap_std": 0.0}, "bdf"),
        ({"noisy_gap_std": 1.1}, "bcdef"),
        ({"noisy_gap_quantile": 0.2}, "bdef"),
        # The lowest 90% reach to a gap of 0.5, and only negative ones count.
        ({"noisy_gap_quantile": 0.9}, "bdf"),
    ],
)
def test_noisy_pairs_are_dropped(options: dict[str, float], kept: str) -> None:
    assert ids(noisy_gap="drop", **options) == kept


def test_threshold_is_in_standard_deviations_or_a_quantile() -> None:
    gaps = np.array(GAPS)
    assert noise_threshold(gaps, SelectionOptions(noisy_gap="drop", noisy_gap_std=1.5)) == -1.5
    assert noise_threshold(gaps, SelectionOptions(noisy_gap="drop", noisy_gap_quantile=0.01)) == -2.0
    assert noise_threshold(gaps, SelectionOptions(noisy_gap="drop", noisy_gap_quantile=0.99)) == 0.0


def test_flips_and_soft_labels_are_columns_and_counted() -> None:
    flipped = select_pairs(scored(), SelectionOptions(noisy_gap="flip"))
    assert flipped.dataset["pair_flipped"][:] == [True, False, True, False, False, False]
    assert flipped.counts == {"noisy_gap": "flip", "noisy_gap_threshold": -1.0, "noisy_pairs": 2, "trained_on": 6}
    assert flipped.notes == ("noisy gaps: 2 of 6 pairs, fused gap at or below -1.000 standard deviations, flipped",)
    smoothed = select_pairs(scored(), SelectionOptions(noisy_gap="smooth", noisy_gap_label_flip=0.4))
    assert smoothed.dataset["pair_label_flip"][:] == [0.4, 0, 0.4, 0, 0, 0]


def test_all_three_in_order() -> None:
    """The quantile is of all pairs, the range of those that are left, the order the last."""
    config = SelectionOptions(noisy_gap="drop", noisy_gap_quantile=0.2, difficulty_range=[0.2, 1.0], curriculum="hard-to-easy")
    selection = select_pairs(scored(), config)
    assert "".join(selection.dataset["id"]) == "ebf"
    assert selection.counts["noisy_pairs"] == 2
    assert selection.counts["outside_difficulty_range"] == 1
    assert selection.counts["trained_on"] == 3
    assert len(selection.notes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty_range": [0.91, 1.0]}, "no pair of 6 has a difficulty from 0.91 to 1: they are from 0.100 to 0.900; widen"),
        ({"difficulty_range": [0.8, 0.2]}, "difficulty_range is 0.8 0.2; expected two numbers in"),
        ({"difficulty_range": [0.2, 1.2]}, "difficulty_range is 0.2 1.2; expected two numbers in"),
        ({"noisy_gap_std": -1.0}, "noisy_gap_std is -1.0; expected 0 or more"),
        ({"noisy_gap_std": float("nan")}, "noisy_gap_std is nan; expected a finite number"),
        ({"noisy_gap": "drop", "noisy_gap_quantile": 1.0}, "noisy_gap_quantile is 1.0; expected a share between 0 and 1"),
        ({"noisy_gap_quantile": 0.1}, "noisy_gap_quantile is 0.1, and noisy_gap 'keep' changes no pair"),
        ({"noisy_gap_label_flip": 0.7}, "noisy_gap_label_flip is 0.7; expected more than 0 and at most 0.5"),
        ({"noisy_gap_std": 2.0}, "noisy_gap_std is 2.0, which only --noisy-gap without a quantile reads; add that, or leave it out"),
        ({"noisy_gap": "flip", "noisy_gap_quantile": 0.1, "noisy_gap_std": 2.0}, "noisy_gap_std is 2.0, which only"),
        ({"noisy_gap": "flip", "noisy_gap_label_flip": 0.2}, "noisy_gap_label_flip is 0.2, which only --noisy-gap smooth reads"),
        ({"curriculum_buckets": 5}, "curriculum_buckets is 5, which only --curriculum reads"),
    ],
)
def test_options_that_cant_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_pairs(scored(), SelectionOptions(**options))


@pytest.mark.parametrize(
    ("drop", "options", "message"),
    [
        ("gap_fused", {"noisy_gap": "drop"}, "--noisy-gap reads the column gap_fused, and the data set has none: run mmalign score-diff"),
        ("difficulty", {"curriculum": "easy-to-hard"}, "--curriculum reads the column difficulty"),
        ("difficulty", {"difficulty_range": [0.0, 1.0]}, "--difficulty-range reads the column difficulty"),
    ],
)
def test_scores_that_are_not_there(drop: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_selection(scored().remove_columns(drop), SelectionOptions(**options))


def test_gaps_that_are_no_numbers() -> None:
    data = scored().remove_columns("gap_fused").add_column("gap_fused", [0.0, 1.0, None, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="gap_fused of row 2 is None; expected a finite number"):
        select_pairs(data, SelectionOptions(noisy_gap="drop"))
    with pytest.raises(ValueError, match="all 6 pairs have a fused gap at or below -1.000"):
        select_pairs(scored().remove_columns("gap_fused").add_column("gap_fused", [-2.0] * 6), SelectionOptions(noisy_gap="drop"))


def treated(noisy_gap: NoisyGap, dataset: Dataset, gaps: list[float]) -> Dataset:
    return select_pairs(dataset.add_column("gap_fused", gaps), SelectionOptions(noisy_gap=noisy_gap)).dataset


@pytest.mark.parametrize(
    ("objective", "options"),
    [("dpo", {}), ("ipo", {}), ("flex_dpo", {}), ("simpo", {}), ("madpo", {}), ("step_dpo", {}), ("dpo", {"sft_weight": 0.5})],
)
def test_a_flipped_pair_trains_as_one_whose_answers_stand_the_other_way(objective: str, options: dict[str, Any]) -> None:
    """Also where the two sides count differently: offsets, other betas, an SFT term, scores and visits of each side."""
    by_hand = data_set().to_list()
    by_hand = [swap_sides(row) if i in (0, 2) else row for i, row in enumerate(by_hand)]
    expected = loss_of(method_for(objective, **options), Dataset.from_list(by_hand, features=data_set().features))
    got = loss_of(method_for(objective, **options), treated("flip", data_set(), [-2.0, 0.0, -1.5, 1.0]))
    assert got == pytest.approx(expected, abs=1e-5)
    assert got != pytest.approx(loss_of(method_for(objective, **options), data_set()), abs=1e-3)


def test_a_flipped_pairs_cached_reference_goes_with_its_answers() -> None:
    """The digest of its text is of the order in which it stands in the data."""
    live = treated("flip", data_set(), [-2.0, 0.0, -1.5, 1.0])
    other = models()[1]
    plain = method_for("ld_dpo")
    batch = plain.collate(list(plain.prepare(data_set())))
    inputs = {key: value for key, value in batch.items() if key != "numbers"}
    values = [value.tolist() for value in compute_response_logps(other, inputs).per_response()]
    cached = live
    for name, column in zip(TOKEN_LOGPS, (values[::2], values[1::2]), strict=True):
        cached = cached.add_column(name, column)
    cached = cached.add_column(REFERENCE_TEXT, [digest_text(plain.encode(row)[0]) for row in data_set()])
    cached = cached.add_column(REFERENCE_IMAGES, [plain.encode(row)[0].image_digest for row in data_set()])
    cached = cached.add_column(REFERENCE_FINGERPRINT, ["this model"] * NUM_PAIRS)
    assert loss_of(method_for("ld_dpo", cached=True), cached) == pytest.approx(loss_of(plain, live), abs=1e-4)
    assert loss_of(plain, live) != pytest.approx(loss_of(plain, data_set()), abs=1e-3)


def test_a_soft_label_adds_its_share_of_the_margin() -> None:
    """-log sigmoid(m) + kappa m, for DPO."""
    method = method_for("dpo")
    batch = method.collate(list(method.prepare(treated("smooth", data_set(), [-2.0, 0.0, -1.5, 1.0]))))
    assert batch["numbers"]["pair_label_flip"].tolist() == pytest.approx([0.3, 0, 0.3, 0])
    output = method.compute(models()[0], batch)
    hard = {**batch, "numbers": {key: value for key, value in batch["numbers"].items() if key != "pair_label_flip"}}
    margins = [method.compute(models()[0], part).metrics["rewards/margin"].total.item() for part in _one_by_one(method)]
    expected = method.compute(models()[0], hard).loss_sum.item() + 0.3 * (margins[0] + margins[2])
    assert output.loss_sum.item() == pytest.approx(expected, abs=1e-4)
    assert abs(0.3 * (margins[0] + margins[2])) > 0.01


def _one_by_one(method: Any) -> list[dict[str, Any]]:
    return [method.collate([row]) for row in method.prepare(data_set())]
