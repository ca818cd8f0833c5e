"""Make preference pairs about photographs whose objects are known.

    python data_tools/sample_pairs.py runs/real/data/pair_photos --image-root runs/real/data/images --model runs/real/sft \
        --scorer truth --no-embed-images --max-new-tokens 48 --out runs/real/sampled
    python -m scripts.real.pairs --data runs/real/data --sampled runs/real/sampled --out runs/real/pairs

Without a language model: a wrong object is put into a human caption, and questions after objects are answered wrongly. Rows hold what is
true of them in columns that no training reads:

| ``truth_kind`` | chosen | rejected |
|---|---|---|
| ``replace`` | a human caption | one of its objects is replaced by an absent one |
| ``add`` | a human caption, and a further object that is there | the same caption, and an absent object |
| ``wrong-yes``, ``wrong-no`` | the true answer to a question after an object | the false one |
| ``sampled`` | the model's own answer with the fewest absent and most present objects | the one at the other end |

``truth_difficulty`` is the share of all classes that stand less often beside the photograph's objects than the wrong one does (for
``wrong-no``: more often than the denied one), so that 1 is what usually stands there; ``truth_objects`` names the wrong objects.
``--label-noise`` swaps that share of the pairs, and ``truth_flipped`` says which.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from mmalign.errors import UserError
from mmalign.evaluation.object_words import Mention, find_mentions, read_synonyms
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json_object, whole
from scripts.real.photos import Photo, read_photo_row
from scripts.real.words import CAPTION_PROMPTS, NO, YES, Company, all_objects, choose, existence_question, plural, shuffled, with_article

LIKELIEST = 8
"""Half of the wrong objects are among this many absent ones that stand most often beside those there; the others are any."""
PLURALS = {"people", "children"}


@dataclass(frozen=True)
class Pair:
    """Texts of one pair, and the truth about what is wrong."""

    prompt: str
    chosen: str
    rejected: str
    kind: str
    difficulty: float | None
    objects: tuple[str, ...]


class PairMaker:
    """Makes wrong answers about photographs."""

    def __init__(self, words: Mapping[str, str], company: Company, classes: frozenset[str], *, seed: int) -> None:
        """Hold the word table, which objects stand together, and the classes whose instances are known."""
        self.words, self.company, self.classes = words, company, classes
        self.rng = np.random.default_rng([seed, 4])

    def caption_pair(self, photo: Photo) -> Pair | None:
        """A caption with a wrong object in it; None where the caption has no room for one."""
        prompt, caption = choose(self.rng, CAPTION_PROMPTS), choose(self.rng, photo.captions)
        makers = [self._replace, self._add]
        for i in self.rng.permutation(2):
            wrong = self._absent(photo)
            texts = makers[i](photo, caption, wrong)
            if texts is not None:
                kind = ("replace", "add")[i]
                return Pair(prompt, texts[0], texts[1], kind, self.company.likelihood(wrong, photo.objects or ()), (wrong,))
        return None

    def question_pair(self, photo: Photo, *, absent: bool) -> Pair | None:
        """A question after an object, answered rightly and wrongly; None where no object is there."""
        if absent:
            name = self._absent(photo)
            return Pair(existence_question(name), NO, YES, "wrong-yes", self.company.likelihood(name, photo.objects or ()), (name,))
        present = shuffled(self.rng, photo.present(self.classes))
        if not present:
            return None
        others = (photo.objects or frozenset()) - {present[0]}
        difficulty = 1 - self.company.likelihood(present[0], others)
        return Pair(existence_question(present[0]), YES, NO, "wrong-no", difficulty, (present[0],))

    def _absent(self, photo: Photo) -> str:
        if self.rng.random() < 0.5:
            return self.company.absent("random", photo.objects or (), self.rng)[0]
        return choose(self.rng, self.company.absent("adversarial", photo.objects or (), self.rng)[:LIKELIEST])

    def _replace(self, photo: Photo, caption: str, wrong: str) -> tuple[str, str] | None:
        mentions = find_mentions(caption, self.words)
        # A thing in the place of a person is wrong without a look at the image.
        names = {mention.name for mention in mentions} & (photo.objects or frozenset()) - {"person"}
        if not names or wrong == "person":
            return None
        name = choose(self.rng, sorted(names))
        text = caption
        for mention in reversed([mention for mention in mentions if mention.name == name]):
            text = put_object(text, mention, wrong, words=self.words)
        return caption, text

    def _add(self, photo: Photo, caption: str, wrong: str) -> tuple[str, str] | None:
        named = {mention.name for mention in find_mentions(caption, self.words)}
        unnamed = shuffled(self.rng, photo.present(self.classes) - named)
        if not unnamed:
            return None
        begun = f"{caption.rstrip(' .')}. There is also"
        return f"{begun} {with_article(unnamed[0])}.", f"{begun} {with_article(wrong)}."


def put_object(caption: str, mention: Mention, name: str, *, words: Mapping[str, str]) -> str:
    """Put an object in the place of one that a caption mentions, in its number, with the article that it takes."""
    surface, before, after = caption[mention.start : mention.end], caption[: mention.start], caption[mention.end :]
    is_plural = surface.lower() in PLURALS or surface.lower() not in words
    new = plural(name) if is_plural else name
    article = re.search(r"\b(a|an)(\s+)$", before, re.IGNORECASE)
    if article is not None:
        right = with_article(new).split()[0]
        before = before[: article.start()] + (right.capitalize() if article[1][0].isupper() else right) + article[2]
    return before + (new.capitalize() if surface[0].isupper() else new) + after


def sampled_pairs(folder: Path, photos: Mapping[str, Photo], words: Mapping[str, str]) -> Iterator[tuple[Photo, Pair]]:
    """Read what ``sample_pairs.py`` made of the model's own answers."""
    for path in sorted((folder / "pairs").glob("*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            photo = photos[row["images"][0]["path"]]
            chosen, rejected = (row[name][0]["content"] for name in ("chosen", "rejected"))
            wrong = {mention.name for mention in find_mentions(rejected, words)} - (photo.objects or frozenset())
            yield photo, Pair(row["prompt"][0]["content"], chosen, rejected, "sampled", None, tuple(sorted(wrong)))


def pair_row(photo: Photo, pair: Pair, *, flipped: bool) -> dict[str, Any]:
    """A pair as training reads it, with the truth beside."""
    texts = (pair.rejected, pair.chosen) if flipped else (pair.chosen, pair.rejected)
    turns = {"prompt": ("user", pair.prompt), "chosen": ("assistant", texts[0]), "rejected": ("assistant", texts[1])}
    return {
        "id": f"{photo.id}/{pair.kind}",
        "source": pair.kind,
        "images": [photo.image],
        **{name: [{"role": role, "content": text}] for name, (role, text) in turns.items()},
        "truth_kind": pair.kind,
        "truth_difficulty": pair.difficulty,
        "truth_objects": list(pair.objects),
        "truth_flipped": flipped,
    }


def write_pairs(data: Path, out: Path, *, sampled: Path | None, injected: bool, label_noise: float, seed: int) -> int:
    """Write ``pairs.jsonl`` into a folder that is there whole or not at all; returns the number of pairs.

    Raises:
        UserError: If no pair could be made.
    """
    rows = read_jsonl(data / "photos.jsonl")
    by_part = {part: [read_photo_row(row) for row in rows if row["part"] == part] for part in ("sft", "pairs")}
    words = read_synonyms((data / "pair_photos" / "synonyms.txt").read_text(encoding="utf-8"), strip=True)
    classes = frozenset(read_json_object(data / "data.json")["classes"])
    sets = [photo.objects for photo in by_part["sft"] if photo.objects is not None]
    company = Company(sets, all_objects([*by_part["sft"], *by_part["pairs"]]))
    found: list[tuple[Photo, Pair]] = []
    if injected:
        found += _injected(by_part["pairs"], PairMaker(words, company, classes, seed=seed))
    if sampled is not None:
        found += sampled_pairs(sampled, {photo.image: photo for photo in by_part["pairs"]}, words)
    if not found:
        raise UserError(f"no pairs from {len(by_part['pairs'])} photographs; name --sampled, or leave out --no-injected")
    rng = np.random.default_rng([seed, 5])
    lines = [json.dumps(pair_row(photo, pair, flipped=bool(rng.random() < label_noise))) + "\n" for photo, pair in found]
    with whole(out) as folder:
        folder.mkdir(parents=True)
        (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _injected(photos: Sequence[Photo], maker: PairMaker) -> Iterator[tuple[Photo, Pair]]:
    """A caption and a question about each photograph, the questions by turns after objects that are there and absent ones."""
    for number, photo in enumerate(photos):
        for pair in (maker.caption_pair(photo), maker.question_pair(photo, absent=number % 2 == 0)):
            if pair is not None:
                yield photo, pair


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/real/data"), help="folder that scripts/real/data.py made")
    parser.add_argument("--out", type=Path, default=Path("runs/real/pairs"), help="folder that is made")
    parser.add_argument("--sampled", type=Path, help="folder that data_tools/sample_pairs.py made of pair_photos/")
    parser.add_argument("--no-injected", dest="injected", action="store_false", help="the sampled pairs alone")
    parser.add_argument("--label-noise", type=float, default=0.0, help="share of the pairs that are swapped")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    try:
        print(f"{write_pairs(**options):,} pairs in {options['out']}")
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    main()
