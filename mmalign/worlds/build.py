"""Build a world: data files, held-out images with their questions, and a tokenizer."""

import dataclasses
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from tqdm import tqdm

from mmalign import __version__
from mmalign.errors import UserError
from mmalign.files import check_same, hash_file, read_json_object, whole
from mmalign.options.world import WorldOptions
from mmalign.worlds.contrast import Asked
from mmalign.worlds.drawings import DRAWN_FEATURES
from mmalign.worlds.photos import PhotoPool, load_photos
from mmalign.worlds.questions import POPE_SPLITS, count_objects, pope_questions
from mmalign.worlds.rows import SceneMaker
from mmalign.worlds.scenes import SHAPES
from mmalign.worlds.text import Speaker
from mmalign.worlds.tokenizer import train_tokenizer

CHUNK = 500
_TURNS = List({"role": Value("string"), "content": Value("string")})
_SHARED = {"id": Value("string"), "images": List(Image())}
FEATURES = {
    "sft": Features({**_SHARED, "messages": _TURNS, "kind": Value("string")}),
    "captions": Features({**_SHARED, "text": Value("string")}),
    "pairs": Features(
        {
            **_SHARED,
            "prompt": _TURNS,
            "chosen": _TURNS,
            "rejected": _TURNS,
            "source": Value("string"),
            "truth_kind": Value("string"),
            "truth_difficulty": Value("float64"),
            "truth_flipped": Value("bool"),
        }
    ),
    "contrast": Features(
        {
            **_SHARED,
            "images_other": List(Image()),
            **dict.fromkeys(("prompt", "chosen", "rejected", "chosen_other"), _TURNS),
            "source": Value("string"),
            "contrast_kind": Value("string"),
            "contrast_asked": Value("string"),
            "contrast_objects": List(Value("string")),
            "contrast_likely": Value("bool"),
        }
    ),
    **DRAWN_FEATURES,
}


def build_world(options: WorldOptions) -> Path:
    """Make a world in ``options.out``; its ``world.json`` is written last, so a half-made world has none.

    A world that is there already with the same options is kept.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds something else.
    """
    out, resolved = options.out, _resolved(options)
    record = out / "world.json"
    if record.is_file():
        held = read_json_object(record).get("config")
        if not isinstance(held, dict):
            raise UserError(f"{record} is no record of a world: expected its options under config; remove {out} and build it again")
        check_same(out, held, resolved, what="another world")
        return out
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no world; choose another --out")
    photos = None if options.photos is None else load_photos(options.photos)
    names = SHAPES if photos is None else photos.names
    with whole(out) as partial:
        partial.mkdir(parents=True)
        counts = _write_training_data(options, partial, photos)
        counts |= _write_eval(options, partial, photos, Speaker(names))
        if options.num_contrast:
            counts |= _write_contrasts(options, partial, photos)
        if options.num_drawings:
            counts |= _write_drawings(options, partial)
        files = {str(path.relative_to(partial)): hash_file(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        content = {"config": resolved, "names": names, "counts": counts, "mmalign": __version__, "sha256": files}
        (partial / "world.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return out


def _resolved(options: WorldOptions) -> dict[str, Any]:
    """The options that decide the bytes."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("out", "num_workers")}
    # Without contrasts, or drawings, a world is what it was before there were any.
    for name in ("num_contrast", "num_drawings"):
        if not values[name]:
            del values[name]
    return {**values, "photos": None if options.photos is None else hash_file(options.photos)}


def _maker(options: WorldOptions, photos: PhotoPool | None, split: str) -> SceneMaker:
    if photos is None:
        return SceneMaker(options)
    return SceneMaker(options, photos.names, photos.of(split))


def _rows(options: WorldOptions, photos: PhotoPool | None, split: str, count: int) -> Iterator[dict[str, Any]]:
    maker = _maker(options, photos, split)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    bar = tqdm(total=count, desc=f"drawing {split}", unit="scene", leave=False)
    if options.num_workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield from maker.rows(split, chunk)
            bar.update(len(chunk))
        return
    # Not fork: the caller may hold threads, and a forked child of those can hang.
    with ProcessPoolExecutor(options.num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for rows in pool.map(maker.rows, [split] * len(chunks), chunks):
            yield from rows
            bar.update(len(rows))


def _write_training_data(options: WorldOptions, out: Path, photos: PhotoPool | None) -> dict[str, int]:
    sizes = {"sft": options.num_scenes, "captions": options.num_scenes, "pairs": options.num_pairs}
    texts: list[str] = []
    for split, size in sizes.items():
        rows = [_with_image_dicts(row) for row in _rows(options, photos, split, size)]
        # The vocabulary is closed, so a part of the text has every word of it.
        texts += [text for row in rows[:4000] for text in _texts(row)]
        (out / split).mkdir()
        Dataset.from_list(rows, features=FEATURES[split]).to_parquet(out / split / "train.parquet")
    train_tokenizer(texts).save_pretrained(out / "tokenizer")
    return sizes


def _with_image_dicts(row: dict[str, Any]) -> dict[str, Any]:
    def wrap(value: Any) -> Any:
        return [wrap(one) for one in value] if isinstance(value, list) else {"bytes": value, "path": None}

    return {name: wrap(value) if name.startswith("image") else value for name, value in row.items()}


def _texts(row: dict[str, Any]) -> list[str]:
    messages = [message for key in ("messages", "prompt", "chosen", "rejected") for message in row.get(key, [])]
    texts = [message["content"] for message in messages] + ([row["text"]] if "text" in row else [])
    # Behind a line break and behind a space, as chat templates put it.
    return texts + [" " + text for text in texts]


def _write_eval(options: WorldOptions, out: Path, photos: PhotoPool | None, speaker: Speaker) -> dict[str, int]:
    rows = list(_rows(options, photos, "eval", options.num_eval_scenes))
    folder = out / "eval"
    (folder / "images").mkdir(parents=True)
    for row in rows:
        (folder / "images" / f"{row['id']}.png").write_bytes(row["images"][0])
    maker = _maker(options, photos, "sft")
    scenes = [maker.scene("sft", index)[0].kinds for index in range(options.num_scenes)]
    frequency, together = count_objects(scenes, len(speaker.names))
    images = [(f"{row['id']}.png", frozenset(row["kinds"])) for row in rows]
    counts = {"eval": len(rows)}
    for split in POPE_SPLITS:
        questions = pope_questions(split, images, speaker, frequency=frequency, together=together, seed=options.seed)
        _write_jsonl(folder / f"pope_{split}.jsonl", questions)
        counts[f"pope_{split}"] = len(questions)
    names = speaker.names
    captions = [
        {
            "id": row["id"],
            "image": f"{row['id']}.png",
            "question": row["caption_prompt"],
            "truth": [names[kind] for kind in row["kinds"]],
            "hallu": [names[kind] for kind in row["likely"]],
        }
        for row in rows
    ]
    _write_jsonl(folder / "chair.jsonl", captions)
    general = [
        {"id": f"{row['id']}-{kind}-{i}", "image": f"{row['id']}.png", "question": question, "answer": answer, "kind": kind}
        for row in rows
        for i, (question, answer, kind) in enumerate(row["questions"])
    ]
    _write_jsonl(folder / "questions.jsonl", general)
    (folder / "synonyms.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return counts


def _write_contrasts(options: WorldOptions, out: Path, photos: PhotoPool | None) -> dict[str, int]:
    """Write pairs to train on, held-out ones of the same form, and a question on both images of each held-out one."""
    training = list(_rows(options, photos, "contrast", options.num_contrast))
    held_out = list(_rows(options, photos, "contrast_eval", options.num_eval_scenes))
    folder = out / "eval" / "contrast"
    (folder / "images").mkdir(parents=True)
    questions = []
    for row in held_out:
        asked: Asked = row.pop("evaluated")
        shared = {"pair": row["id"], "question": asked.prompt, "options": [asked.own.rstrip("."), asked.other.rstrip(".")]}
        for side, answer, image in zip(("own", "other"), shared["options"], [*row["images"], *row["images_other"]], strict=True):
            name = f"{row['id']}-{side}"
            (folder / "images" / f"{name}.png").write_bytes(image)
            questions.append({"id": name, "image": f"{name}.png", **shared, "answer": answer, "kind": row["contrast_kind"]})
    _write_jsonl(folder / "questions.jsonl", questions)
    (out / "contrast").mkdir()
    for path, rows in ((out / "contrast" / "train.parquet", training), (folder / "pairs.parquet", held_out)):
        Dataset.from_list([_with_image_dicts(row) for row in rows], features=FEATURES["contrast"]).to_parquet(path)
    return {"contrast": len(training), "contrast_eval": len(held_out)}


def _write_drawings(options: WorldOptions, out: Path) -> dict[str, int]:
    """Write what pictures as answers are trained on, and held-out captions with their drawing."""
    counts = dict.fromkeys(DRAWN_FEATURES, options.num_drawings) | {"drawings_eval": options.num_eval_scenes}
    (out / "drawings").mkdir()
    for split, count in counts.items():
        path = out / "eval" / "drawings.parquet" if split == "drawings_eval" else out / "drawings" / f"{split}.parquet"
        Dataset.from_list([_with_image_dicts(row) for row in _rows(options, None, split, count)], features=FEATURES[split]).to_parquet(path)
    return counts


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
