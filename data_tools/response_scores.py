"""How true is a response? Four scorers: known objects, known answers, a judge that reads a reference, a model that looks at the image."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.pope import parse_strict
from mmalign.evaluation.runner import generate_answers
from mmalign.evaluation.wording import fill_prompt
from mmalign.rewards.exact import score_answer, score_objects
from mmalign.rewards.rating import parse_rating, rating_prompt

CHECK = "Statement: {statement}\nIs this statement true of the image? Answer yes or no."


@dataclass(frozen=True)
class Sampled:
    """A question about an image, with what is known of the image, and the responses sampled to it."""

    question: Question
    truth: frozenset[str] | None
    reference: str | None
    responses: list[str]
    answers: tuple[str, ...] = ()
    """Right answers, where they are known."""


class Scorer(Protocol):
    """Scores responses; None is a response that can't be scored."""

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Score the responses of each item; ``folder`` is the chunk's own, for work in progress."""
        ...


class TruthScorer:
    """Compares named objects with those that are there, by CHAIR's words."""

    def __init__(self, words: Mapping[str, str]) -> None:
        """Hold the word table: word to canonical name."""
        self.words = words

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """(Objects named and there - objects named and absent) / objects there, each object once."""
        return [[score_objects(response, item.truth or frozenset(), self.words) for response in item.responses] for item in items]


class AnswerScorer:
    """Compares a response, without its reasoning, with the right answers to its question."""

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Score 1 where a response is one of the answers, letter case, spaces and marks around it aside; else 0.

        Raises:
            ValueError: If an item has no answer.
        """
        for item in items:
            if not item.answers:
                raise UserError(f"question {item.question.id} has no answer; --scorer answers needs one, as text or a list of texts")
        return [[score_answer(response, item.answers) for response in item.responses] for item in items]


class JudgeScorer:
    """Asks a language model to rate a response by a reference description; it sees no image."""

    def __init__(self, judge: Any) -> None:
        """Hold the judge: anything with ``ask(prompts) -> list[str]``."""
        self.judge = judge

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Ratings, 1 to 10.

        Raises:
            ValueError: If an item has no reference.
        """
        prompts = []
        for item in items:
            if not item.reference:
                raise UserError(f"question {item.question.id} has no reference; --scorer judge needs one, --scorer mllm looks at the image")
            prompts += [rating_prompt(item.question.prompt, item.reference, response) for response in item.responses]
        ratings = iter(map(parse_rating, self.judge.ask(prompts)))
        return [[next(ratings) for _ in item.responses] for item in items]


class LookingScorer:
    """Asks a multimodal model about each sentence whether it is true of the image, as RLAIF-V divides and conquers (arXiv:2405.17220)."""

    def __init__(self, model: Any, processor: Any, *, image_root: Path, batch_size: int) -> None:
        """Hold the model that looks."""
        self.model, self.processor, self.image_root, self.batch_size = model, processor, image_root, batch_size

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Share of sentences that are told to be true; a sentence without a clear yes or no is left out."""
        questions = [
            Question(_statement_id(i, j, sentence), item.question.image, fill_prompt(CHECK, {"statement": sentence}))
            for i, item in enumerate(items)
            for j, response in enumerate(item.responses)
            # A sentence said twice is asked about once.
            for sentence in dict.fromkeys(split_sentences(response))
        ]
        verdicts = self._ask(questions, folder) if questions else {}
        return [[self._score(verdicts, i, j, r) for j, r in enumerate(item.responses)] for i, item in enumerate(items)]

    def _score(self, verdicts: Mapping[str, bool | None], i: int, j: int, response: str) -> float | None:
        given = [verdicts.get(_statement_id(i, j, sentence)) for sentence in split_sentences(response)]
        clear = [verdict for verdict in given if verdict is not None]
        return sum(clear) / len(clear) if clear else None

    def _ask(self, questions: Sequence[Question], folder: Path) -> dict[str, bool | None]:
        folder.mkdir(parents=True, exist_ok=True)
        # Verdicts that a stopped run left are on other statements, where sampling isn't exact.
        (folder / "verdicts.jsonl.partial").unlink(missing_ok=True)
        answers = generate_answers(
            self.model,
            self.processor,
            questions,
            image_root=self.image_root,
            out=folder / "verdicts.jsonl",
            rejects=Rejects(folder / "rejects.jsonl", max_share=0.0),
            max_new_tokens=4,
            batch_size=self.batch_size,
        )
        return {answer.id: parse_strict(answer.response) for answer in answers}


def _statement_id(item: int, response: int, sentence: str) -> str:
    """Name a statement by its text too: verdicts that a stopped run left must not meet other responses, where sampling isn't exact."""
    return f"{item}/{response}/{hashlib.sha256(sentence.encode()).hexdigest()[:16]}"


def split_sentences(text: str) -> list[str]:
    """Split at the ends of sentences and at line breaks."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if re.search(r"\w", part)]


def best_and_worst(responses: Sequence[str], scores: Sequence[float | None]) -> tuple[str, str] | None:
    """Choose the pair of a question: the responses of the highest and of the lowest score, the first of equals.

    Returns:
        Chosen and rejected, or None where no two responses have unequal scores.
    """
    scored = [(score, text) for score, text in zip(scores, responses, strict=True) if score is not None and text.strip()]
    if not scored:
        return None
    best, worst = max(scored, key=lambda item: item[0]), min(scored, key=lambda item: item[0])
    return None if best[0] == worst[0] else (best[1], worst[1])
