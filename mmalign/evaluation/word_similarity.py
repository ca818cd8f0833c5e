"""Are two words near in meaning? AMBER asks spaCy's word vectors; a table made with them, or equality, can stand in."""

import itertools
import json
import logging
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.errors import UserError
from mmalign.files import read_json

logger = logging.getLogger(__name__)
MODEL = "en_core_web_lg"
THRESHOLD = 0.8
TABLE_FILE = "similar_words.json"


class Similarity(NamedTuple):
    """A relation of near words, and the name under which results say what it was.

    Attributes:
        name: "spacy en_core_web_lg 3.8.0", "table similar_words.json", "exact".
        is_near: Whether two words are nearer than AMBER's threshold.
        files: To be hashed with the data.
    """

    name: str
    is_near: Callable[[str, str], bool]
    files: tuple[Path, ...] = ()


def choose_similarity(choice: str, *, folder: Path) -> Similarity:
    """Return what is asked for.

    Args:
        choice: "spacy", "exact", the path of a table, or "auto": spaCy's vectors where they are installed, else a table
            ``similar_words.json`` in ``folder``, else equality with a warning.
        folder: Of the benchmark's files.

    Raises:
        ValueError: If what is asked for is not there.
    """
    if choice == "exact":
        return exact_similarity()
    if choice == "spacy":
        return spacy_similarity(_load_vectors())
    if choice != "auto":
        return read_table(Path(choice))
    try:
        return spacy_similarity(_load_vectors())
    except UserError:
        if (folder / TABLE_FILE).is_file():
            return read_table(folder / TABLE_FILE)
    logger.warning(
        "AMBER's words are compared by equality, for want of word vectors: its generative numbers can't be compared with published ones. "
        "Install them (pip install 'mmalign[amber]'; python -m spacy download %s), or put a table %s beside the data",
        MODEL,
        TABLE_FILE,
    )
    return exact_similarity()


def exact_similarity() -> Similarity:
    """Equal words only."""
    return Similarity("exact", lambda first, second: first == second)


def spacy_similarity(nlp: Any) -> Similarity:
    """By the vectors of a spaCy pipeline, as AMBER's script does: ``nlp(first).similarity(nlp(second)) > 0.8``."""
    document = cache(nlp)

    @cache
    def is_near(first: str, second: str) -> bool:
        return bool(document(first).similarity(document(second)) > THRESHOLD)

    return Similarity(f"spacy {nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}", is_near)


def _load_vectors() -> Any:
    try:
        import spacy

        return spacy.load(MODEL)
    except (ImportError, OSError) as error:
        raise UserError(f"no word vectors: pip install 'mmalign[amber]'; python -m spacy download {MODEL}") from error


def read_table(path: Path) -> Similarity:
    """Read a table of near words: JSON, ``[first, second]`` or ``[first, second, similarity]`` a pair, or first -> second -> similarity.

    Pairs without a number are near, those with one are near above the threshold; both orders count, and a word is near to itself.

    Raises:
        ValueError: If the file is missing or holds something else.
    """
    table = read_json(path)
    try:
        near = {frozenset(pair) for *pair, value in _entries(table) if value > THRESHOLD}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no table of near words; expected JSON: [[first, second, similarity], ...]") from error
    return Similarity(f"table {path.name}", lambda first, second: first == second or frozenset((first, second)) in near, (path,))


def _entries(table: Any) -> Iterable[tuple[str, str, float]]:
    if isinstance(table, dict):
        for first, row in table.items():
            yield from ((first, second, float(value)) for second, value in row.items())
        return
    for first, second, *value in table:
        yield first, second, float(value[0]) if value else 1.0


def write_table(path: Path, words: Iterable[str], similarity: Similarity) -> None:
    """Write the near pairs among some words, so that the vectors are not needed again."""
    pairs = [pair for pair in itertools.combinations(sorted(set(words)), 2) if similarity.is_near(*pair)]
    path.write_text(json.dumps(pairs), encoding="utf-8")
