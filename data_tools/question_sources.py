"""Where questions that test responses come from: the objects that they name, the model itself, or a file."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_tools.asking import Asker
from data_tools.question_checks import Check
from data_tools.sampling import Sampler
from data_tools.scoring import Sampled
from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.object_words import find_mentions
from mmalign.evaluation.rows import read_jsonl
from mmalign.evaluation.wording import fill_prompt

logger = logging.getLogger(__name__)

READ = "Description of an image: {response}\n\nQuestion: {question}\nBy the description alone, answer yes or no."
WRITE = """A description of this image: {response}

Write {number} short questions about the image that can be answered with yes or no and that test whether the description is true. One \
question per line, nothing else."""


class Checks(Protocol):
    """Makes the questions about each image, and finds what the responses say to them."""

    named_only: bool
    """Whether a response that does not say yes says nothing."""

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[Check]]:
        """Return the questions of each item, not yet asked."""
        ...


class ObjectChecks:
    """Asks whether each object is there that any of the responses names."""

    named_only = True

    def __init__(self, words: Mapping[str, str]) -> None:
        """Hold the word table: word to canonical name."""
        self.words = words

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[Check]]:
        """See ``Checks``."""
        return [self._of(item) for item in items]

    def _of(self, item: Sampled) -> list[Check]:
        named = [{mention.name for mention in find_mentions(response, self.words)} for response in item.responses]
        return [Check(object_question(name), [name in names for names in named]) for name in sorted(set().union(*named))]


class WrittenChecks:
    """Questions that the model writes about each response, or that a file gives; what a response says is read from its text alone."""

    named_only = False

    def __init__(self, ask: Asker, write: "Writer | FileQuestions") -> None:
        """Hold what answers by a text, and what the questions are from."""
        self.ask, self.write = ask, write

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[Check]]:
        """See ``Checks``."""
        questions = self.write(items)
        asked = [
            Question(check_id(i, j, text), None, fill_prompt(READ, {"response": response, "question": text}))
            for i, item in enumerate(items)
            for j, response in enumerate(item.responses)
            for text in questions[i]
        ]
        found = self.ask(asked, file=folder / "by_text.jsonl")
        said = {name: None if yes is None else yes > 0.5 for name, yes in found.items()}
        return [
            [Check(text, [said.get(check_id(i, j, text)) for j in range(len(item.responses))]) for text in questions[i]]
            for i, item in enumerate(items)
        ]


class Writer:
    """Has the model write questions about each response while it sees the image, at temperature 1."""

    def __init__(self, sampler: Sampler, *, number: int, image_root: Path) -> None:
        """Hold a sampler of one response, and how many questions to ask for."""
        self.sampler, self.number, self.root = sampler, number, image_root

    def __call__(self, items: Sequence[Sampled]) -> list[list[str]]:
        """Return the questions of each item, each once; none about a response that the model can't read."""
        asked, seeds, owners = [], [], []
        for i, item in enumerate(items):
            for response in dict.fromkeys(item.responses):
                prompt = fill_prompt(WRITE, {"response": response, "number": str(self.number)})
                try:
                    asked.append(self.sampler.read(prompt, load_image(item.question.image, root=self.root)))
                except UserError as error:
                    logger.warning("no questions about a response to %s: %s", item.question.id, error)
                    continue
                seeds.append(_seed(item.question.id, prompt))
                owners.append(i)
        written: list[dict[str, None]] = [{} for _ in items]
        texts = self.sampler(asked, seeds=seeds) if asked else []
        for i, (text,) in zip(owners, texts, strict=True):
            written[i] |= dict.fromkeys(read_questions(text)[: self.number])
        return [list(texts) for texts in written]


class FileQuestions:
    """Questions of a JSONL file: ``question``, and the ``image`` that it is of, or none for all images."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ValueError: If a row has no question.
        """
        self.rows = read_jsonl(path)
        for number, row in enumerate(self.rows, start=1):
            if not isinstance(row.get("question"), str) or not row["question"].strip():
                raise UserError(f"{path}, row {number} has keys {', '.join(row)}; expected question (text), and perhaps image")

    def __call__(self, items: Sequence[Sampled]) -> list[list[str]]:
        """Return the questions of each item, each once."""
        of_image = [[row["question"] for row in self.rows if row.get("image") in (None, item.question.image)] for item in items]
        return [list(dict.fromkeys(texts)) for texts in of_image]


def object_question(name: str) -> str:
    """Ask whether an object is there."""
    return f"Is there {'an' if name[:1].lower() in 'aeiou' else 'a'} {name} in the image?"


def read_questions(text: str) -> list[str]:
    """Read the questions of a written list: what ends with a question mark, without its number or dash, each once."""
    lines = [re.sub(r"^\s*(?:\d+[.)]|[-*])\s*", "", line).strip() for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.endswith("?")))


def check_id(item: int, response: int, question: str) -> str:
    """Name a question about a response by its text too: answers that a stopped run left must not meet other questions."""
    return f"{item}/{response}/{hashlib.sha256(question.encode()).hexdigest()[:16]}"


def _seed(identifier: str, prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps([identifier, prompt]).encode()).digest()[:8]) >> 1
