"""Pair each photograph with a similar one of which its caption is false.

    python -m scripts.real.similar --data runs/real/data --out runs/real/similar
    python -m scripts.real.similar --data runs/real/data --part val --out runs/real/similar_val

For preference training that compares images (S-VCO, SymMPO), which needs another image for each answer. The other photograph is the one
whose objects, by CHAIR's sets, are most like the own ones (Jaccard index), among those that lack an object which the own caption names,
and have a caption that names an object which the own photograph lacks: so each caption is false of the other photograph. ``--part val``
makes the same of validation photographs, to measure on.

A photograph gives a row about captions and one about an object that one of both photographs lacks, ``existence``; there the answer to the
own photograph is Yes and No by turns.

| column | what |
|---|---|
| ``images``, ``images_other`` | the own and the other photograph |
| ``chosen`` | true of the own photograph: a human caption of it, or the answer |
| ``rejected``, ``chosen_other`` | both the same of the other one |
| ``contrast_objects`` | what ``chosen`` names or is about and one of the two lacks |
| ``contrast_similarity`` | Jaccard index of the object sets |

No training reads the columns that begin with ``contrast_``.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.errors import UserError
from mmalign.evaluation.object_words import find_mentions, read_synonyms
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json_object, whole
from scripts.real.photos import Photo, read_photo_row
from scripts.real.words import CAPTION_PROMPTS, NO, YES, all_objects, choose, existence_question, shuffled


@dataclass(frozen=True)
class Match:
    """A photograph and one like it, a caption of each that is false of the other, and the objects that make it false."""

    own: Photo
    other: Photo
    captions: tuple[str, str]
    lacking: tuple[frozenset[str], frozenset[str]]
    """What the own caption names and the other photograph lacks, and the other way round."""
    similarity: float


class Matcher:
    """Finds similar photographs among some whose objects are known."""

    def __init__(self, photos: Sequence[Photo], words: Mapping[str, str], *, seed: int) -> None:
        """Hold the photographs and what each of their captions names."""
        self.photos = [photo for photo in photos if photo.objects]
        self.named = [[named_objects(caption, photo, words) for caption in photo.captions] for photo in self.photos]
        self.rng = np.random.default_rng([seed, 6])
        names = sorted(all_objects(self.photos))
        self.sets = np.array([[name in (photo.objects or ()) for name in names] for photo in self.photos], dtype=np.float32)

    def similarities(self, number: int) -> np.ndarray:
        """Jaccard indices of a photograph's objects and those of all, (photographs,)."""
        both = self.sets @ self.sets[number]
        return both / (self.sets.sum(1) + self.sets[number].sum() - both)

    def match(self, number: int, *, least: float) -> Match | None:
        """The most similar photograph that a random caption is false of, and the other way round; None where none is similar enough."""
        own, said = self.photos[number], int(self.rng.integers(len(self.photos[number].captions)))
        named, similar = self.named[number][said], self.similarities(number)
        # Of equally similar ones any is taken.
        for candidate in np.lexsort((self.rng.random(len(similar)), -similar)):
            if similar[candidate] < least:
                return None
            other = self.photos[candidate]
            missing = named - (other.objects or frozenset())
            if not missing:
                continue
            false = [(i, absent) for i, names in enumerate(self.named[candidate]) if (absent := names - (own.objects or frozenset()))]
            if false:
                i, absent = false[int(self.rng.integers(len(false)))]
                return Match(own, other, (own.captions[said], other.captions[i]), (missing, absent), float(similar[candidate]))
        return None


def named_objects(caption: str, photo: Photo, words: Mapping[str, str]) -> frozenset[str]:
    """What a caption names of the photograph's objects."""
    return frozenset(mention.name for mention in find_mentions(caption, words)) & (photo.objects or frozenset())


def caption_row(match: Match, rng: np.random.Generator) -> dict[str, Any]:
    """A human caption of each."""
    return _row(match, "description", choose(rng, CAPTION_PROMPTS), match.captions, match.lacking[0])


def question_row(match: Match, rng: np.random.Generator, *, present: bool, classes: frozenset[str]) -> dict[str, Any] | None:
    """A question after an object that is in one alone: in the own photograph if ``present``; None where its instances are not known."""
    has, lacking = (match.own, match.lacking[0]) if present else (match.other, match.lacking[1])
    names = shuffled(rng, lacking & has.present(classes))
    if not names:
        return None
    answers = (YES, NO) if present else (NO, YES)
    return _row(match, "existence", existence_question(names[0]), answers, frozenset(names[:1]))


def _row(match: Match, asked: str, prompt: str, answers: tuple[str, str], objects: frozenset[str]) -> dict[str, Any]:
    own, other = ([{"role": "assistant", "content": text}] for text in answers)
    return {
        "id": f"{match.own.id}/{asked}",
        "source": "similar",
        "images": [match.own.image],
        "images_other": [match.other.image],
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": own,
        "rejected": other,
        "chosen_other": other,
        "contrast_kind": "similar",
        "contrast_asked": asked,
        "contrast_objects": sorted(objects),
        "contrast_similarity": match.similarity,
    }


def similar_rows(
    photos: Sequence[Photo], words: Mapping[str, str], classes: frozenset[str], *, least: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows about each photograph that has a similar one, questions by turns after what it has and what it lacks."""
    matcher, rng = Matcher(photos, words, seed=seed), np.random.default_rng([seed, 7])
    present = True
    for number in range(len(matcher.photos)):
        match = matcher.match(number, least=least)
        if match is None:
            continue
        yield caption_row(match, rng)
        question = question_row(match, rng, present=present, classes=classes)
        if question is not None:
            yield question
            present = not present


def write_similar(data: Path, out: Path, *, part: str, num_photos: int | None, least: float, seed: int) -> int:
    """Write ``pairs.jsonl`` into a folder that is there whole or not at all; returns the number of rows.

    Raises:
        UserError: If no photograph has a similar one.
    """
    photos = [read_photo_row(row) for row in read_jsonl(data / "photos.jsonl") if row["part"] == part][:num_photos]
    words = read_synonyms((data / "pair_photos" / "synonyms.txt").read_text(encoding="utf-8"), strip=True)
    classes = frozenset(read_json_object(data / "data.json")["classes"])
    rows = list(similar_rows(photos, words, classes, least=least, seed=seed))
    if not rows:
        raise UserError(f"none of {len(photos)} photographs of part {part} has one that is similar by {least} or more; lower --least")
    with whole(out) as folder:
        folder.mkdir(parents=True)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/real/data"), help="folder that scripts/real/data.py made")
    parser.add_argument("--out", type=Path, default=Path("runs/real/similar"), help="folder that is made")
    parser.add_argument("--part", choices=("pairs", "val"), default="pairs", help="which photographs: to train on, or held out")
    parser.add_argument("--num-photos", type=int, help="so many of them; all if not given")
    parser.add_argument("--least", type=float, default=0.25, help="least similarity of the two object sets, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    try:
        print(f"{write_similar(**options):,} rows in {options['out']}")
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    main()
