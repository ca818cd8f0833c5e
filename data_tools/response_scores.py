"""How true is a response? Four scorers: known objects, known answers, a judge that reads a reference, a model that looks at the image."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.asking import Asker, build_asker
from data_tools.scoring import Parts, Sampled, Scorer
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.wording import fill_prompt
from mmalign.rewards.exact import score_answer, score_objects
from mmalign.rewards.rating import parse_rating, rating_prompt

CHECK = "Statement: {statement}\nIs this statement true of the image? Answer yes or no."


class TruthScorer(Scorer):
    """Compares named objects with those that are there, by CHAIR's words."""

    def __init__(self, words: Mapping[str, str]) -> None:
        """Hold the word table: word to canonical name."""
        self.words = words

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """(Objects named and there - objects named and absent) / objects there, each object once."""
        return [[score_objects(response, item.truth or frozenset(), self.words) for response in item.responses] for item in items]


class AnswerScorer(Scorer):
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


class JudgeScorer(Scorer):
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


class LookingScorer(Scorer):
    """Asks a multimodal model about each sentence whether it is true of the image, as RLAIF-V divides and conquers (arXiv:2405.17220)."""

    def __init__(self, ask: Asker) -> None:
        """Hold what asks the model that looks."""
        self.ask = ask

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """Share of sentences that are told to be true; a sentence without a clear yes or no is left out."""
        questions = [
            Question(_statement_id(i, j, sentence), item.question.image, fill_prompt(CHECK, {"statement": sentence}))
            for i, item in enumerate(items)
            for j, response in enumerate(item.responses)
            # A sentence said twice is asked about once.
            for sentence in dict.fromkeys(split_sentences(response))
        ]
        verdicts = self.ask(questions, file=folder / "verdicts.jsonl")
        return [[self._score(verdicts, i, j, r) for j, r in enumerate(item.responses)] for i, item in enumerate(items)]

    def _score(self, verdicts: Mapping[str, float | None], i: int, j: int, response: str) -> float | None:
        given = [verdicts.get(_statement_id(i, j, sentence)) for sentence in split_sentences(response)]
        clear = [verdict for verdict in given if verdict is not None]
        return sum(clear) / len(clear) if clear else None


def build_truth(parts: Parts) -> TruthScorer:
    """Build the scorer that knows what is in the images."""
    if parts.words is None:
        raise UserError("--scorer truth needs to know what is in the images: a folder with chair.jsonl and synonyms.txt")
    return TruthScorer(parts.words)


def build_answers(parts: Parts) -> AnswerScorer:
    """Build the scorer that knows the answers."""
    return AnswerScorer()


def build_judge(parts: Parts) -> JudgeScorer:
    """Build the scorer that asks a judge."""
    return JudgeScorer(parts.judge)


def build_looking(parts: Parts) -> LookingScorer:
    """Build the scorer that looks at the image."""
    if parts.options.labeler is None:
        raise UserError("--scorer mllm and --labeler MODEL go together; give both or neither")
    return LookingScorer(build_asker(parts))


def _statement_id(item: int, response: int, sentence: str) -> str:
    """Name a statement by its text too: verdicts that a stopped run left must not meet other responses, where sampling isn't exact."""
    return f"{item}/{response}/{hashlib.sha256(sentence.encode()).hexdigest()[:16]}"


def split_sentences(text: str) -> list[str]:
    """Split at the ends of sentences and at line breaks."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if re.search(r"\w", part)]
