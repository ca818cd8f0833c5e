"""CHAIR: which objects of a caption are not in the image? (arXiv:1809.02156)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import Question, QuestionsById
from mmalign.evaluation.benchmark import find_file
from mmalign.evaluation.captions import (
    INSTANCE,
    OBJECT_SETS,
    RECALL,
    SENTENCE,
    CaptionBenchmark,
    caption_item,
    check_asked,
    read_object_sets,
)
from mmalign.evaluation.image_ids import ImageIds
from mmalign.evaluation.items import Item
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
    read_own_synonyms,
    read_synonyms,
    spell_plain,
)
from mmalign.evaluation.rows import read_rows, read_text
from mmalign.evaluation.singularize import singularize
from mmalign.options.evaluate import ChairVariant, EvaluateOptions, Mode

logger = logging.getLogger(__name__)
# OPERA's length, and of the papers that compare with it. A shorter caption names less, and so hallucinates less.
CAPTION_LENGTH = 512


@dataclass(frozen=True)
class Chair(CaptionBenchmark):
    """Images, the objects in each, and how the objects of a caption are found. Both modes are one.

    Attributes:
        words: Word -> object.
        find: Objects that a caption mentions, repeats kept.
        how: "original", "wordnet", or "words" for a closed list.
    """

    name: ClassVar[str] = "chair"
    title: ClassVar[str] = "CHAIR: describing the image"
    source: ClassVar[str] = (
        "synonyms.txt of github.com/LisaAnne/Hallucination, objects by data_tools/coco_objects.py, chair.jsonl; images: COCO val2014"
    )
    averages: ClassVar[Mapping[str, str]] = {
        "chair/sentence": "share of captions",
        "chair/instance": "sums over all captions",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "sentence": Metric("Captions with an absent object", "lower", "share", drawn=True, formula=SENTENCE),
        "instance": Metric("Absent among the named objects", "lower", "share", drawn=True, formula=INSTANCE),
        "recall": Metric("Coverage: present objects named", "higher", "share", drawn=True, formula=RECALL),
        "mentions": Metric("Objects named per caption", formula=ratio("named", "captions")),
    }
    no_questions: ClassVar[str] = "which images to describe is not said: put chair.jsonl (id, image, question) beside synonyms.txt"
    words: Mapping[str, str]
    find: Callable[[str], list[str]]
    how: str

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Chair":
        return load_chair(options.data, variant=options.variant, answers=options.answers)

    def texts(self) -> dict[str, str]:
        """None: any words may ask for a caption."""
        return {}

    def variant(self, *, judged: bool) -> str:
        return self.how

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per caption; it is right where it names no absent object."""
        asked = QuestionsById(self.asked)
        items = []
        for identifier, caption in answers.items():
            named, truth = self.find(caption), self.truths[identifier]
            # Singulars made by rule have no place: words are looked up as they stand, and count where the scorer found their object.
            absent = set(named) - truth
            mentions = find_mentions(caption, self.words) if absent else []
            wrong = tuple((place.start, place.end) for place in mentions if place.name in absent)
            items.append(caption_item(asked[identifier], caption, named=named, truth=truth, wrong=wrong))
        return items


def find_objects(
    caption: str,
    *,
    synonyms: Mapping[str, str],
    double_words: Mapping[str, str],
    variant: ChairVariant,
    phrases: Mapping[str, str] | None = None,
    is_own: bool = False,
) -> list[str]:
    """Find objects in a caption: words made singular by rule (original), or WordNet's lemmas by part of speech.

    Args:
        caption: The text.
        synonyms: Word -> object.
        double_words: CHAIR's table of two words -> what they count as.
        variant: How words become singular.
        phrases: Forms of the list's own words, from ``find_phrases``.
        is_own: Whether the list is none of COCO's: its words are then found as they stand ("glasses" beside "glass"), and a plural that
            WordNet takes for a word of its own ("men") is made singular by rule.
    """
    spelled = tokenize(caption.lower())
    singular = [singularize(word) for word in spelled]
    words = singular if variant == "original" else lemmatize_tagged(spelled)
    if is_own:
        forms = zip(spelled, words, singular, strict=True)
        words = [next((form for form in (as_is, one, by_rule) if form in synonyms), one) for as_is, one, by_rule in forms]
    return name_objects(join_double_words(join_phrases(words, phrases or {}), double_words), synonyms)


def list_forms(word: str, *, variant: ChairVariant, is_own: bool = False) -> list[list[str]]:
    """Return what a word of a list becomes in a caption."""
    words = tokenize(word.lower())
    if variant == "original":
        return [[singularize(one) for one in words], *([words] if is_own else [])]
    # The tagger may take a word for a verb in one sentence and for a noun in another.
    return [lemmatize_nouns(words), lemmatize_tagged(words), words]


def load_chair(source: Path, *, variant: ChairVariant = "original", answers: Path | None = None) -> Chair:
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
    asked = [Question(str(row["id"]), row["image"], row["question"], CAPTION_LENGTH) for row in rows]
    text = read_text(synonyms_file)
    if rows and "truth" in rows[0]:
        truths = {str(row["id"]): frozenset(row["truth"]) for row in rows}
        words = read_synonyms(text, strip=True)
        if not words:
            raise UserError(f"{synonyms_file} names no object; expected one per line: its name, then synonyms, split by ', '")
        check_truths(truths, words, file=questions_file)
        return Chair([questions_file, synonyms_file], truths, asked, words, partial(find_in_closed_list, words=words), "words")
    objects_file = find_file(source, *OBJECT_SETS, what="the objects of the images", answers=answers)
    truths = read_object_sets(objects_file)
    words = read_synonyms(text)
    is_own = not is_cocos(words)
    if is_own:
        own = read_own_synonyms(text)
        words = {word: names[-1] for word, names in own.items()}
        truths = name_truths(truths, words)
        warn_of_unnamed(truths, words, file=objects_file)
        warn_of_shared(own, file=synonyms_file)
    find = partial(
        find_objects,
        synonyms=words,
        double_words=build_double_words(),
        variant=variant,
        phrases=find_phrases(words, partial(list_forms, variant=variant, is_own=is_own)),
        is_own=is_own,
    )
    files = [synonyms_file, objects_file, *([questions_file] if rows else [])]
    if asked:
        known = ImageIds(truths)
        asked = [question._replace(id=known.find(question.id)) for question in asked]
    check_asked(asked, truths, questions=questions_file, objects=objects_file)
    return Chair(files, truths, asked, words, find, variant)


def warn_of_unnamed(truths: Mapping[str, frozenset[str]], words: Mapping[str, str], *, file: Path) -> None:
    """Say which objects of the images no word of the list names: they are never found, and recall is the lower for it."""
    unnamed = sorted(frozenset().union(*truths.values()) - set(words.values()))
    if unnamed:
        logger.warning("%s holds %s, which synonyms.txt does not name: they are never found", file, _first(unnamed, ", "))


def warn_of_shared(words: Mapping[str, Sequence[str]], *, file: Path) -> None:
    """Say which words are of several objects: each counts as the last of them."""
    shared = [f"{word} ({', '.join(names)})" for word, names in words.items() if len(names) > 1]
    if shared:
        logger.warning("%s has words of several objects, which count as the last: %s", file, _first(shared, "; "))


def _first(names: Sequence[str], between: str) -> str:
    return between.join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def name_truths(truths: Mapping[str, frozenset[str]], words: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Call the objects of images as the word list does, which may spell them otherwise, or have what stands there as a synonym."""
    known = set(words.values())
    return {i: frozenset(name if name in known else words.get(spell_plain(name), name) for name in names) for i, names in truths.items()}


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
