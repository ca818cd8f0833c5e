"""Which words each token of a response stands for."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mmalign.errors import UserError


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Cut a response's text at its tokens: joined, the pieces are the decoded text.

    A token that ends within a character adds nothing, and the one that completes it the whole character. Special tokens stay visible.
    """
    pieces, seen = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text.rstrip("\ufffd") if end < len(ids) else text
        piece = whole[len(seen) :] if whole.startswith(seen) else ""
        pieces.append(piece)
        seen += piece
    return pieces


def find_items(tokenizer: Any, ids: Sequence[int], response: str, items: Sequence[tuple[int, int]]) -> list[int]:
    """Find the tokens of spans of a response. A span that begins inside a token takes it whole.

    Args:
        tokenizer: What the ids are of.
        ids: Tokens of the response and what the template writes around it.
        response: Its text.
        items: [start, end) of each span, in characters, in order.

    Returns:
        For each token the number of its item, -1 where it has none.

    Raises:
        ValueError: If the tokens don't read as the response, a token belongs to two items, or an item has none.
    """
    pieces = token_texts(tokenizer, ids)
    before = "".join(pieces).find(response)
    if before < 0:
        raise UserError(f"the tokens of the response read as {''.join(pieces)!r}; expected {response!r} in it, where items are looked for")
    found = [-1] * len(ids)
    ends = list(accumulate(map(len, pieces)))
    for place, (piece, end) in enumerate(zip(pieces, ends, strict=True)):
        # A token that ends within a character goes with the one that completes it.
        start = end - len(piece) if piece else end
        stop = end if piece else end + 1
        own = [number for number, (first, last) in enumerate(items) if start < before + last and stop > before + first]
        if len(own) > 1:
            raise UserError(f"items {own[0]} and {own[1]} share the token {piece!r}; leave more than that between them")
        found[place] = own[0] if own else -1
    for number, (first, last) in enumerate(items):
        if number not in found:
            raise UserError(f"item {number}, {response[first:last]!r}, has no token")
    return found
