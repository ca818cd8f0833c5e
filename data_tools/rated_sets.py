"""Sets whose responses have numbers: a record is a prompt with rated responses, from which pairs or a list are made.

The fields that each function reads, and where they were looked up, are listed in docs/data.md.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.fields import assistant, field, images_of, join_source, number, objects, user
from data_tools.pair_sets import Pair
from mmalign.errors import UserError

VLFEEDBACK_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


@dataclass(frozen=True)
class Response:
    """A response with its number."""

    text: str
    score: float
    kind: str = ""
    """What made it, in the set's own word."""
    clip_score: float | None = None
    """Its likeness to the image, in DA-DPO's scored file."""


@dataclass(frozen=True)
class Rated:
    """A prompt and its rated responses; images are bytes, paths or dicts of them, not yet looked at."""

    id: str
    source: str
    images: list[Any]
    prompt: str
    responses: list[Response]


@dataclass(frozen=True)
class ScoredList:
    """One row of responses and scores."""

    id: str
    source: str
    images: list[Any]
    prompt: Any
    responses: list[str]
    scores: list[float]

    def columns(self) -> dict[str, Any]:
        """The row but for its images."""
        return {"id": self.id, "prompt": self.prompt, "responses": self.responses, "scores": self.scores, "source": self.source}

    def image_columns(self) -> dict[str, list[Any]]:
        """The row's images, undecoded."""
        return {"images": self.images}

    def texts(self) -> list[str]:
        """What the responses say."""
        return self.responses


def bpo(record: Mapping[str, Any], default_id: str) -> Rated:
    """BPO (arXiv:2403.08730), and DA-DPO's scored file of it, whose completions have a ``clip_score`` as well."""
    responses = [
        Response(
            text=field(completion, "response", str),
            score=number(completion, "score"),
            kind=str(completion.get("type") or ""),
            clip_score=None if completion.get("clip_score") is None else number(completion, "clip_score"),
        )
        for completion in objects(record, "completions")
    ]
    return Rated(str(record.get("id", default_id)), "bpo", images_of(record, "image"), field(record, "prompt", str), responses)


def vlfeedback(record: Mapping[str, Any], default_id: str) -> Rated:
    """VLFeedback (Silkie, arXiv:2312.10665): a response's number is the mean of its three ratings.

    A response that lacks a numeric rating takes no part. Images are those of the record, or ``ID.jpg``, as the set's archive names them.
    """
    row_id = str(field(record, "id", (str, int)))
    completions = objects({**record, "completions": _as_rows(record.get("completions"))}, "completions")
    responses = [Response(field(c, "response", str), rating) for c in completions if (rating := _mean_rating(c)) is not None]
    if len(responses) < 2:
        raise UserError(f"{len(responses)} responses with ratings of {', '.join(VLFEEDBACK_ASPECTS)}; expected at least two")
    return Rated(row_id, "vlfeedback", images_of(record, "image") or [f"{row_id}.jpg"], field(record, "prompt", str), responses)


def mm_rlhf_ratings(record: Mapping[str, Any], default_id: str) -> Rated:
    """MM-RLHF's scored responses, as in its ``data.jsonl``. The names of these fields are reconstructed."""
    if record.get("video") is not None:
        raise UserError("the record has a video, which can't be read")
    responses = [Response(field(one, "response", str), number(one, "score")) for one in objects(record, "responses")]
    row_id = str(record["id"]) if record.get("id") is not None else default_id
    return Rated(row_id, "mm-rlhf", images_of(record, "image"), field(record, "prompt", str), responses)


RATED_SETS: dict[str, Callable[[Mapping[str, Any], str], Rated]] = {"bpo": bpo, "vlfeedback": vlfeedback, "mm-rlhf": mm_rlhf_ratings}


def rated_pairs(rated: Rated) -> Iterator[Pair]:
    """Make a pair of every two responses of unequal score; the higher one is chosen."""
    for (i, first), (j, second) in itertools.combinations(enumerate(rated.responses), 2):
        if first.score != second.score:
            better, worse = (first, second) if first.score > second.score else (second, first)
            yield Pair(
                id=f"{rated.id}/{i}-{j}",
                source=join_source(rated.source, worse.kind),
                images=rated.images,
                prompt=user(rated.prompt, rated.images),
                chosen=assistant(better.text),
                rejected=assistant(worse.text),
                scores=(better.score, worse.score),
                extra=_published(better, worse),
            )


def rated_list(rated: Rated) -> ScoredList | None:
    """Make a list of the different texts, each with its highest score; None where all scores are one."""
    best: dict[str, float] = {}
    for response in rated.responses:
        best[response.text] = max(response.score, best.get(response.text, -math.inf))
    if len(set(best.values())) < 2:
        return None
    return ScoredList(rated.id, rated.source, rated.images, user(rated.prompt, rated.images), list(best), list(best.values()))


def _published(better: Response, worse: Response) -> dict[str, float]:
    """DA-DPO's published gap, signed, and the difficulty by which ``--difficulty-mode paper`` is its released loss, beta (1 + |gap|)."""
    if better.clip_score is None or worse.clip_score is None:
        return {}
    gap = better.clip_score - worse.clip_score
    return {"gap_published": gap, "difficulty": 1 - min(1.0, abs(gap))}


def _as_rows(completions: Any) -> Any:
    """A list of dicts, which older versions of ``datasets`` store as a dict of lists."""
    if not isinstance(completions, dict):
        return completions
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in completions.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise UserError(f"completions is a dict of columns of lengths {lengths}; expected lists of one length")
    return [dict(zip(completions, values, strict=True)) for values in zip(*completions.values(), strict=True)]


def _mean_rating(completion: Mapping[str, Any]) -> float | None:
    annotations = field(completion, "annotations", dict) if completion.get("annotations") else {}
    notes = [field(annotations, aspect, dict) if annotations.get(aspect) else {} for aspect in VLFEEDBACK_ASPECTS]
    try:
        mean = sum(float(str(note.get("Rating"))) for note in notes) / len(notes)
    except ValueError:
        # "N/A": the annotator gave none.
        return None
    return mean if math.isfinite(mean) else None
