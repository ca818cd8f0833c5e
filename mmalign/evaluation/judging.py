"""Asking a judge: a model that reads an answer beside the reference and says what it thinks of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, AnswerFormat, Endings, count_endings, match_answers, read_answers
from mmalign.evaluation.reasoning import strip_reasoning


class Judge(Protocol):
    """Anything that answers prompts."""

    @property
    def name(self) -> str:
        """What a result says it was judged by."""
        ...

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How it decodes, for the result."""
        ...

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Answer each prompt; the order is kept."""
        ...


def needs_judge(benchmark: str) -> UserError:
    """What is said where a benchmark has neither a judge nor its judgements."""
    return UserError(f"{benchmark} needs a judge: --judge-url with --judge-model, --judge, or saved --judgements")


def ask_judge(judge: Judge, prompts: Mapping[str, str]) -> dict[str, str]:
    """Ask about each answer.

    Raises:
        ValueError: If the judge gives another number of replies than it was asked for.
    """
    replies = judge.ask(list(prompts.values()))
    if len(replies) != len(prompts):
        raise UserError(f"judge {judge.name} gave {len(replies)} replies to {len(prompts)} prompts; expected one each, in order")
    return dict(zip(prompts, replies, strict=True))


class Replies(NamedTuple):
    """A judge's replies by id, without their reasoning, and how they ended."""

    texts: dict[str, str]
    endings: Endings


def strip_replies(replies: Mapping[str, str]) -> Replies:
    """Take the reasoning from a judge's replies."""
    stripped = {i: strip_reasoning(reply) for i, reply in replies.items()}
    answers = [Answer(i, one.text, one.reasoned) for i, one in stripped.items()]
    return Replies({i: one.text for i, one in stripped.items()}, count_endings(answers))


def read_judgements(path: Path, form: AnswerFormat, *, asked: Sequence[str], order: Sequence[str]) -> Replies:
    """Read a judge's saved replies: ours (id, judgement), or the responses of an OpenAI-compatible endpoint in the questions' order.

    Args:
        path: JSON or JSON lines.
        form: How the benchmark's own files of judgements look.
        asked: Ids that need one.
        order: Ids of all questions in their order.

    Raises:
        ValueError: If a reply is missing or stands twice.
    """
    replies: list[Answer] = read_answers(path, form, order=order)
    wanted = set(asked)
    if lacking := wanted - {reply.id for reply in replies}:
        first = ", ".join([i for i in asked if i in lacking][:10])
        raise UserError(f"{path} has no judgement of {len(lacking)} of {len(wanted)} answers (first: {first}); judge them too")
    # A file may hold replies on more answers than are scored.
    chosen = [reply for reply in replies if reply.id in wanted]
    return Replies(match_answers(chosen, required=asked) if asked else {}, count_endings(chosen))


def write_judgements(path: Path, judgements: Mapping[str, str]) -> None:
    """Save a judge's replies by id, to be scored again without asking."""
    lines = [json.dumps({"id": identifier, "judgement": reply}) + "\n" for identifier, reply in judgements.items()]
    path.write_text("".join(lines), encoding="utf-8")


def hash_text(text: str) -> str:
    """Return the sha256 of a prompt's wording."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
