"""CHAIR: which objects of a caption are not in the image? (arXiv:1809.02156)."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmalign.evaluation.answers import AnswerFormat, Question, read_jsonl, read_records, read_text
from mmalign.evaluation.benchmark import Benchmark, find_file
from mmalign.evaluation.nltk_words import lemmatize_tagged, tokenize
from mmalign.evaluation.object_words import build_double_words, find_mentions, join_double_words, name_objects, read_synonyms
from mmalign.evaluation.singularize import singularize
from mmalign.evaluation.yes_no import Mode, ratio

Variant = Literal["original", "wordnet"]
# COCO has a million annotated objects, in some ten megabytes; a gzip of a few kilobytes can unpack to all memory there is.
_LARGEST = 1 << 30
OBJECT_SETS = ("*objects*.json", "*objects*.json.gz")


@dataclass(frozen=True)
class Chair(Benchmark):
    """Images, the objects in each, and how the objects of a caption are found.

    Attributes:
        truths: Objects by image id.
        asked: The images to describe; empty where only the objects are known, and any image among them may be described.
        words: Word -> object.
        find: Objects that a caption mentions, repeats kept.
        how: "original", "wordnet", or "words" for a closed list.
    """

    name: ClassVar[str] = "chair"
    has_strict: ClassVar[bool] = False
    truths: Mapping[str, frozenset[str]]
    asked: Sequence[Question]
    words: Mapping[str, str]
    find: Callable[[str], list[str]]
    how: str

    @property
    def form(self) -> AnswerFormat:
        """Captions with image_id: rows, or the original's file with imgToEval."""
        return CAPTIONS if self.how != "words" else AnswerFormat(text=("caption",))

    def questions(self) -> list[Question]:
        """The images of ``chair.jsonl``."""
        if not self.asked:
            raise ValueError("which images to describe is not said: put chair.jsonl (id, image, question) beside synonyms.txt")
        return list(self.asked)

    def required(self) -> list[str]:
        """The images asked for, or none in particular."""
        return [question.id for question in self.asked]

    def known(self) -> Container[str]:
        """The images whose objects are known; those asked for, where it is said which."""
        return {question.id for question in self.asked} or self.truths

    def variant(self, *, judged: bool) -> str:
        """How objects are found."""
        return self.how

    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Compute ``sentence``, ``instance`` and ``recall`` as fractions, and ``mentions`` a caption; both modes are one."""
        mentions = {identifier: self.find(caption) for identifier, caption in answers.items()}
        return {f"chair/{name}": value for name, value in count_hallucinations(mentions, self.truths).items()}


def count_hallucinations(mentions: Mapping[str, Sequence[str]], truths: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Compute CHAIR with coverage, so that silence is not rewarded.

    Args:
        mentions: Objects named in each caption, by image id.
        truths: Objects in each image.

    Returns:
        ``sentence``: captions with an absent object / captions; ``instance``: absent mentions / mentions;
        ``recall``: distinct present objects named / objects in the images; ``mentions``: mentions a caption. 0 / 0 is 0.
    """
    absent = {i: [name for name in names if name not in truths[i]] for i, names in mentions.items()}
    num_mentions = sum(map(len, mentions.values()))
    return {
        "sentence": ratio(sum(map(bool, absent.values())), len(mentions)),
        "instance": ratio(sum(map(len, absent.values())), num_mentions),
        "recall": ratio(sum(len(truths[i] & set(names)) for i, names in mentions.items()), sum(len(truths[i]) for i in mentions)),
        "mentions": ratio(num_mentions, len(mentions)),
    }


def find_objects(caption: str, *, synonyms: Mapping[str, str], double_words: Mapping[str, str], variant: Variant) -> list[str]:
    """Find COCO's objects in a caption: words made singular by rule (original), or WordNet's lemmas by part of speech."""
    words = tokenize(caption.lower())
    words = [singularize(word) for word in words] if variant == "original" else lemmatize_tagged(words)
    return name_objects(join_double_words(words, double_words), synonyms)


def load_chair(source: Path, *, variant: Variant = "original") -> Chair:
    """Read a folder with CHAIR's ``synonyms.txt`` and the object sets of COCO's images, or with a world's ``chair.jsonl``.

    The object sets (``*objects*.json`` or ``.json.gz``) map image ids to objects. A ``chair.jsonl`` (id, image, question)
    beside them says which images are to be described; where its rows hold ``truth``, the words are a closed list.

    Raises:
        ValueError: If a file is missing, or an image's truth is not in the word list.
    """
    folder = source if source.is_dir() else source.parent
    synonyms_file = find_file(source, "synonyms.txt", what="the word list (one line an object: its name, then synonyms, split by ', ')")
    questions_file = folder / "chair.jsonl"
    rows = read_jsonl(questions_file) if questions_file.is_file() else []
    asked = [Question(str(row["id"]), row["image"], row["question"]) for row in rows]
    text = synonyms_file.read_text(encoding="utf-8")
    if rows and "truth" in rows[0]:
        truths = {str(row["id"]): frozenset(row["truth"]) for row in rows}
        words = read_synonyms(text, strip=True)
        if not words:
            raise ValueError(f"{synonyms_file} names no object; expected one a line: its name, then synonyms, split by ', '")
        check_truths(truths, words, file=questions_file)
        return Chair([questions_file, synonyms_file], truths, asked, words, partial(find_in_closed_list, words=words), "words")
    objects_file = find_file(source, *OBJECT_SETS, what="the objects of the images")
    words = read_synonyms(text)
    find = partial(find_objects, synonyms=words, double_words=build_double_words(), variant=variant)
    files = [synonyms_file, objects_file, *([questions_file] if rows else [])]
    asked = [question._replace(id=read_coco_id(question.id)) for question in asked]
    return Chair(files, read_object_sets(objects_file), asked, words, find, variant)


def check_truths(truths: Mapping[str, frozenset[str]], words: Mapping[str, str], *, file: Path) -> None:
    """Refuse objects that no word names: they could never be mentioned.

    Raises:
        ValueError: With the first such image.
    """
    names = set(words.values())
    for identifier, truth in truths.items():
        if not truth <= names:
            raise ValueError(f"{file}: {identifier} holds {', '.join(sorted(truth - names))}, which synonyms.txt does not name")


def find_in_closed_list(caption: str, *, words: Mapping[str, str]) -> list[str]:
    """Find objects whose every word is in the list."""
    return [mention.name for mention in find_mentions(caption, words)]


def read_object_sets(path: Path) -> dict[str, frozenset[str]]:
    """Read image id -> names of its objects, from JSON, gzipped or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        sets = {read_coco_id(identifier): frozenset(names) for identifier, names in json.loads(text).items()}
    except (AttributeError, EOFError, OSError, RecursionError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} holds no object sets ({error}); expected a JSON object of image id -> names of objects") from error
    if odd := next((i for i, names in sets.items() if not all(isinstance(name, str) for name in names)), None):
        raise ValueError(f"{path}: the objects of image {odd} are not all text")
    return sets


def read_coco_id(text: str) -> str:
    """Return COCO's number as text: of 40468, 000000040468 or COCO_val2014_000000040468.jpg."""
    found = re.fullmatch(r"(?:COCO_(?:train|val)2014_)?0*(\d+)(?:\.jpg)?", text)
    return text if found is None else found.group(1)


def read_captions(path: Path) -> list[Any]:
    """Read rows, or the original's caption file, which keeps them under imgToEval."""
    rows = read_records(path) if not _is_mapping(path) else [json.loads(read_text(path))]
    if len(rows) == 1 and isinstance(rows[0], Mapping) and "imgToEval" in rows[0]:
        entries: Iterable[Any] = rows[0]["imgToEval"].values()
        rows = list(entries)
    # Where a row has both, as in COCO's caption files, its id is the caption's.
    return [{**row, "id": row["image_id"]} if isinstance(row, Mapping) and "image_id" in row else row for row in rows]


def _is_mapping(path: Path) -> bool:
    """Whether a file is one JSON object over several lines, and so no JSON lines."""
    if not path.is_file():
        return False
    first = read_text(path).partition("\n")[0].strip()
    return first.startswith("{") and not first.endswith("}")


def _image_id(row: Mapping[str, Any]) -> str | None:
    return str(row["image_id"]) if "image_id" in row else None


CAPTIONS = AnswerFormat(text=("caption", "text", "answer"), row_id=_image_id, normalise=read_coco_id, read_rows=read_captions)
