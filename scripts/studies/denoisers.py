"""Do preferences between pictures teach a denoiser more than the preferred pictures alone? Objectives on drawings whose truth is known.

    python -m scripts.studies.denoisers --processes 2           # everything: five seeds
    python -m scripts.studies.denoisers --processes 2 --quick   # one seed, fewer steps

A small text-to-image pipeline learns to draw the embedded world's scenes from true captions. From there every arm trains for the same
number of steps: on more preferred pictures alone, the control, or on pairs of a right drawing and one with a fault, or on lists. A reader
that is right on real drawings says what is in those of held-out captions. ``--report docs/studies`` writes the page.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from diffusers.utils import logging
from transformers import CLIPTextConfig, CLIPTextModel

from mmalign.data.images import load_image
from mmalign.files import whole
from mmalign.pictures.reader import SIDE
from mmalign.worlds.contrast import KINDS, Contrast, make_contrast
from mmalign.worlds.render import draw_shapes, draw_shapes_twice, to_png
from mmalign.worlds.scenes import PLACES, SHAPES, Scene
from mmalign.worlds.text import Speaker
from mmalign.worlds.tokenizer import train_tokenizer
from scripts.studies.denoisers_page import ARMS, BASE, Cell, write_page
from scripts.studies.denoisers_reader import LEAST_ACCURACY, diversity, draw_scene, make_reader, objects_of, score_drawings
from scripts.studies.study import main, run_missing, write_dataset, write_json
from scripts.studies.world import load_copy, run

SEEDS = (1, 2, 3, 4, 5)
# PixArt-alpha pads captions to this many tokens.
WIDTH, LONGEST = 64, 120
# Of a list's pictures; the last kinds always have room.
FAULTS = ("swapped", "moved", "recoloured")
SINGLE = Features({"caption": Value("string"), "image": ImageFeature()})
PAIRS = Features(
    {
        **{name: ImageFeature() for name in ("image_chosen", "image_rejected")},
        "caption": Value("string"),
        **dict.fromkeys(("score_chosen", "score_rejected"), Value("float64")),
    }
)
LISTS = Features({"caption": Value("string"), "images": List(ImageFeature()), "scores": List(Value("float64"))})


class Sizes(NamedTuple):
    """How much is drawn and trained."""

    pictures: int
    pairs: int
    base_steps: int
    steps: int
    captions: int
    repeated: int
    sampling_steps: int
    reader: tuple[int, int]
    heads: int
    """Of the transformer, of 16 channels each."""
    layers: int


FULL = Sizes(20_000, 3_000, 8_000, 400, 200, 25, 20, (12_000, 8), 8, 4)
QUICK = FULL._replace(base_steps=3_000, steps=150)
SMOKE = Sizes(24, 8, 2, 2, 4, 2, 2, (64, 1), 2, 1)


def choose_sizes(options: argparse.Namespace) -> Sizes:
    """Those that the command line asks for."""
    return SMOKE if options.smoke else QUICK if options.quick else FULL


def make_rows(folder: Path, seed: int, sizes: Sizes) -> None:
    """Draw a seed's pictures with captions, pairs, the pairs' chosen pictures alone, and lists, where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"pictures": (_picture_row, sizes.pictures, SINGLE), "pairs": (_pair_row, sizes.pairs, PAIRS)}
    makers["lists"] = (_list_row, sizes.pairs, LISTS)
    for number, (name, (make, count, features)) in enumerate(makers.items()):
        if not (folder / f"{name}.parquet").is_file():
            rows = [make(row_rng(seed, number, row)) for row in range(count)]
            write_dataset(folder / f"{name}.parquet", Dataset.from_list(rows, features=features))
    if not (folder / "chosen.parquet").is_file():
        pairs = load_copy(folder / "pairs.parquet").cast_column("image_chosen", ImageFeature(decode=False))
        chosen = [{"caption": row["caption"], "image": row["image_chosen"]} for row in pairs]
        write_dataset(folder / "chosen.parquet", Dataset.from_list(chosen, features=SINGLE))


def row_rng(seed: int, number: int, row: int) -> np.random.Generator:
    """What a row of a file is drawn with."""
    return np.random.default_rng([seed, number, row])


def _picture_row(rng: np.random.Generator) -> dict[str, Any]:
    scene = draw_scene(rng)
    return {"caption": Speaker(SHAPES).detailed(scene), "image": _cell(draw_shapes(scene, rng, SIDE))}


def _pair_row(rng: np.random.Generator) -> dict[str, Any]:
    """A right drawing, and one with a fault: everything else is equal to the pixel."""
    contrast = draw_contrast(rng)
    own, other = draw_shapes_twice(contrast, rng, SIDE)
    scores = {"score_chosen": 1.0, "score_rejected": share_right(contrast.other, contrast.own)}
    return {"caption": Speaker(SHAPES).detailed(contrast.own), "image_chosen": _cell(own), "image_rejected": _cell(other), **scores}


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """Draw a pair's scenes."""
    return make_contrast(rng, KINDS[int(rng.integers(len(KINDS)))], lambda: draw_scene(rng), num_kinds=len(SHAPES))


def _list_row(rng: np.random.Generator) -> dict[str, Any]:
    """Four drawings of a caption: each has a fault more than the one before, which may also mend one."""
    scenes = [draw_scene(rng)]
    while len(scenes) < 4:
        last = scenes[-1]
        scenes.append(make_contrast(rng, FAULTS[int(rng.integers(3))], lambda last=last: last, num_kinds=len(SHAPES)).other)
    look = int(rng.integers(2**32))
    images = [_cell(draw_shapes(scene, np.random.default_rng(look), SIDE)) for scene in scenes]
    return {"caption": Speaker(SHAPES).detailed(scenes[0]), "images": images, "scores": [share_right(one, scenes[0]) for one in scenes]}


def share_right(scene: Scene, truth: Scene) -> float:
    """Share of the quarters that hold what they should."""
    return sum(set(_at(scene, place)) == set(_at(truth, place)) for place in range(len(PLACES))) / len(PLACES)


def _at(scene: Scene, place: int) -> list[Any]:
    return [item for item in scene.items if item.place == place]


def _cell(image: Any) -> dict[str, Any]:
    return {"bytes": to_png(image), "path": None}


def make_pipeline(folder: Path, captions: list[str], seed: int, sizes: Sizes) -> None:
    """Save a pipeline of random weights in pixel space, where it is missing: stock classes, a frozen random text encoder."""
    if (folder / "model_index.json").is_file():
        return
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(captions)
    tokenizer.model_max_length = LONGEST
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=LONGEST, **ids,
    )  # fmt: skip
    transformer = PixArtTransformer2DModel(
        sample_size=SIDE, in_channels=3, out_channels=3, patch_size=4, num_layers=sizes.layers, num_attention_heads=sizes.heads,
        attention_head_dim=16, cross_attention_dim=16 * sizes.heads, caption_channels=WIDTH,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=True)
    # Not T5, PixArt's own: untrained, it does not tell words by their place.
    pipeline = PixArtAlphaPipeline(
        tokenizer=tokenizer, text_encoder=CLIPTextModel(text), vae=None, transformer=transformer, scheduler=scheduler
    )
    with whole(folder) as partial_folder:
        pipeline.save_pretrained(partial_folder)


def run_cell(cell: Cell, out: Path, *, sizes: Sizes) -> str:
    """Train an arm from the seed's base, which the first cell of a seed makes, and measure it."""
    # Of parts that a pipeline in pixel space has not, or that are not those of its paper.
    logging.set_verbosity_error()
    rows, models = out / "rows" / str(cell.seed), out / "models" / str(cell.seed)
    make_rows(rows, cell.seed, sizes)
    base, model = models / BASE, models / cell.arm
    every = ["--batch-size", 32, "--seed", cell.seed, "--warmup-ratio", 0.05, "--logging-steps", 20, "--check-workers", 0]
    if not (base / "train_log.json").is_file():
        make_pipeline(models / "random", load_copy(rows / "pictures.parquet")["caption"][:4000], cell.seed, sizes)
        run(["train", "denoiser", "--model", models / "random", "--data", rows / "pictures.parquet", "--out", base,
             "--max-steps", sizes.base_steps, "--optimizer", "muon", "--learning-rate", 2e-3, "--adam-beta2", 0.95,
             "--save-steps", 1000, *every])  # fmt: skip
    arm = ARMS[cell.arm]
    if arm.words:
        shutil.rmtree(model, ignore_errors=True)
        data = rows / f"{arm.data}.parquet"
        if arm.data == "own":
            data = make_own_pairs(rows, base, sizes)
        if arm.data == "paths":
            data = make_scored_paths(rows, base, cell.seed, out, sizes)
        run(["train", *arm.words, "--model", base, "--data", data, "--out", model, "--max-steps", sizes.steps,
             "--learning-rate", 2e-4, *every, "--batch-size", arm.batch])  # fmt: skip
    metrics = measure(model, out, sizes)
    write_json(cell.path(out), metrics)
    return ", ".join(f"{name} {value:.1f}" for name, value in metrics.items())


def make_own_pairs(rows: Path, base: Path, sizes: Sizes) -> Path:
    """The chosen pictures against the base's own: what DDO trains on."""
    out = rows / "own"
    run(["sample-denoiser", rows / "chosen.parquet", "--model", base, "--out", out, "--pairs", "--guidance", 1, "--batch-size", 32,
         "--sampling-steps", sizes.sampling_steps])  # fmt: skip
    return out / "samples.parquet"


def make_scored_paths(rows: Path, base: Path, seed: int, out: Path, sizes: Sizes) -> Path:
    """Two paths of the base for each caption of the pairs, scored by what the reader sees at their ends, for D3PO."""
    folder = rows / "paths"
    run(["sample-denoiser", rows / "chosen.parquet", "--model", base, "--out", folder, "--paths", "--num-samples", 2, "--guidance", 2,
         "--batch-size", 32, "--sampling-steps", sizes.sampling_steps])  # fmt: skip
    reader, _ = make_reader(out, number=sizes.reader[0], epochs=sizes.reader[1])
    # As make_rows draws pairs.
    wanted = [draw_contrast(row_rng(seed, 1, row)).own for row in range(sizes.pairs)]
    samples = load_copy(folder / "samples.parquet").select_columns(["caption", "images", "paths"])
    samples = samples.cast_column("images", List(ImageFeature(decode=False)))
    scores = [
        reader.score([load_image(image) for image in row["images"]], objects_of(truth)) for row, truth in zip(samples, wanted, strict=True)
    ]
    write_dataset(folder / "scored.parquet", samples.remove_columns("images").add_column("scores", scores))
    return folder / "scored.parquet"


def measure(model: Path, out: Path, sizes: Sizes) -> dict[str, float]:
    """Draw held-out captions, and read the drawings; some captions eight times, for diversity."""
    rng = np.random.default_rng([99, 0])
    scenes = [draw_scene(rng) for _ in range(sizes.captions)]
    captions = [Speaker(SHAPES).detailed(scene) for scene in scenes]
    drawn = draw(model, captions, 1, sizes)
    reader, _ = make_reader(out, number=sizes.reader[0], epochs=sizes.reader[1])
    metrics = score_drawings(reader.read([one for images in drawn for one in images]), scenes)
    repeated = draw(model, captions[: sizes.repeated], 8, sizes)
    return metrics | {"diversity": float(np.mean([diversity(images) for images in repeated]))}


def draw(model: Path, captions: list[str], number: int, sizes: Sizes) -> list[list[Any]]:
    """So many pictures of each caption."""
    folder = model / f"drawings-{number}"
    folder.mkdir(exist_ok=True)
    Dataset.from_dict({"caption": captions}).to_parquet(folder / "captions.parquet")
    run(["sample-denoiser", folder / "captions.parquet", "--model", model, "--out", folder / "samples", "--num-samples", number,
         "--guidance", 2, "--batch-size", 50, "--sampling-steps", sizes.sampling_steps])  # fmt: skip
    rows = load_copy(folder / "samples" / "samples.parquet").cast_column("images", List(ImageFeature(decode=False)))
    return [[load_image(image) for image in row["images"]] for row in rows]


def run_study(options: argparse.Namespace) -> None:
    """Make the reader, then all arms of a seed in one process, seed by seed."""
    sizes = choose_sizes(options)
    _, accuracy = make_reader(options.out, number=sizes.reader[0], epochs=sizes.reader[1])
    print(f"the reader reads {accuracy:.1%} of 400 drawings right in all quarters")
    if accuracy < LEAST_ACCURACY and not options.smoke:
        raise SystemExit(f"the reader must read {LEAST_ACCURACY:.0%}; train it longer")
    seeds = SEEDS[:1] if options.quick or options.smoke else SEEDS
    cells = [Cell(arm, seed) for seed in seeds for arm in ARMS]
    run_missing(cells, partial(run_cell, out=options.out, sizes=sizes), options, together=lambda cell: cell.seed)


if __name__ == "__main__":
    main(__doc__, name="denoisers", quick="one seed, fewer steps", run=run_study, write_page=write_page)
