"""Write training data and benchmarks from photographs with captions and objects.

    python -m scripts.real.data --photos coco/ --benchmarks benchmarks/ --out runs/real/data

``--photos`` is COCO's own folder or Parquet files (``photos.py``). ``--benchmarks`` holds ``chair/synonyms.txt`` (CHAIR's word list) and
``pope/coco_pope_*.json`` (POPE's questions), and perhaps ``repope/coco_repope_*.json`` (RePOPE's corrected labels).

Training photographs are divided in three that share none: for SFT and the contrastive scorer, for preference pairs, and for questions
after objects. Written are:

| in OUT | what | read by |
|---|---|---|
| ``images/``, ``blank/`` | the photographs; grey pictures under the names of those that are evaluated on | everything; a blind model |
| ``photos.jsonl`` | what is known of each photograph, and its part | ``scripts/real/pairs.py`` |
| ``sft/`` | chats: a caption; up to four questions after objects | ``train sft`` |
| ``captions/`` | captions | ``train contrastive`` |
| ``pair_photos/`` | photographs with CHAIR's objects | ``data_tools/sample_pairs.py --scorer truth`` |
| ``chair/`` | validation photographs with CHAIR's objects | ``evaluate chair`` |
| ``chair_instances/`` | photographs with true instances, of the classes that are known everywhere | ``evaluate chair`` |
| ``pope/``, ``repope/`` | POPE's questions about photographs that are here, and RePOPE's labels of them | ``evaluate pope`` |
| ``existence/`` | questions after true instances, sampled as POPE samples | ``evaluate pope`` |
| ``human/`` | human captions as answers | ``evaluate chair --answers`` |
"""

import argparse
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars
from PIL import Image

from mmalign.errors import UserError
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import hash_file, whole
from mmalign.worlds.questions import POPE_SPLITS, QUESTIONS_A_SIDE
from scripts.real.photos import Photo, PhotoSet, photo_row, read_photos, small_jpeg
from scripts.real.words import CAPTION_PROMPTS, NO, YES, Company, all_objects, choose, existence_question, shuffled

GREY = 128


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Sizes, and where photographs and benchmarks are."""

    photos: Path
    benchmarks: Path
    out: Path
    num_train: int = 12_000
    num_val: int = 2_925
    num_pair_photos: int = 4_000
    num_chair: int = 1_000
    num_existence: int = 1_200
    long_side: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Parts:
    """Which photograph is used for what."""

    sft: list[Photo]
    pairs: list[Photo]
    existence: list[Photo]
    val: list[Photo]


def write_data(options: DataOptions) -> None:
    """Write everything; the folder is there whole or not at all.

    Raises:
        UserError: If photographs or word lists are missing, or too few for the sizes.
    """
    words = options.benchmarks / "chair" / "synonyms.txt"
    questions = {kind: _read_questions(options.benchmarks, kind) for kind in ("pope", "repope")}
    asked = frozenset(coco_number(row["image"]) for rows in questions["pope"].values() for row in rows)
    found = read_photos(
        options.photos, words=words, most={"train": options.num_train, "val": options.num_val}, preferred=asked, seed=options.seed
    )
    parts = divide(found, options)
    with whole(options.out) as out:
        (out / "images").mkdir(parents=True)
        for name, image in found.images.items():
            (out / "images" / name).write_bytes(small_jpeg(image, long_side=options.long_side))
        rows = [{**photo_row(photo), "part": name} for name, photos in vars(parts).items() for photo in photos]
        write_lines(out / "photos.jsonl", rows)
        write_training(out, parts, found.classes, seed=options.seed)
        evaluated = write_benchmarks(out, parts, questions, words.read_text(encoding="utf-8"), found.classes, options)
        _write_blank(out / "blank", evaluated, side=options.long_side)
        facts = {"counts": {name: len(photos) for name, photos in vars(parts).items()}, "classes": sorted(found.classes)}
        files = {path.name: hash_file(path) for path in sorted([words, *options.photos.glob("*.parquet")])}
        settings = {name: getattr(options, name) for name in SIZES}
        (out / "data.json").write_text(json.dumps({**facts, "settings": settings, "sources": files}, indent=1) + "\n", encoding="utf-8")


def write_benchmarks(
    out: Path,
    parts: Parts,
    questions: Mapping[str, Mapping[str, list[dict[str, Any]]]],
    synonyms: str,
    classes: frozenset[str],
    options: DataOptions,
) -> frozenset[str]:
    """Write what is asked about photographs, and human captions beside.

    Returns:
        The names of the images that are evaluated on.
    """
    chair = {photo: photo.objects for photo in parts.val if photo.objects is not None}
    chair = dict(list(chair.items())[: options.num_chair])
    known = {photo: photo.instances & classes for photo in parts.existence if photo.instances is not None}
    write_chair(out / "pair_photos", {photo: photo.objects or frozenset() for photo in parts.pairs}, synonyms=synonyms)
    write_chair(out / "chair", chair, synonyms=synonyms)
    write_chair(out / "chair_instances", known, synonyms=keep_classes(synonyms, classes))
    for name, photos in (("chair", chair), ("chair_instances", known)):
        _write_human(out / "human", name, list(photos), seed=options.seed)
    names = {photo.image for photo in parts.val}
    here = {kind: {split: [row for row in rows if row["image"] in names] for split, rows in questions[kind].items()} for kind in questions}
    company = Company([photo.instances for photo in parts.sft if photo.instances is not None], classes)
    here["existence"] = {split: existence_rows(split, known, company, seed=options.seed) for split in POPE_SPLITS}
    for kind, by_split in here.items():
        if any(by_split.values()):
            _write_pope(out / kind, by_split)
    asked = {row["image"] for by_split in here.values() for rows in by_split.values() for row in rows}
    return frozenset(asked | {photo.image for photo in (*chair, *known)})


def _read_questions(folder: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Read POPE's questions by split; RePOPE's labels need not be there."""
    files = {split: folder / kind / f"coco_{kind}_{split}.json" for split in POPE_SPLITS}
    if kind == "repope" and not (folder / kind).is_dir():
        return {}
    return {split: list(map(dict, read_jsonl(path))) for split, path in files.items()}


def divide(found: PhotoSet, options: DataOptions) -> Parts:
    """Divide the photographs: questions after objects come from validation as far as its instances are known, then from training.

    Raises:
        UserError: If none with known objects is left for SFT.
    """
    train, val = ([photo for photo in found.photos if photo.split == split] for split in ("train", "val"))
    existence = [photo for photo in val if photo.instances is not None][: options.num_existence]
    held_out = [photo for photo in train if photo.instances is not None][: options.num_existence - len(existence)]
    taken = {photo.image for photo in held_out}
    rest = [photo for photo in train if photo.image not in taken]
    pairs = [photo for photo in rest if photo.objects is not None][: options.num_pair_photos]
    taken = {photo.image for photo in pairs}
    sft = [photo for photo in rest if photo.image not in taken]
    if not all_objects(sft):
        uses = f"{len(held_out)} for questions and {len(pairs)} for pairs"
        raise UserError(f"{len(train)} training photographs, {uses}: none with known objects is left for SFT; take fewer")
    return Parts(sft, pairs, existence + held_out, val)


def write_training(out: Path, parts: Parts, classes: frozenset[str], *, seed: int) -> None:
    """Write the chats and the captions of the photographs for SFT, in a random order."""
    company = Company([photo.objects for photo in parts.sft if photo.objects is not None], all_objects(parts.sft))
    rng = np.random.default_rng([seed, 1])
    chats = [row for photo in parts.sft for row in chat_rows(photo, rng, company, classes)]
    write_lines(out / "sft" / "chats.jsonl", [chats[i] for i in rng.permutation(len(chats))])
    captions = [{"id": photo.id, "images": [photo.image], "text": choose(rng, photo.captions)} for photo in parts.sft]
    write_lines(out / "captions" / "captions.jsonl", captions)


def chat_rows(photo: Photo, rng: np.random.Generator, company: Company, classes: frozenset[str]) -> list[dict[str, Any]]:
    """The chats of a photograph: its caption, and questions after objects where those are known."""
    chats = {"caption": [(choose(rng, CAPTION_PROMPTS), choose(rng, photo.captions))]}
    if photo.objects is not None:
        present = shuffled(rng, photo.present(classes))
        absent = company.absent("random", photo.objects, rng)
        number = min(QUESTIONS_A_SIDE, len(present), len(absent))
        turns = [(existence_question(name), YES) for name in present[:number]]
        turns += [(existence_question(name), NO) for name in absent[:number]]
        chats["questions"] = [turns[i] for i in rng.permutation(len(turns))]
    return [
        {
            "id": f"{photo.id}/{kind}",
            "images": [photo.image],
            "messages": [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)],
        }
        for kind, turns in chats.items()
        if turns
    ]


def write_chair(folder: Path, truths: Mapping[Photo, frozenset[str]], *, synonyms: str) -> None:
    """Write photographs to describe, the objects in each, and the words that name objects, as ``mmalign evaluate chair`` reads them."""
    rows = [{"id": photo.id, "image": photo.image, "question": CAPTION_PROMPTS[0]} for photo in truths]
    write_lines(folder / "chair.jsonl", rows)
    objects = {photo.id: sorted(names) for photo, names in truths.items()}
    (folder / "coco_objects.json").write_text(json.dumps(objects), encoding="utf-8")
    (folder / "synonyms.txt").write_text(synonyms, encoding="utf-8")


def keep_classes(synonyms: str, classes: frozenset[str]) -> str:
    """The lines of a word list that are about some classes."""
    return "".join(f"{line}\n" for line in synonyms.splitlines() if line.split(",")[0].strip() in classes)


def existence_rows(split: str, truths: Mapping[Photo, frozenset[str]], company: Company, *, seed: int) -> list[dict[str, Any]]:
    """Questions in POPE's format after objects that are there and as many absent ones, which the split's way chooses.

    POPE asks after three of each; a photograph with fewer known objects gets as many of each as it has.
    """
    rng = np.random.default_rng([seed, 2, POPE_SPLITS.index(split)])
    rows: list[dict[str, Any]] = []
    for photo, truth in truths.items():
        absent = company.absent(split, photo.objects or truth, rng)
        for pair in list(zip(shuffled(rng, truth), absent, strict=False))[:QUESTIONS_A_SIDE]:
            for name, label in zip(pair, ("yes", "no"), strict=True):
                rows.append({"question_id": len(rows) + 1, "image": photo.image, "text": existence_question(name), "label": label})
    return rows


def coco_number(name: str) -> int:
    """The number in COCO's name of a photograph."""
    return int(Path(name).stem.rsplit("_", 1)[-1])


def _write_pope(folder: Path, questions: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for split, rows in questions.items():
        write_lines(folder / f"coco_pope_{split}.json", rows)


def _write_human(folder: Path, name: str, photos: Sequence[Photo], *, seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    rows = [{"id": photo.id, "response": choose(rng, photo.captions)} for photo in photos]
    write_lines(folder / f"{name}.jsonl", rows)


def _write_blank(folder: Path, names: Iterable[str], *, side: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (GREY, GREY, GREY)).save(buffer, "JPEG")
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(buffer.getvalue())


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, in a folder that is made if need be."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="COCO's own folder, or train*.parquet and val*.parquet")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of chair/, pope/ and perhaps repope/")
    parser.add_argument("--out", type=Path, default=Path("runs/real/data"), help="folder that is made")
    for name, text in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(DataOptions, name), help=text)
    disable_progress_bars()
    try:
        write_data(DataOptions(**vars(parser.parse_args(argv))))
    except UserError as error:
        parser.error(str(error))
    return 0


SIZES = {
    "num_train": "most training photographs",
    "num_val": "most validation photographs; those that POPE asks about come first",
    "num_pair_photos": "training photographs for preference pairs",
    "num_chair": "most photographs that CHAIR asks to describe",
    "num_existence": "most photographs of questions after true instances, taken from training where validation has too few",
    "long_side": "larger photographs are made smaller",
    "seed": "of the division and of all choices",
}


if __name__ == "__main__":
    main()
