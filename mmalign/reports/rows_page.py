"""Rows of a data set as a model sees them, as one HTML file that asks nothing of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.reports.page import render_page

Picture = tuple[str, str]
"""Its address (``make_thumbnail``), and its size."""


@dataclass(frozen=True)
class TokenText:
    """What a token stands for."""

    text: str
    kind: Literal["scored", "context", "image"]
    """Whether its log-probability counts, it is only read, or it is the place of an image."""
    count: int = 0
    """Image tokens that it stands for."""


@dataclass(frozen=True)
class Answer:
    """A response: its name, the tokens that count, and what all of them stand for."""

    name: str
    num_scored: int
    tokens: Sequence[TokenText]


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row as shown; one that training would reject has its id and the reason alone."""

    id: str
    reason: str = ""
    source: str = ""
    images: Sequence[Picture] = ()
    """As they are stored."""
    processed: Sequence[Picture] = ()
    """As the vision tower is given them."""
    num_prompt_tokens: int = 0
    num_image_tokens: int = 0
    prompt: Sequence[TokenText] = ()
    answers: Sequence[Answer] = ()


def write_rows_page(out: Path, *, title: str, form: str, num_rows: int, rows: Sequence[ShownRow], facts: Mapping[str, str]) -> Path:
    """Write the page; equal arguments give equal bytes, and every text in them is shown as text.

    Args:
        out: The HTML file.
        title: Of the page.
        form: What a row is.
        num_rows: Of the whole data set.
        rows: Those to show.
        facts: How it was made: name -> value, in this order.

    Returns:
        ``out``.
    """
    broken = sum(bool(row.reason) for row in rows)
    lengths = [row.num_prompt_tokens + len(answer.tokens) for row in rows for answer in row.answers]
    return render_page(
        out, "rows_page.html.j2", title=title, form=form, num_rows=num_rows, broken=broken, lengths=lengths, rows=rows, facts=facts
    )
