"""Object HalBench: CHAIR on 300 detailed descriptions, whose objects a language model lists (arXiv:2312.00849)."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.answers import AnswerFormat, Question, QuestionsById, read_answer_file
from mmalign.evaluation.benchmark import find_file, find_question_files
from mmalign.evaluation.captions import (
    INSTANCE,
    OBJECT_SETS,
    RECALL,
    SENTENCE,
    CaptionBenchmark,
    caption_item,
    check_asked,
    label_truth,
    read_object_sets,
)
from mmalign.evaluation.decisions import Decision
from mmalign.evaluation.image_ids import ImageIds, read_coco_id
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Metric, count, ratio
from mmalign.evaluation.nltk_words import lemmatize, lemmatize_nouns, tag, tokenize
from mmalign.evaluation.object_words import build_double_words, join_double_words, name_objects, read_synonyms
from mmalign.evaluation.rows import read_rows, read_text
from mmalign.evaluation.verdicts import UnreadableError, parse_list
from mmalign.evaluation.wording import fill_prompt
from mmalign.options.evaluate import EvaluateOptions, Mode

# RLAIF-V's and LLaVA-MoD's scripts.
DESCRIPTION_LENGTH = 1024
# An answer of no more words than these names nothing, and the judge isn't asked.
SHORT = 3
PROMPT = """You list the objects in an image from what was said about it. Somebody was asked about an image and answered as below. \
Take the answer for true, and list every object that it says can be seen.

List only what the answer names, each by its noun alone, without colour, material, size or number. Leave out what is only guessed, \
compared with or said to be absent. Reply with a JSON list of strings and nothing else, for example ["dog", "traffic light"]; \
reply [] where there is none.

Question: {question}

Answer: {answer}
"""
NAMING = ratio("hallucinating", "naming")
TaggedLemmas = Callable[[str], list[tuple[str, str]]]


@dataclass(frozen=True)
class ObjectHalBench(CaptionBenchmark):
    """Images with their objects, and the descriptions that were asked for.

    Attributes:
        pictures: Images that the question file itself holds, base64, by file name.
        synonyms: Word -> object.
        phrase: Reads a listed phrase: lemmas with their part of speech.
        reader: What ``phrase`` is, for the record.
    """

    name: ClassVar[str] = "object-halbench"
    title: ClassVar[str] = "Object HalBench"
    source: ClassVar[str] = (
        "obj_halbench_300_with_image.jsonl and synonyms_refine.txt of github.com/RLHF-V/RLHF-V, objects by data_tools/coco_objects.py"
    )
    averages: ClassVar[Mapping[str, str]] = {
        "object_halbench/response": "share of descriptions",
        "object_halbench/mention": "sums over all descriptions",
    }
    metrics: ClassVar[Mapping[str, Metric]] = {
        "response": Metric("Descriptions with an absent object, of those that name any", "lower", "share", drawn=True, formula=NAMING),
        "mention": Metric("Absent among the named objects", "lower", "share", drawn=True, formula=INSTANCE),
        "sentence": Metric("Descriptions with an absent object, of all", "lower", "share", formula=SENTENCE),
        "recall": Metric("Coverage: present objects named", "higher", "share", drawn=True, formula=RECALL),
        "average_length": Metric("Words a description", formula=ratio("words", "captions")),
        "unreadable": Metric("Judgements that could not be read", "lower", formula=count("unreadable"), resampled=None),
    }
    judge_wording: ClassVar[str] = PROMPT
    decisions: ClassVar[Mapping[str, Decision]] = {"description": Decision(("absent", "present", "none"), lambda item: _read_named(item))}
    no_questions: ClassVar[str] = "no questions are there: put obj_halbench_300_with_image.jsonl beside synonyms_refine.txt"
    pictures: Mapping[str, str]
    synonyms: Mapping[str, str]
    phrase: TaggedLemmas
    reader: str

    @classmethod
    def load(cls, options: EvaluateOptions) -> "ObjectHalBench":
        return load_object_halbench(options.data, answers=options.answers)

    @property
    def judgement_form(self) -> AnswerFormat:
        """The endpoint's responses in order, or ours; a list may stand as a list."""
        return AnswerFormat(text=("judgement",), row_id=_image_id, normalise=self.known_images.find, read_rows=read_lists)

    def texts(self) -> Mapping[str, str]:
        """The questions, where they are given."""
        return {question.id: question.prompt for question in self.asked}

    def variant(self, *, judged: bool) -> str:
        return f"judge, {self.reader}" if judged else "words"

    @property
    def holds_images(self) -> bool:
        """Where the question file is RLAIF-V's."""
        return bool(self.pictures)

    def write_images(self, folder: Path) -> bool:
        """Decode them to ``image_id.jpg``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            try:
                (folder / name).write_bytes(base64.b64decode(picture))
            except (TypeError, ValueError) as error:
                raise UserError(f"the picture of {name} in {self.files[-1]} is no base64 text: {error}") from error
        return bool(self.pictures)

    def judge_prompts(self, answers: Mapping[str, str], *, template: str | None = None) -> dict[str, str]:
        """Question and answer, of answers that are long enough to name something."""
        questions = {question.id: question.prompt for question in self.asked}
        return {
            i: fill_prompt(template or PROMPT, {"question": questions.get(i, "Describe the image."), "answer": clean(answer)})
            for i, answer in answers.items()
            if len(clean(answer).split()) > SHORT
        }

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """An item a description; it is right where it names no absent object.

        Without judgements objects are found among the answer's words, which gives other levels than published ones. A judgement that is
        no list of strings is counted apart, and the rest is scored (the original asks again up to a hundred times and then stops).

        Raises:
            ValueError: If no judgement can be read.
        """
        double_words = build_own_double_words(self.synonyms)
        lists = read_judged_lists({i: judgements[i] for i in answers if i in judgements}) if judgements is not None else {}
        asked = QuestionsById(self.asked)
        items = []
        for identifier, answer in answers.items():
            question, truth = asked[identifier], self.truths[identifier]
            # What is too short to name anything was not judged.
            phrases = lists.get(identifier, [])
            if phrases is None:
                items.append(make_item(question, answer, label=label_truth(truth), correct=None, values={"unreadable": 1}))
                continue
            text = clean(answer)
            if judgements is None:
                named = find_noun_objects(text, synonyms=self.synonyms, double_words=double_words)
            else:
                named = name_objects(read_phrases(phrases, double_words, self.phrase), self.synonyms)
            item = caption_item(question, answer, named=named, truth=truth)
            items.append(replace(item, values={**item.values, "words": len(text.strip().split(" ")), "unreadable": 0}))
        return items


def _read_named(item: Item) -> str | None:
    """What a description names: an absent object among others, present ones alone, or none; None where the judge could not be read."""
    if "absent" not in item.values:
        return None
    return "absent" if item.values["absent"] else "present" if item.values["named"] else "none"


def clean(answer: str) -> str:
    """Drop the speaker's name that some models begin with."""
    return answer.replace("Assistant:", "").strip()


def build_own_double_words(synonyms: Mapping[str, str]) -> dict[str, str]:
    """Map two words to what they count as: here every synonym of several words is one, where CHAIR has a list."""
    return build_double_words([*(word for word in synonyms if " " in word), "home plate", "train track"])


def find_noun_objects(text: str, *, synonyms: Mapping[str, str], double_words: Mapping[str, str]) -> list[str]:
    """Find COCO's objects among a text's words, each word taken for a noun."""
    return name_objects(join_double_words(lemmatize_nouns(tokenize(text.lower())), double_words), synonyms)


def read_judged_lists(replies: Mapping[str, str]) -> dict[str, list[str] | None]:
    """Read the judge's lists; None where a reply is none.

    Raises:
        ValueError: If none is, with the first ids.
    """
    lists = {identifier: parse_list(reply) for identifier, reply in replies.items()}
    if lists and all(names is None for names in lists.values()):
        shown = "; ".join(f"{identifier}: {reply[:60]!r}" for identifier, reply in list(replies.items())[:5])
        raise UnreadableError(f"none of {len(lists)} judgements is a JSON list of strings: {shown}")
    return lists


def read_phrases(phrases: Sequence[str], double_words: Mapping[str, str], read: TaggedLemmas) -> list[str]:
    """Return what listed phrases name, each once: double words where a phrase holds any, else its runs of nouns."""
    names: list[str] = []
    for phrase in phrases:
        # The article makes the tagger take what follows for a noun.
        tagged = read(f"a {phrase}")
        names += join_double_words([lemma for lemma, _ in tagged], double_words, only=True) or _runs_of_nouns(tagged)
    return list(dict.fromkeys(names))


def _runs_of_nouns(tagged: Sequence[tuple[str, str]]) -> list[str]:
    runs: list[list[str]] = [[]]
    for lemma, label in tagged:
        if label.startswith("NN"):
            runs[-1].append(lemma)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def read_phrase_with_nltk(phrase: str) -> list[tuple[str, str]]:
    """Lemmas (as nouns) and parts of speech by NLTK; its tagger finds no noun in "a puppy", and what is listed is one."""
    tagged = [(lemmatize(word), label) for word, label in tag(tokenize(phrase))]
    if not any(label.startswith("NN") for _, label in tagged):
        tagged[-1] = (tagged[-1][0], "NN")
    return tagged


def read_phrase_with_spacy(nlp: Any, phrase: str) -> list[tuple[str, str]]:
    """Lemmas and parts of speech by a spaCy pipeline."""
    return [(token.lemma_, token.tag_) for token in nlp(phrase)]


def choose_phrase_reader() -> tuple[TaggedLemmas, str]:
    """Return the original's spaCy pipeline where it is installed, else NLTK, and its name."""
    try:
        import spacy

        nlp = spacy.load("en_core_web_trf")
    except (ImportError, OSError):
        return read_phrase_with_nltk, "nltk"
    return partial(read_phrase_with_spacy, nlp), f"spacy en_core_web_trf {nlp.meta['version']}"


def load_object_halbench(source: Path, *, answers: Path | None = None) -> ObjectHalBench:
    """Read a folder: ``synonyms_refine.txt`` (RLAIF-V's), the object sets of COCO's images, and the question file.

    Args:
        source: The folder, or the question file in it.
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If the word list or the object sets are missing.
    """
    synonyms_file = find_file(source, "synonyms_refine.txt", what="Object HalBench's word list")
    objects_file = find_file(source, *OBJECT_SETS, what="the objects of COCO's images", answers=answers)
    files = [synonyms_file, objects_file]
    place = source if source.is_dir() or source.suffix == ".jsonl" else source.parent
    found = find_question_files(place, ["*halbench*.jsonl"], is_question=_is_question, answers=answers)
    rows = []
    if found and (place.is_file() or _is_question(read_rows(found[0])[0])):
        files.append(found[0])
        rows = read_rows(found[0])
    truths = read_object_sets(objects_file)
    known = ImageIds(truths)
    asked = [_read_question(row, known) for row in rows]
    check_asked(asked, truths, questions=files[-1], objects=objects_file)
    pictures = {str(question.image): row["image"] for question, row in zip(asked, rows, strict=True) if row.get("image")}
    synonyms = read_synonyms(read_text(synonyms_file), strip=True)
    phrase, reader = choose_phrase_reader()
    return ObjectHalBench(files, truths, asked, pictures, synonyms, phrase, reader)


def _is_question(row: Mapping[str, Any]) -> bool:
    return {"image_id", "question"} <= set(row) and not {"answer", "text", "response"} & set(row)


def _read_question(row: Mapping[str, Any], known: ImageIds) -> Question:
    identifier = known.find(str(row["image_id"]))
    name = identifier if identifier not in known.names else read_coco_id(identifier)
    if "/" in name or "\\" in name or name.startswith(".") or len(name) > 200:
        # The pictures of the file are written under this name.
        raise UserError(f"image_id is {identifier[:80]!r}; expected an id that can name a file")
    return Question(identifier, f"{name}.jpg", row["question"], DESCRIPTION_LENGTH)


def read_lists(path: Path) -> list[Any]:
    """Read judgements; lists that were parsed already (``extract_objs``, or ``judgement``) are spelled as JSON again.

    Where the original's judge gave none, its ``extract_objs`` is a text that holds no list.
    """
    return [_spell_list(row) for row in read_answer_file(path)]


def _spell_list(row: Any) -> Any:
    if isinstance(row, list):
        return json.dumps(row)
    field = next((key for key in ("judgement", "extract_objs") if isinstance(row, Mapping) and isinstance(row.get(key), list | str)), None)
    return row if field is None else {**row, "judgement": row[field] if isinstance(row[field], str) else json.dumps(row[field])}


def _image_id(row: Mapping[str, Any]) -> str | None:
    return str(row["image_id"]) if "image_id" in row else None
