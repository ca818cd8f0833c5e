"""Sentences by rules: where a text ends, in several languages, and what is done with a sentence that is too long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.difficulty.sentences import cut_to_fit, split_sentences

TEXTS = [
    ["a red dog.", "a blue cat."],
    ["Is it a dog?", "No!", "It is a cat"],
    ["Dr. Smith and Mrs. Jones have 3.5 dogs.", "They live in St. Louis."],
    ["Animals, e.g. dogs, i.e. Rex vs. Felix, are here.", "They play."],
    ["It is 5 p.m. in the U.S. Army base.", "The sky is dark."],
    ["Dogs, cats etc. are here.", "There are birds, fish etc.", "The sky is blue."],
    ["The photo is by J. K. Rowling and George W. Bush.", "It shows vitamin C.", "The end."],
    ["No.", "There is none.", "See No. 5 and Fig. 2.", "Done."],
    ["There are 3.", "They are red."],
    ["There are two: 1. A dog.", "2. A cat."],
    ["It costs $1.50 at www.example.com.", "Cheap."],
    ['He asks "Is it a dog?" and goes.', '"Yes."', "She left (quickly.)", "Bye."],
    ["Wait... there it is.", "Wow!!", "And so on\u2026", "The end."],
    [
        "\u56fe\u4e2d\u6709\u4e00\u53ea\u72d7\u3002",
        "\u5b83\u662f\u7ea2\u8272\u7684\uff01",
        "\u4f60\u770b\u5230\u4e86\u5417\uff1f",
        "\u662f\u7684",
    ],
    ["\u72ac\u304c\u3044\u307e\u3059\u3002", "\u732b\u3082\u3044\u307e\u3059\u3002"],
    ["\u092f\u0939 \u0915\u0941\u0924\u094d\u0924\u093e \u0939\u0948\u0964", "\u0935\u0939 \u0932\u093e\u0932 \u0939\u0948\u0964"],
    ["\u0647\u0644 \u0647\u0630\u0627 \u0643\u0644\u0628\u061f", "\u0646\u0639\u0645"],
]


@pytest.mark.parametrize("expected", TEXTS, ids=lambda expected: expected[0])
def test_sentences_of_texts(expected: list[str]) -> None:
    chinese = any(piece[-1] in "\u3002\uff01\uff1f" for piece in expected)
    assert split_sentences(("" if chinese else " ").join(expected)) == expected
    assert split_sentences("\n\n".join(expected)) == expected


def test_lists_end_at_their_lines() -> None:
    text = "The image shows:\n1. A dog.\n2. A cat, i.e. an animal\n  - Birds\n* Fish\n\nA sky"
    assert split_sentences(text) == ["The image shows:", "1. A dog.", "2. A cat, i.e. an animal", "- Birds", "* Fish", "A sky"]
    # Lines that are broken for their width are no sentences.
    assert split_sentences("A dog that sits\non a chair.") == ["A dog that sits on a chair."]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='aB1.!?)("- \n\u3002\u2026', max_size=60))
def test_no_word_is_lost(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_a_long_sentence_is_cut_at_words_and_a_long_word_inside() -> None:
    def fits(text: str) -> bool:
        return len(text) <= 10

    assert cut_to_fit("a red dog", fits) == ["a red dog"]
    assert cut_to_fit("a red dog and a blue cat", fits) == ["a red dog", "and a blue", "cat"]
    assert cut_to_fit("\u72ac" * 23, fits) == ["\u72ac" * 10, "\u72ac" * 10, "\u72ac" * 3]
    assert cut_to_fit("see http://example.com/dogs now", fits) == ["see", "http://exa", "mple.com/d", "ogs now"]
    with pytest.raises(ValueError, match="not even 'a' fits the text tower"):
        cut_to_fit("a dog", lambda text: not text)
