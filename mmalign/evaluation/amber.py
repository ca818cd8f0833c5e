"""AMBER: descriptions and yes-or-no questions about 1,004 images (arXiv:2311.07397), as its released script scores them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.amber_generative import Scene, Words, score_descriptions
from mmalign.evaluation.answers import SHORT_ANSWER, AnswerFormat, Question, question_id
from mmalign.evaluation.benchmark import Benchmark, find_file
from mmalign.evaluation.rows import read_text
from mmalign.evaluation.word_similarity import choose_similarity
from mmalign.evaluation.yes_no import Mode, parse_strict, score_baselines

GENERATIVE = "generative"
# As captions are cut for CHAIR; AMBER's own text names no limit, and lmms-eval takes 2048.
DESCRIPTION_LENGTH = 512
# Keys of the result -> types of the annotations. The type of a relation question tells its answer: both are one kind.
KINDS = {
    "existence": ("discriminative-hallucination",),
    "attribute": ("discriminative-attribute-state", "discriminative-attribute-number", "discriminative-attribute-action"),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}


@dataclass(frozen=True)
class AmberQuestion:
    """A yes-or-no question of one of the annotated types."""

    id: str
    type: str
    is_yes: bool


@dataclass(frozen=True)
class Amber(Benchmark):
    """AMBER's annotations.

    Attributes:
        scenes: What the images of the generative part hold, by id.
        items: The yes-or-no questions.
        asked: Prompts with images, of a query file; empty without one.
        words: How nouns are matched; None where there is nothing to describe.
    """

    name: ClassVar[str] = "amber"
    scenes: Mapping[str, Scene]
    items: Sequence[AmberQuestion]
    asked: Sequence[Question]
    words: Words | None

    @property
    def form(self) -> AnswerFormat:
        """A JSON array of id and response, or LLaVA's rows."""
        return AnswerFormat(text=("text", "answer"), row_id=question_id)

    def questions(self) -> list[Question]:
        """The queries."""
        if not self.asked:
            raise UserError("AMBER's questions are missing: put query_all.json, or the folder query that holds it, beside annotations.json")
        lengths = dict.fromkeys(self.scenes, DESCRIPTION_LENGTH)
        return [question._replace(max_new_tokens=lengths.get(question.id, SHORT_ANSWER)) for question in self.asked]

    def required(self) -> list[str]:
        """All ids of the parts that the data hold."""
        return [*self.scenes, *(item.id for item in self.items)]

    def texts(self) -> dict[str, str]:
        """The yes-or-no questions; descriptions may be asked for in any words."""
        return {question.id: question.prompt for question in self.asked if question.id not in self.scenes}

    def variant(self, *, judged: bool) -> str | None:
        """How words are compared."""
        return None if self.words is None else self.words.similarity.name

    def score(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> dict[str, float]:
        """Compute percentages, rounded as the script rounds them; descriptions are scored alike in both modes."""
        metrics: dict[str, float] = {}
        described = {i: self.scenes[i] for i in self.scenes if i in answers}
        if described and self.words is not None:
            metrics |= score_descriptions(described, answers, self.words)
        items = [item for item in self.items if item.id in answers]
        if items:
            score = partial(score_questions, items, mode=mode)
            metrics |= score(answers)
            metrics |= score_baselines(score, [item.id for item in items], leave_out=("precision", "recall", "yes_ratio", "unknown"))
        if described and items:
            # (100 - CHAIR + F1) / 2: both have one decimal, so that two are exact.
            metrics["amber/score"] = round((100 - metrics["amber/chair"] + metrics["amber/f1"]) / 2, 2)
        return metrics


def score_questions(items: Sequence[AmberQuestion], answers: Mapping[str, str], *, mode: Mode) -> dict[str, float]:
    """Score the yes-or-no questions, all together and by kind.

    The script counts exactly "Yes" and "No" and takes anything else, "yes" and "Yes." too, for wrong.
    """
    replies = {item.id: read_reply(answers[item.id], mode=mode) for item in items}
    metrics = {f"amber/{name}": value for name, value in _score_kind(items, replies, num_counters=1, epsilon=1e-4).items()}
    metrics["amber/unknown"] = float(sum(reply is None for reply in replies.values()))
    for kind, types in KINDS.items():
        chosen = [item for item in items if item.type in types]
        if chosen:
            epsilon = 1e-3 if kind == "existence" else 1e-4
            scores = _score_kind(chosen, replies, num_counters=len(types) if kind == "attribute" else 1, epsilon=epsilon)
            metrics |= {f"amber/{kind}/{name}": value for name, value in scores.items()}
    return metrics


def read_reply(answer: str, *, mode: Mode) -> bool | None:
    """Return whether a reply is yes; None where it is neither."""
    return {"Yes": True, "No": False}.get(answer) if mode == "official" else parse_strict(answer)


def _score_kind(
    items: Sequence[AmberQuestion], replies: Mapping[str, bool | None], *, num_counters: int, epsilon: float
) -> dict[str, float]:
    """No is the positive class. Each counter of the script starts at 0.001; F1 comes from rounded precision and recall."""
    pairs = [(item.is_yes, replies[item.id]) for item in items]
    start = 0.001 * num_counters
    right_no = sum(not truth and reply is False for truth, reply in pairs)

    def percent(count: int, of: int) -> float:
        return round(count / (of + start) * 100, 1)

    precision = percent(right_no, sum(reply is False for _, reply in pairs))
    recall = percent(right_no, sum(not truth for truth, _ in pairs))
    p, r = precision / 100, recall / 100
    return {
        "accuracy": percent(sum(truth is reply for truth, reply in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": round(2 * p * r / (p + r + epsilon) * 100, 1),
        "yes_ratio": round(sum(reply is True for _, reply in pairs) / len(pairs) * 100, 1),
    }


def load_amber(source: Path, *, similarity: str = "auto") -> Amber:
    """Read AMBER's folder: annotations.json, relation.json, safe_words.txt, and query_all.json for the questions.

    Where ``source`` is one of the query files, only its questions are scored.

    Args:
        source: The folder, its annotations.json, or a query file in it.
        similarity: As in ``choose_similarity``.

    Raises:
        ValueError: If a file is missing, or an object is not among the association words.
    """
    # The released query files stand in a folder below the annotations.
    asked_file = source if source.is_file() and source.name != "annotations.json" else None
    folder = source if source.is_dir() else source.parent
    if asked_file is not None and folder.name == "query":
        folder = folder.parent
    annotations_file = find_file(folder, "annotations.json", what="AMBER's annotations")
    queries = [folder / "query_all.json", folder / "query" / "query_all.json"]
    queries_file = asked_file or next((path for path in queries if path.is_file()), queries[0])
    files = [annotations_file]
    asked = []
    if queries_file.is_file():
        files.append(queries_file)
        rows = json.loads(read_text(queries_file))
        asked = [Question(str(row["id"]), row["image"], row["query"]) for row in rows]
    annotations = json.loads(read_text(annotations_file))
    if asked_file is not None:
        ids = {question.id for question in asked}
        annotations = [row for row in annotations if str(row["id"]) in ids]
    scenes = {str(row["id"]): Scene(row["truth"], row["hallu"]) for row in annotations if row["type"] == GENERATIVE}
    items = [_read_item(row, annotations_file) for row in annotations if row["type"] != GENERATIVE]
    words = None
    if scenes:
        words, word_files = _read_words(folder, scenes, similarity=similarity)
        files += word_files
    return Amber(files, scenes, items, asked, words)


def _read_item(row: Mapping[str, Any], path: Path) -> AmberQuestion:
    known = {type_ for types in KINDS.values() for type_ in types}
    if row["type"] not in known or row["truth"] not in ("yes", "no"):
        raise UserError(
            f"{path}: {row['id']} is of type {row['type']!r} with truth {row['truth']!r}; expected yes or no, and {', '.join(known)}"
        )
    return AmberQuestion(str(row["id"]), row["type"], row["truth"] == "yes")


def _read_words(source: Path, scenes: Mapping[str, Scene], *, similarity: str) -> tuple[Words, list[Path]]:
    relation_file = find_file(source, "relation.json", what="AMBER's association words")
    safe_file = find_file(source, "safe_words.txt", what="AMBER's safe words")
    associations = json.loads(read_text(relation_file))
    for identifier, scene in scenes.items():
        unknown = [word for word in (*scene.truth, *scene.hallu) if word not in associations]
        if unknown:
            raise UserError(f"{relation_file} has no {', '.join(unknown)}, which annotation {identifier} holds")
    chosen = choose_similarity(similarity, folder=relation_file.parent)
    safe = frozenset(read_text(safe_file).split("\n"))
    return Words(associations, safe, chosen), [relation_file, safe_file, *chosen.files]
