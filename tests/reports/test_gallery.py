"""Marked captions: exact pieces, exact refusals."""

import base64

import pytest

from mmalign.reports.gallery import Caption, GalleryItem, Piece, check_gallery, cut_caption, to_data_uri
from tests.reports.example_runs import build_item, build_png


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


def test_data_uri_holds_the_bytes() -> None:
    png = build_png()
    head, body = to_data_uri(png).split(",")
    assert (head, base64.b64decode(body)) == ("data:image/png;base64", png)


def test_missing_caption_and_wrong_image() -> None:
    with pytest.raises(ValueError, match=r"gallery item 0 has captions of \['SFT'\]; expected one of each of \['DPO', 'SFT'\]"):
        check_gallery([build_item(names=("SFT",))], names=["SFT", "DPO"])
    with pytest.raises(ValueError, match=r"gallery item 1: the image starts with b'GIF89a'; expected the bytes of a PNG file"):
        check_gallery([build_item(names=("A",)), GalleryItem(b"GIF89a", {"A": Caption("")}, [])], names=["A"])
