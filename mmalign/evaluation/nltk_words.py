"""Tokens, part-of-speech tags and lemmas by NLTK: the only module that imports it."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import numpy as np

from mmalign.errors import UserError

Result = TypeVar("Result")
DATA = "punkt_tab averaged_perceptron_tagger_eng wordnet"
# Penn Treebank tags begin with these letters; every other word is looked up as a noun.
PARTS_OF_SPEECH = {"J": "a", "V": "v", "N": "n", "R": "r"}


def tokenize(text: str) -> list[str]:
    """Split a text into sentences and those into words (punkt, Treebank)."""
    nltk = _nltk()
    return _with_data(lambda: list(nltk.word_tokenize(text)))


def tag(words: list[str]) -> list[tuple[str, str]]:
    """Tag words with Penn Treebank parts of speech."""
    return [(word, label) for word, label in _tagger().tag(words)]


@cache
def lemmatize(word: str, part_of_speech: str = "n") -> str:
    """Return WordNet's shortest lemma of a word, or the word itself; ``part_of_speech`` is n, v, a or r."""
    return str(_with_data(lambda: _lemmatizer().lemmatize(word, pos=part_of_speech)))


@cache
def find_nouns(text: str) -> tuple[str, ...]:
    """Return the lemmas of a text's nouns, in its own case, repeats kept."""
    return tuple(lemmatize(word) for word, label in tag(tokenize(text)) if label.startswith("NN"))


def lemmatize_tagged(words: list[str]) -> list[str]:
    """Tag words and return the lemma of each as what it was tagged."""
    return [lemmatize(word, PARTS_OF_SPEECH.get(label[:1], "n")) for word, label in tag(words)]


def lemmatize_nouns(words: list[str]) -> list[str]:
    """Return the lemma of each word, taken for a noun."""
    return [lemmatize(word) for word in words]


def _nltk() -> Any:
    try:
        import nltk
    except ImportError as error:
        raise UserError("this benchmark needs NLTK: pip install 'mmalign[chair]'") from error
    return nltk


@cache
def _tagger() -> Any:
    # nltk.pos_tag reads the weights anew at every call.
    _nltk()
    from nltk.tag.perceptron import PerceptronTagger

    tagger = _with_data(PerceptronTagger)
    tagger.model.predict = _fast_predict(tagger.model)
    return tagger


def _fast_predict(model: Any) -> Callable[..., tuple[str, None]]:
    """Return what predicts as NLTK's perceptron does, to the last bit: the same sums in the same order, over arrays.

    Its loops over labels take most of the time of CHAIR's WordNet variant.
    """
    # Of equal scores the last label by the alphabet wins; argmax takes the first.
    labels = sorted(model.classes, reverse=True)
    place = {label: i for i, label in enumerate(labels)}

    @cache
    def weights_of(feature: str) -> Any:
        row = np.zeros(len(labels))
        for label, weight in model.weights.get(feature, {}).items():
            row[place[label]] = weight
        return row

    def predict(features: Mapping[str, int], return_conf: bool = False) -> tuple[str, None]:
        scores = np.zeros(len(labels))
        # The tagger counts each feature once.
        for feature in features:
            scores += weights_of(feature)
        return labels[int(scores.argmax())], None

    return predict


@cache
def _lemmatizer() -> Any:
    _nltk()
    from nltk.stem import WordNetLemmatizer

    return WordNetLemmatizer()


def _with_data(function: Callable[[], Result]) -> Result:
    try:
        return function()
    except LookupError as error:
        raise UserError(
            f"NLTK's data are missing: python -m nltk.downloader {DATA}; or name a folder that has them with NLTK_DATA"
        ) from error
