"""Verdicts on rows, kept beside the data sets that ``datasets`` keeps, so that the same rows are checked once and not by every run.

They are good for the same data files, the same way of reading them, the same code, and image files that are as they were.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from mmalign.data.images import FileState, find_state
from mmalign.errors import UserError
from mmalign.files import hash_file, read_json_object, write_whole
from mmalign.options.rows import AnswerEnd, RowOptions

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("datasets", "pillow", "tokenizers", "transformers")


class Verdict(NamedTuple):
    """What was found of one row."""

    row: int
    """Its place in the data."""
    id: str
    reason: str | None
    """Why it can't be used; None where it can."""
    files: Mapping[str, FileState] = {}
    """The image files that were looked for."""


@dataclass(frozen=True)
class KeptVerdicts:
    """The verdicts on the rows of one data set, in a file named by all that they depend on but image files."""

    key: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The file, whether it is there or not."""
        text = json.dumps({**self.key, "code": _describe_code()}, sort_keys=True)
        return Path(datasets.config.HF_DATASETS_CACHE) / "mmalign_checked" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self) -> list[Verdict] | None:
        """Return the verdicts on broken rows; None where rows must be checked: nothing is kept, or an image file is another one now."""
        try:
            held = read_json_object(self.path)
        except UserError:
            # Not there, or damaged: then it is written anew.
            return None
        if any(state != (None if (found := find_state(path)) is None else list(found)) for path, state in held["files"].items()):
            return None
        return [Verdict(*broken) for broken in held["broken"]]

    def write(self, broken: Iterable[Verdict], files: Mapping[str, FileState]) -> None:
        """Keep the verdicts on broken rows, and how image files were; a disk that can't hold them costs the next run its time."""
        text = json.dumps({"broken": [verdict[:3] for verdict in broken], "files": files})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text)
        except OSError as error:
            print(f"the next run will check the rows again, because verdicts can't be kept in {self.path}: {error}")


@cache
def _describe_code() -> dict[str, str]:
    """Name the code that decides what is found: this package's own, and the libraries that read images and text."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)} {hash_file(path)}\n".encode())
    return {"mmalign": digest.hexdigest(), **{name: version(name) for name in _LIBRARIES}}


def describe_reading(processor: Any, options: RowOptions, *, answer_end: AnswerEnd) -> dict[str, Any]:
    """Name all that decides how a row's text and images are read."""
    return {
        "processor": digest_processor(processor),
        "max_length": options.max_length,
        "answer_end": answer_end,
        "image_root": describe_root(options.image_root),
    }


def digest_processor(processor: Any) -> str:
    """Hash a processor as it is in memory, its chat template included."""
    parts = [type(processor).__qualname__, processor.chat_template, processor.tokenizer.backend_tokenizer.to_str(), processor.to_dict()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def describe_root(root: Path | None) -> list[str] | None:
    """Name the image root: as it stands in reasons, and where it is."""
    return None if root is None else [str(root), str(root.resolve())]
