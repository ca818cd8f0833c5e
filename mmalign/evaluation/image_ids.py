"""Which image does an id, a file name or a path mean?"""

import re
from collections.abc import Iterable
from posixpath import splitext
from typing import Any

from mmalign.errors import UserError

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?0*(\d+)")
_COCO_FILE = re.compile(r"COCO_(?:train|val|test)20\d\d_0*\d+", re.IGNORECASE)


def read_coco_id(text: str) -> str:
    """Return COCO's number as text: of 40468, 000000040468, COCO_val2014_000000040468.jpg or a path to it. Other ids are left alone."""
    found = _COCO.fullmatch(_stem(text))
    return text if found is None else found.group(1)


def is_coco_file(text: Any) -> bool:
    """Whether a text is the name of a COCO image, or a path to one."""
    return isinstance(text, str) and _COCO_FILE.fullmatch(_stem(text)) is not None


class ImageIds:
    """The known images, and what people write for them: file names, paths, numbers with zeros before them."""

    def __init__(self, names: Iterable[str]) -> None:
        """Index them.

        Args:
            names: Ids as the data write them.
        """
        self.names = dict.fromkeys(names)
        self._stems: dict[str, list[str]] = {}
        self._numbers: dict[str, list[str]] = {}
        for name in self.names:
            self._stems.setdefault(_stem(name), []).append(name)
            self._numbers.setdefault(read_coco_id(name), []).append(name)

    def find(self, text: str) -> str:
        """Return the known image's id; the text itself, or its COCO number, where none is meant.

        Raises:
            ValueError: If it may be any of several: their ids differ in what the text leaves out.
        """
        for exact in (text, _last(text)):
            if exact in self.names:
                return exact
        for meant in (self._stems.get(_stem(text), []), self._numbers.get(read_coco_id(text), [])):
            if len(meant) > 1:
                raise UserError(f"image {text!r} may be any of {', '.join(meant[:5])}; write the id as the object sets do")
            if meant:
                return meant[0]
        return read_coco_id(text)


def _last(text: str) -> str:
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _stem(text: str) -> str:
    last = _last(text)
    # As pathlib does, which takes ten times as long: word lists come with the objects of 123,000 images.
    stem, ending = splitext(last)
    return stem if ending.lower() in _ENDINGS else last
