"""What the benchmarks of captions share: images with known objects, how captions are read, and what one adds."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, Question, read_answer_file, spread
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.image_ids import ImageIds, is_coco_file
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import ratio
from mmalign.evaluation.saved_rows import MODEL_FIELDS

# COCO has a million annotated objects, in some ten megabytes; a gzip of a few kilobytes can unpack to all memory there is.
_LARGEST = 1 << 30
# Fields that may name a row's image, the first one that is known.
_IMAGE_FIELDS = ("image_id", "id", "image", "image_path", "file_name", "question_id")
OBJECT_SETS = ("*objects*.json", "*objects*.json.gz")
# Of captions with coverage, so that silence is not rewarded.
SENTENCE, INSTANCE, RECALL = ratio("hallucinating", "captions"), ratio("absent", "named"), ratio("covered", "present")


@dataclass(frozen=True)
class CaptionBenchmark(Benchmark):
    """Captions of images whose objects are known. Both modes are one.

    Attributes:
        truths: Objects by image id.
        asked: The images to describe; empty where only the objects are known, and any image among them may be described.
    """

    has_strict: ClassVar[bool] = False
    # Said where a model is to be asked and no question is there.
    no_questions: ClassVar[str]
    truths: Mapping[str, frozenset[str]]
    asked: Sequence[Question]

    def questions(self) -> list[Question]:
        if not self.asked:
            raise UserError(self.no_questions)
        return list(self.asked)

    def required(self) -> list[str]:
        """Return the images asked for, or none in particular."""
        return [question.id for question in self.asked]

    def known(self) -> Container[str]:
        """Return the images whose objects are known; those asked for, where it is said which."""
        return {question.id for question in self.asked} or self.truths

    @property
    def form(self) -> AnswerFormat:
        """Captions by image: rows of image_id, image or a path, one object of image -> caption, or the original's file with imgToEval."""
        known = self.known_images
        text = (*MODEL_FIELDS, "text", "answer")
        return AnswerFormat(text=text, normalise=known.find, read_rows=partial(read_captions, known=known))

    @cached_property
    def known_images(self) -> ImageIds:
        """The images whose objects are known."""
        return ImageIds(self.truths)


def label_truth(truth: frozenset[str]) -> str:
    """Say what is in an image."""
    return ", ".join(sorted(truth)) or "nothing"


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
        label=label_truth(truth),
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


def check_asked(asked: Sequence[Question], truths: Mapping[str, frozenset[str]], *, questions: Path, objects: Path) -> None:
    """Refuse questions about images whose objects nobody knows.

    Raises:
        ValueError: With the first of them.
    """
    if lacking := [question.id for question in asked if question.id not in truths]:
        raise UserError(f"{questions} asks about {len(lacking)} images whose objects {objects} does not hold (first: {lacking[0]})")


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
