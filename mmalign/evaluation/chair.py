"""CHAIR: which objects of a caption are not in the image? (arXiv:1809.02156)."""

import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, Question, QuestionsById, read_answer_file, spread
from mmalign.evaluation.benchmark import Benchmark, find_file
from mmalign.evaluation.image_ids import ImageIds, is_coco_file
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Metric, ratio
from mmalign.evaluation.nltk_words import lemmatize_nouns, lemmatize_tagged, tokenize
from mmalign.evaluation.object_words import (
    build_double_words,
    find_mentions,
    find_phrases,
    is_cocos,
    join_double_words,
    join_phrases,
    name_objects,
    read_synonyms,
)
from mmalign.evaluation.rows import read_rows, read_text
from mmalign.evaluation.singularize import singularize
from mmalign.evaluation.yes_no import Mode
from mmalign.options.evaluate import EvaluateOptions

logger = logging.getLogger(__name__)
Variant = Literal["original", "wordnet"]
# COCO has a million annotated objects, in some ten megabytes; a gzip of a few kilobytes can unpack to all memory there is.
_LARGEST = 1 << 30
# OPERA's length, and of the papers that compare with it. A shorter caption names less, and so hallucinates less.
CAPTION_LENGTH = 512
# Fields that may name a row's image, the first one that is known.
_IMAGE_FIELDS = ("image_id", "id", "image", "image_path", "file_name", "question_id")
OBJECT_SETS = ("*objects*.json", "*objects*.json.gz")


# Of captions with coverage, so that silence is not rewarded.
SENTENCE, INSTANCE, RECALL = ratio("hallucinating", "captions"), ratio("absent", "named"), ratio("covered", "present")


@dataclass(frozen=True)
class Chair(Benchmark):
    """Images, the objects in each, and how the objects of a caption are found. Both modes are one.

    Attributes:
        truths: Objects by image id.
        asked: The images to describe; empty where only the objects are known, and any image among them may be described.
        words: Word -> object.
        find: Objects that a caption mentions, repeats kept.
        how: "original", "wordnet", or "words" for a closed list.
    """

    name: ClassVar[str] = "chair"
    title: ClassVar[str] = "CHAIR: describing the image"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "sentence": Metric("Captions with an absent object", "lower", "share", drawn=True, formula=SENTENCE),
        "instance": Metric("Absent among the named objects", "lower", "share", drawn=True, formula=INSTANCE),
        "recall": Metric("Coverage: present objects named", "higher", "share", drawn=True, formula=RECALL),
        "mentions": Metric("Objects named per caption", formula=ratio("named", "captions")),
    }
    has_strict: ClassVar[bool] = False
    truths: Mapping[str, frozenset[str]]
    asked: Sequence[Question]
    words: Mapping[str, str]
    find: Callable[[str], list[str]]
    how: str

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Chair":
        """Read the words and the objects of the images."""
        return load_chair(options.data, variant=options.variant, answers=options.answers)

    @property
    def form(self) -> AnswerFormat:
        """Captions by image: rows of image_id, image or a path, one object of image -> caption, or the original's file with imgToEval."""
        return caption_format(self.known_images)

    @cached_property
    def known_images(self) -> ImageIds:
        """The images whose objects are known."""
        return ImageIds(self.truths)

    def questions(self) -> list[Question]:
        """The images of ``chair.jsonl``."""
        if not self.asked:
            raise UserError("which images to describe is not said: put chair.jsonl (id, image, question) beside synonyms.txt")
        return [question._replace(max_new_tokens=CAPTION_LENGTH) for question in self.asked]

    def required(self) -> list[str]:
        """The images asked for, or none in particular."""
        return [question.id for question in self.asked]

    def known(self) -> Container[str]:
        """The images whose objects are known; those asked for, where it is said which."""
        return {question.id for question in self.asked} or self.truths

    def texts(self) -> dict[str, str]:
        """None: any words may ask for a caption."""
        return {}

    def variant(self, *, judged: bool) -> str:
        """How objects are found."""
        return self.how

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """An item a caption; it is right where it names no absent object."""
        asked = QuestionsById(self.asked)
        items = []
        for identifier, caption in answers.items():
            # Places are known where words are looked up as they stand; singulars made by rule have none.
            places = find_mentions(caption, self.words) if self.how == "words" else []
            wrong = tuple((place.start, place.end) for place in places if place.name not in self.truths[identifier])
            items.append(caption_item(asked[identifier], caption, named=self.find(caption), truth=self.truths[identifier], wrong=wrong))
        return items


def caption_item(
    question: Question, caption: str, *, named: Sequence[str], truth: frozenset[str], wrong: tuple[tuple[int, int], ...] = ()
) -> Item:
    """Return the item of a caption.

    Args:
        question: What asked for it.
        caption: What was said.
        named: Objects that it names, repeats kept.
        truth: Objects in the image.
        wrong: Where absent objects stand in it, where that is known.
    """
    absent = sum(name not in truth for name in named)
    return make_item(
        question,
        caption,
        label=", ".join(sorted(truth)) or "nothing",
        correct=not absent,
        values={
            "captions": 1,
            "naming": int(bool(named)),
            "hallucinating": int(absent > 0),
            "named": len(named),
            "absent": absent,
            "covered": len(truth & set(named)),
            "present": len(truth),
        },
        wrong=wrong,
    )


def find_objects(
    caption: str,
    *,
    synonyms: Mapping[str, str],
    double_words: Mapping[str, str],
    variant: Variant,
    phrases: Mapping[str, str] | None = None,
) -> list[str]:
    """Find objects in a caption: words made singular by rule (original), or WordNet's lemmas by part of speech.

    Args:
        caption: The text.
        synonyms: Word -> object.
        double_words: CHAIR's table of two words -> what they count as.
        variant: How words become singular.
        phrases: Forms of the list's own words, from ``find_phrases``.
    """
    words = tokenize(caption.lower())
    words = [singularize(word) for word in words] if variant == "original" else lemmatize_tagged(words)
    return name_objects(join_double_words(join_phrases(words, phrases or {}), double_words), synonyms)


def list_forms(word: str, *, variant: Variant) -> list[list[str]]:
    """Return what a word of a list becomes in a caption."""
    words = tokenize(word.lower())
    if variant == "original":
        return [[singularize(one) for one in words]]
    # The tagger may take a word for a verb in one sentence and for a noun in another.
    return [lemmatize_nouns(words), lemmatize_tagged(words), words]


def load_chair(source: Path, *, variant: Variant = "original", answers: Path | None = None) -> Chair:
    """Read a folder with CHAIR's ``synonyms.txt`` and the object sets of COCO's images, or with a world's ``chair.jsonl``.

    The object sets (``*objects*.json`` or ``.json.gz``) map image ids to objects. A ``chair.jsonl`` (id, image, question)
    beside them says which images are to be described; where its rows hold ``truth``, the words are a closed list.

    Args:
        source: The folder, or a file in it.
        variant: How words become singular.
        answers: The captions to be scored, which may lie in the same folder.

    Raises:
        ValueError: If a file is missing, or an image's truth is not in the word list.
    """
    folder = source if source.is_dir() else source.parent
    synonyms_file = find_file(source, "synonyms.txt", what="the word list (one line an object: its name, then synonyms, split by ', ')")
    questions_file = folder / "chair.jsonl"
    rows = read_rows(questions_file) if questions_file.is_file() else []
    asked = [Question(str(row["id"]), row["image"], row["question"]) for row in rows]
    text = read_text(synonyms_file)
    if rows and "truth" in rows[0]:
        truths = {str(row["id"]): frozenset(row["truth"]) for row in rows}
        words = read_synonyms(text, strip=True)
        if not words:
            raise UserError(f"{synonyms_file} names no object; expected one a line: its name, then synonyms, split by ', '")
        check_truths(truths, words, file=questions_file)
        return Chair([questions_file, synonyms_file], truths, asked, words, partial(find_in_closed_list, words=words), "words")
    objects_file = find_file(source, *OBJECT_SETS, what="the objects of the images", answers=answers)
    truths = read_object_sets(objects_file)
    words = read_synonyms(text)
    if not is_cocos(words):
        words = {word.lower(): name for word, name in read_synonyms(text, strip=True).items()}
        warn_of_unnamed(truths, words, file=objects_file)
    find = partial(
        find_objects,
        synonyms=words,
        double_words=build_double_words(),
        variant=variant,
        phrases=find_phrases(words, partial(list_forms, variant=variant)),
    )
    files = [synonyms_file, objects_file, *([questions_file] if rows else [])]
    known = ImageIds(truths)
    asked = [question._replace(id=known.find(question.id)) for question in asked]
    return Chair(files, truths, asked, words, find, variant)


def warn_of_unnamed(truths: Mapping[str, frozenset[str]], words: Mapping[str, str], *, file: Path) -> None:
    """Say which objects of the images no word of the list names: they are never found, and recall is the lower for it."""
    unnamed = sorted(frozenset().union(*truths.values()) - set(words.values()))
    if unnamed:
        more = f" and {len(unnamed) - 10} more" if len(unnamed) > 10 else ""
        logger.warning("%s holds %s%s, which synonyms.txt does not name: they are never found", file, ", ".join(unnamed[:10]), more)


def check_truths(truths: Mapping[str, frozenset[str]], words: Mapping[str, str], *, file: Path) -> None:
    """Refuse objects that no word names: they could never be mentioned.

    Raises:
        ValueError: With the first such image.
    """
    names = set(words.values())
    for identifier, truth in truths.items():
        if not truth <= names:
            raise UserError(f"{file}: {identifier} holds {', '.join(sorted(truth - names))}, which synonyms.txt does not name")


def find_in_closed_list(caption: str, *, words: Mapping[str, str]) -> list[str]:
    """Find objects whose every word is in the list."""
    return [mention.name for mention in find_mentions(caption, words)]


def read_object_sets(path: Path) -> dict[str, frozenset[str]]:
    """Read image id -> names of its objects, from JSON, gzipped or not.

    Raises:
        ValueError: If the file is damaged or of another form, or an id stands in it twice.
    """
    refuse_pointer(path)
    expected = "expected a JSON object of image id -> names of objects"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} can't be unpacked: {error}; {expected}") from error
    if len(text) > _LARGEST:
        raise UserError(f"{path} holds no object sets (more than {_LARGEST:,} bytes); {expected}")
    try:
        sets = json.loads(text, object_pairs_hook=_unique)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} holds no object sets ({error}); {expected}") from error
    if not isinstance(sets, dict) or not all(isinstance(names, list) for names in sets.values()):
        raise UserError(f"{path} holds no object sets; {expected}")
    if odd := next((i for i, names in sets.items() if not all(isinstance(name, str) for name in names)), None):
        raise UserError(f"{path}: the objects of image {odd} are not all text")
    return {identifier: frozenset(names) for identifier, names in sets.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    doubled = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if doubled:
        raise UserError(f"{doubled[0]!r} stands there twice")
    return dict(pairs)


def caption_format(known: ImageIds) -> AnswerFormat:
    """How captions of known images are read."""
    return AnswerFormat(
        text=("caption", "text", "answer"), row_id=lambda row: None, normalise=known.find, read_rows=partial(read_captions, known=known)
    )


def read_captions(path: Path, *, known: ImageIds) -> list[Any]:
    """Read rows, one object of image -> caption, or the original's caption file, which keeps rows under imgToEval."""
    rows = read_answer_file(path)
    if len(rows) == 1 and isinstance(rows[0], Mapping) and isinstance(rows[0].get("imgToEval"), Mapping):
        entries: Iterable[Any] = rows[0]["imgToEval"].values()
        rows = spread(list(entries))
    return [_name_image(row, known) if isinstance(row, Mapping) else row for row in rows]


def _name_image(row: Mapping[str, Any], known: ImageIds) -> Mapping[str, Any]:
    """Give a row its image as its id. In COCO's caption files the id is the caption's, in LLaVA's rows question_id is a number."""
    fields = [name for name in _IMAGE_FIELDS if isinstance(row.get(name), str | int)]
    if not fields:
        return row
    # The file of a COCO image says more than a number beside it, which may only count.
    first = [name for name in fields if name != "image_id" and is_coco_file(row[name])] if "image_id" not in fields else []
    order = [*first, *fields]
    field = next((name for name in order if known.find(str(row[name])) in known.names), order[0])
    return {**row, "id": str(row[field])}
