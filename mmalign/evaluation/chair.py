"""CHAIR: which objects of a caption are not in the image? (arXiv:1809.02156), on word lists that name every object."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmalign.evaluation.answers import Question, check_ids, read_jsonl


@dataclass(frozen=True)
class ChairImage:
    """One image to describe, and the objects in it."""

    id: str
    image: str
    question: str
    truth: frozenset[str]

    def as_question(self) -> Question:
        """What a model is asked."""
        return Question(self.id, self.image, self.question)


class Mention(NamedTuple):
    """An object word in a caption, and where it stands."""

    name: str
    start: int
    end: int


def load_chair(source: Path) -> tuple[list[ChairImage], dict[str, str], list[Path]]:
    """Read a folder with ``chair.jsonl`` (id, image, question, truth) and ``synonyms.txt`` (CHAIR's format).

    Returns:
        The images, the word table (word to canonical name), and the files.

    Raises:
        ValueError: If a file is missing, or an image's truth is not in the word list.
    """
    files = [source / "chair.jsonl", source / "synonyms.txt"]
    rows = read_jsonl(files[0])
    if not files[1].is_file():
        raise ValueError(f"file not found: {files[1]}; one line an object: its name, then synonyms, split by ', '")
    words = read_synonyms(files[1].read_text(encoding="utf-8"))
    names = set(words.values())
    for row in rows:
        unknown = set(row["truth"]) - names
        if unknown:
            raise ValueError(f"{files[0]}: {row['id']} holds {', '.join(sorted(unknown))}, which synonyms.txt does not name")
    images = [ChairImage(str(row["id"]), row["image"], row["question"], frozenset(row["truth"])) for row in rows]
    return images, words, files


def read_synonyms(text: str) -> dict[str, str]:
    """Map each word to the first one of its line."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",") if word.strip()]
        table |= {word.lower(): words[0] for word in words}
    return table


def find_mentions(caption: str, words: Mapping[str, str]) -> list[Mention]:
    """Find object words in a caption: whole words in any case, singular or plural, the longest where they overlap."""
    forms = {form: name for word, name in words.items() for form in (word, word + "s", word + "es")}
    pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return [Mention(forms[m.group().lower()], m.start(), m.end()) for m in re.finditer(rf"\b({pattern})\b", caption, re.IGNORECASE)]


def score_chair(
    images: Sequence[ChairImage], answers: Mapping[str, str], words: Mapping[str, str], *, allow_partial: bool = False
) -> dict[str, float]:
    """Compute CHAIR with coverage, so that silence is not rewarded.

    Returns:
        ``chair/sentence``: captions with a wrong object / captions; ``chair/instance``: wrong mentions / mentions;
        ``chair/recall``: distinct right objects / objects in the images; ``chair/mentions``: mentions a caption.

    Raises:
        ValueError: If ids don't match.
    """
    check_ids([image.id for image in images], answers, allow_partial=allow_partial)
    answered = [image for image in images if image.id in answers]
    mentions = wrong = captions_wrong = covered = 0
    for image in answered:
        names = [mention.name for mention in find_mentions(answers[image.id], words)]
        hallucinated = [name for name in names if name not in image.truth]
        mentions += len(names)
        wrong += len(hallucinated)
        captions_wrong += bool(hallucinated)
        covered += len(image.truth & set(names))
    objects = sum(len(image.truth) for image in answered)
    return {
        "chair/sentence": captions_wrong / len(answered),
        "chair/instance": wrong / mentions if mentions else 0.0,
        "chair/recall": covered / objects if objects else 0.0,
        "chair/mentions": mentions / len(answered),
    }
