"""Marked captions: exact pieces, exact refusals."""

import base64
import io

import pytest
from PIL import Image

from mmalign.reports.gallery import Caption, Piece, cut_caption, make_thumbnail
from tests.tiny_models import random_image


def test_pieces_by_hand() -> None:
    caption = Caption("a dog, a cat", hallucinated=[(9, 12)], correct=[(2, 5)])
    pieces = cut_caption(caption)
    assert pieces == [Piece("a ", "plain"), Piece("dog", "right"), Piece(", a ", "plain"), Piece("cat", "wrong")]


@pytest.mark.parametrize("text", ["", "plain words"])
def test_unmarked_caption(text: str) -> None:
    assert cut_caption(Caption(text)) == ([Piece(text, "plain")] if text else [])


def test_touching_spans_stay_apart() -> None:
    assert cut_caption(Caption("abcd", [(0, 2)], [(2, 4)])) == [Piece("ab", "wrong"), Piece("cd", "right")]


@pytest.mark.parametrize("span", [(-1, 2), (3, 3), (4, 2), (2, 6)])
def test_span_outside_the_text(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"span \({span[0]}, {span[1]}\) is not inside the 5 characters of 'a dog'"):
        cut_caption(Caption("a dog", [span]))


def test_word_both_right_and_wrong() -> None:
    with pytest.raises(ValueError, match=r"span \(2, 5\) overlaps the one before it, which ends at 5, in 'a dog'"):
        cut_caption(Caption("a dog", [(2, 5)], [(2, 5)]))


def test_a_drawn_image_is_kept_as_it_is() -> None:
    image = random_image(0, (128, 40))
    head, body = make_thumbnail(image).split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as shown:
        assert shown.tobytes() == image.tobytes()


def test_a_photo_is_made_small_and_left_alone() -> None:
    image = Image.new("RGB", (1000, 500))
    head, body = make_thumbnail(image).split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as shown:
        assert shown.size == (336, 168)
    assert image.size == (1000, 500)
