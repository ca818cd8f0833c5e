"""The bytes that each token of a tokenizer stands for: what tokens of different tokenizers have in common."""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmalign.errors import UserError

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class PlacedWords(NamedTuple):
    """Words among tokens."""

    before: str
    """What the tokens hold before them."""
    ends: list[int]
    """Where each token ends, in bytes from where the words begin: 0 or less before them."""


class TokenBytes:
    """A tokenizer's tokens as bytes, and answers of such tokens as text."""

    def __init__(self, tokenizer: Any) -> None:
        """Read the vocabulary.

        Raises:
            ValueError: If the tokenizer says nothing of its bytes.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{type(tokenizer).__name__} doesn't tell its tokens' bytes; take a model with a fast tokenizer")
        read = _read_letters if '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"]) else _read_words
        added = tokenizer.added_tokens_decoder
        self.bytes: dict[int, bytes] = {number: read(name) for name, number in tokenizer.get_vocab().items()}
        self.bytes |= {number: token.content.encode() for number, token in added.items()}
        self.added = frozenset(added)
        self.special = frozenset(number for number, token in added.items() if token.special)

    @property
    def size(self) -> int:
        """Ids run up to this; some below it may be of no token."""
        return max(self.bytes) + 1

    def text(self, ids: Sequence[int]) -> str:
        """What the tokens read as; a character that is not whole yet is left out, bytes that are of none are U+FFFD."""
        return "".join(self._pieces(ids)[0])

    def place(self, ids: Sequence[int], words: str) -> PlacedWords | None:
        """Find words; None where the tokens don't hold them."""
        pieces, ends = self._pieces(ids)
        # Words that are part of a special token's name are not meant.
        plain = ("\0" * len(piece) if number in self.added else piece for number, piece in zip(ids, pieces, strict=True))
        text = "".join(pieces)
        place = "".join(plain).find(words)
        place = text.find(words) if place < 0 else place
        before = len(text[:place].encode())
        return None if place < 0 else PlacedWords(text[:place], [end - before for end in ends])

    def _pieces(self, ids: Sequence[int]) -> tuple[list[str], list[int]]:
        """Whole characters by the token that completes them, and where each token ends in bytes."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces, ends, size = [], [], 0
        for number in ids:
            pieces.append(decoder.decode(self.bytes[number]))
            size += len(pieces[-1].encode())
            ends.append(size + len(decoder.getstate()[0]))
        return pieces, ends


def match_tokens(student: TokenBytes, teacher: TokenBytes, *, sizes: tuple[int, int]) -> tuple[list[int], list[int]]:
    """List the tokens that stand for the same bytes in both, one by one: of several in one tokenizer, the first.

    Args:
        student: The student's tokens.
        teacher: The teacher's.
        sizes: Rows of the student's and of the teacher's head; ids from there on have no probability.
    """
    mine, theirs = (_first_ids(tokens, size) for tokens, size in zip((student, teacher), sizes, strict=True))
    common = sorted(mine.keys() & theirs.keys(), key=mine.__getitem__)
    return [mine[key] for key in common], [theirs[key] for key in common]


def _first_ids(tokens: TokenBytes, size: int) -> dict[tuple[bool, bytes], int]:
    """Ids by what they stand for; a special token and its name in letters are two things."""
    numbers = sorted((number for number in tokens.bytes if number < size), reverse=True)
    return {(number in tokens.special, tokens.bytes[number]): number for number in numbers}


def _read_letters(name: str) -> bytes:
    """A token of a byte-level tokenizer: a letter for each byte."""
    if all(letter in _LETTERS for letter in name):
        return bytes(_LETTERS[letter] for letter in name)
    return name.encode()


def _read_words(name: str) -> bytes:
    """A token of a tokenizer that writes spaces as U+2581, and bytes without a token as ``<0xE2>``."""
    byte = _FALLBACK.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()


def _byte_letters() -> dict[str, int]:
    """The letters of byte-level tokenizers: bytes that can be printed are themselves, the others follow from U+0100 on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [number for number in range(0x100) if number not in printed]
    return {chr(number): number for number in printed} | {chr(0x100 + i): number for i, number in enumerate(others)}


_LETTERS = _byte_letters()
