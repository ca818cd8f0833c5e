"""Ordering of grades by difficulty, against counting pairs."""

import random

import pytest

from mmalign.reports.difficulty_summary import DifficultySummary, compute_ordering, split_by_grade


def test_ordering_by_hand() -> None:
    # 0.5 beats 0.1 and 0.3 and ties with 0.5; 0.2 beats 0.1 only.
    assert compute_ordering([0.1, 0.3, 0.5], [0.5, 0.2]) == pytest.approx((2 + 0.5 + 1) / 6)
    assert compute_ordering([0.1], [0.9]) == 1.0
    assert compute_ordering([0.9], [0.1]) == 0.0


def test_ordering_equals_counting() -> None:
    rng = random.Random(0)
    easy, hard = ([rng.randint(0, 9) / 10 for _ in range(n)] for n in (40, 30))
    counted = sum((h > e) + 0.5 * (h == e) for e in easy for h in hard) / (40 * 30)
    assert compute_ordering(easy, hard) == pytest.approx(counted)


def test_a_missing_grade_is_refused() -> None:
    with pytest.raises(ValueError, match="3 easy and 0 hard pairs; expected some of each"):
        compute_ordering([0.1, 0.2, 0.3], [])


@pytest.mark.parametrize(
    ("difficulty", "grades", "message"),
    [
        ([0.1], ["easy", "hard"], "1 difficulties and 2 true grades"),
        ([], [], "0 difficulties and 0 true grades"),
        ([0.1], ["middling"], "true grade 'middling'; expected easy or hard"),
        ([1.5], ["easy"], r"difficulty 1.5; expected a number in \[0, 1\]"),
        ([float("nan")], ["easy"], r"difficulty nan; expected a number in \[0, 1\]"),
    ],
)
def test_bad_scores_are_refused(difficulty: list[float], grades: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_by_grade(DifficultySummary(difficulty, grades, []))  # type: ignore[arg-type]
