"""CHAIR on lists of one's own: words of several words, words whose singular is wrong by rule; COCO's list stays as it is."""

import json
from functools import partial
from pathlib import Path

import pytest

from mmalign.evaluation.chair import list_forms, load_chair
from mmalign.evaluation.object_words import find_phrases, is_cocos, join_phrases, read_synonyms
from mmalign.options.evaluate import ChairVariant

LIST = "dog, puppy\ntraffic cone, road cone\nstreet lamp\nTV remote control\nbus, school bus\nglasses\nhot dog stand\ncactus\nman\n"
TRUTHS = {"1": ["dog"], "2": ["street lamp"]}
VARIANTS: tuple[ChairVariant, ...] = ("original", "wordnet")


@pytest.fixture
def folder(tmp_path: Path, nltk_words: None) -> Path:
    (tmp_path / "synonyms.txt").write_text(LIST)
    (tmp_path / "objects.json").write_text(json.dumps(TRUTHS))
    return tmp_path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A traffic cone and a dog.", ["traffic cone", "dog"]),
        ("Traffic cones beside two Road Cones.", ["traffic cone", "traffic cone"]),
        ("TV remote controls on a table", ["TV remote control"]),
        ("a remote control", []),
        ("Two buses and a school bus", ["bus", "bus"]),
        ("A man with glasses", ["man", "glasses"]),
        ("Two men and cactuses", ["man", "cactus"]),
        ("A hot-dog stand with traffic-cones", ["traffic cone"]),
        ("A hot dog stand", ["hot dog stand"]),
        ("A street, and a lamp.", []),
    ],
)
def test_words_of_several_words(folder: Path, variant: ChairVariant, caption: str, found: list[str]) -> None:
    assert load_chair(folder, variant=variant).find(caption) == found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A man with glasses", ["glasses"]),
        ("a glass of water", ["glass"]),
        ("Two wine glasses, two beer mugs", ["wine glass", "beer mug"]),
        ("brushes, a brush", ["brushes", "brush"]),
        ("shelves with a shelf", ["shelf", "shelf"]),
    ],
)
def test_a_list_that_names_a_plural_of_its_own(
    tmp_path: Path, nltk_words: None, variant: ChairVariant, caption: str, found: list[str]
) -> None:
    (tmp_path / "synonyms.txt").write_text("glass\nglasses, eyeglasses\nwine glass\nbrush\nbrushes\nbeer mug\nshelf\n")
    (tmp_path / "objects.json").write_text("{}")
    assert load_chair(tmp_path, variant=variant).find(caption) == found


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_by_hand(folder: Path, variant: ChairVariant) -> None:
    got = load_chair(folder, variant=variant).score({"1": "A traffic cone and a dog.", "2": "A street lamp."}, mode="official")
    # One of two captions and one of three mentions name what is absent; both objects of the images are named.
    assert got == pytest.approx({"chair/sentence": 0.5, "chair/instance": 1 / 3, "chair/recall": 1.0, "chair/mentions": 1.5})


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_joined_in_chairs_own_list(shared_data: Path, nltk_words: None, variant: ChairVariant) -> None:
    synonyms = read_synonyms((shared_data / "benchmarks" / "chair" / "synonyms.txt").read_text())
    assert is_cocos(synonyms)
    assert find_phrases(synonyms, partial(list_forms, variant=variant)) == {}


def test_a_word_added_to_chairs_list_is_found(nltk_words: None) -> None:
    synonyms = read_synonyms("truck, fire engine\ncar\nbus\noven, stove top oven\n")
    assert find_phrases(synonyms, partial(list_forms, variant="original")) == {"fire engine": "fire engine"}


def test_the_longest_run_counts() -> None:
    phrases = {"a b": "two", "a b c": "three", "x": "y"}
    assert join_phrases(["a", "b", "c", "a", "b", "x", "d"], phrases) == ["three", "two", "y", "d"]
    assert join_phrases(["a"], {}) == ["a"]


def test_objects_that_no_word_names_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "objects.json").write_text(json.dumps({"1": ["dog", "Traffic cone", "lamp"]}))
    load_chair(folder)
    assert "holds lamp, which synonyms.txt does not name: they are never found" in caplog.text


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("words", "truth"),
    [
        ("street_lamp,lamp post\nBowl/Basin\nbat_(animal)\ndog\n", ["street_lamp", "Bowl/Basin", "bat_(animal)"]),
        ("Street Lamp, lamp_post\nbowl, basin\nbat\ndog\n", ["street lamp", "Basin", "Bat"]),
    ],
)
def test_lists_as_sets_of_objects_spell_them(tmp_path: Path, nltk_words: None, variant: ChairVariant, words: str, truth: list[str]) -> None:
    """LVIS, Objects365: underscores, brackets, slashes, capitals, commas without a space."""
    (tmp_path / "synonyms.txt").write_text(words)
    (tmp_path / "objects.json").write_text(json.dumps({"1": truth}))
    got = load_chair(tmp_path, variant=variant).score(
        {"1": "Two street lamps, a lamp post, a basin, a bowl, a bat and a dog."}, mode="official"
    )
    assert got == pytest.approx({"chair/sentence": 1.0, "chair/instance": 1 / 6, "chair/recall": 1.0, "chair/mentions": 6.0})


def test_a_word_of_several_objects_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "synonyms.txt").write_text("dog\nbat (animal)\nbat (sports), club\nstreet lamp\n")
    assert load_chair(folder).find("a bat") == ["bat (sports)"]
    assert "has words of several objects, which count as the last: bat (bat (animal), bat (sports))" in caplog.text
