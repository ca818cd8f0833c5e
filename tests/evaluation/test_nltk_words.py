"""Our way through NLTK's tagger says what NLTK's own says."""

import json
from pathlib import Path

import pytest

from mmalign.evaluation.nltk_words import tag, tokenize


def test_tags_are_nltks_own(shared_data: Path, nltk_words: None) -> None:
    perceptron = pytest.importorskip("nltk.tag.perceptron")
    path = shared_data / "benchmarks" / "chair" / "captions_llava13b_instruction2.jsonl"
    captions = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()[:200]]
    captions += ["", "A 4-legged TV, built in 1999; 3 dogs' toys!", "Çava? naïve \u732b qzx"]
    words = [tokenize(caption) for caption in captions]
    theirs = perceptron.PerceptronTagger()
    assert [tag(caption) for caption in words] == [theirs.tag(caption) for caption in words]
    assert sum(map(len, words)) > 10_000
