"""CHAIR on closed word lists: mentions with their places, hand-worked scores, refusals."""

from pathlib import Path

import pytest

from mmalign.evaluation.chair import ChairImage, find_mentions, load_chair, read_synonyms, score_chair

WORDS = read_synonyms("dog, puppy\nhot dog\ncar\nbus, coach\n")


def test_mentions_by_hand() -> None:
    caption = "Two puppies? No: a Puppy, hot dogs and two buses beside the carpet."
    got = [(m.name, caption[m.start : m.end]) for m in find_mentions(caption, WORDS)]
    assert got == [("dog", "Puppy"), ("hot dog", "hot dogs"), ("bus", "buses")]


def image(i: int, *truth: str) -> ChairImage:
    return ChairImage(str(i), "a.png", "Describe.", frozenset(truth))


def test_scores_by_hand() -> None:
    images = [image(1, "dog", "car"), image(2, "bus"), image(3, "dog")]
    answers = {"1": "A dog, a puppy and a bus.", "2": "A coach.", "3": "Nothing."}
    # Mentions: dog, dog, bus | bus | none. Wrong: bus in 1. Covered: dog of 2, bus of 1, none of 1.
    assert score_chair(images, answers, WORDS) == pytest.approx(
        {"chair/sentence": 1 / 3, "chair/instance": 1 / 4, "chair/recall": 2 / 4, "chair/mentions": 4 / 3}
    )


def test_silence_has_no_hallucination_and_no_coverage() -> None:
    assert score_chair([image(1, "dog")], {"1": ""}, WORDS) == {
        "chair/sentence": 0.0,
        "chair/instance": 0.0,
        "chair/recall": 0.0,
        "chair/mentions": 0.0,
    }


def test_missing_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 questions have no answer: 2"):
        score_chair([image(1, "dog"), image(2, "dog")], {"1": "dog"}, WORDS)


def test_truth_outside_the_word_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chair.jsonl").write_text('{"id": "1", "image": "a.png", "question": "?", "truth": ["dog", "cow"]}')
    with pytest.raises(ValueError, match=r"file not found: .*synonyms.txt"):
        load_chair(tmp_path)
    (tmp_path / "synonyms.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"1 holds cow, which synonyms.txt does not name"):
        load_chair(tmp_path)
