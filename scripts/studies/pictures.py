"""Do preferences help a model that draws? Pairs, lists and own samples of pictures against more training on the chosen ones.

    python -m scripts.studies.pictures --processes 2           # everything
    python -m scripts.studies.pictures --processes 2 --quick   # one seed, fewer steps, fewer pictures

The start is a small Janus with a tokenizer of drawings of its own (``pictures_start.py``), fine-tuned on true captions of the embedded
world. All arms train it for the same number of steps; the control goes on with SFT on the pictures that are chosen in the pairs. What is
drawn of held-out captions is read by a network that tells kind, colour and place of each object.
``--report docs/studies`` writes the published page.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

from data_tools.pair_pictures import PairPicturesOptions
from data_tools.pair_pictures import run as pair_pictures
from data_tools.train_reader import ReaderOptions
from data_tools.train_reader import run as train_reader
from mmalign.data.datasets import load_rows
from mmalign.files import read_json, whole
from schedules.iterate import main as iterate
from scripts.studies.pictures_grid import CONTROL, NO_BETA, ROUNDS, Arm, Cell, Sizes, best_of, choose_sizes, list_cells, list_searches
from scripts.studies.pictures_page import write_page
from scripts.studies.pictures_start import BATCH, SIDE, make_model
from scripts.studies.study import main, run_missing, slug, write_dataset, write_json, write_run
from scripts.studies.world import TEST_SEED, VALIDATION_SEED, run

GUIDANCE = {"": "1", "guided ": "2"}
"""What metrics are called, by the guidance that pictures were drawn with."""

NO_SHARES = ("objects", "diversity")
"""The other metrics are in percent."""


def make_world(folder: Path, *, seed: int, drawings: int, held_out: int) -> Path:
    """Make a world of drawings where it is missing."""
    if not (folder / "world.json").is_file():
        run(["world", "build", "--out", folder, "--seed", seed, "--num-drawings", drawings, "--num-scenes", 200, "--num-pairs", 1,
             "--num-workers", 1, "--num-eval-scenes", held_out, "--image-size", SIDE, "--max-objects", 3])  # fmt: skip
    return folder


def make_start(out: Path, sizes: Sizes) -> None:
    """Make what is not there yet: worlds, reader, tokenizer with its model, and the fine-tuned start."""
    world = make_world(out / "world", seed=0, drawings=sizes.drawings, held_out=1)
    for name, seed in (("test", TEST_SEED), ("validation", VALIDATION_SEED)):
        make_world(out / name, seed=seed, drawings=1, held_out=sizes.held_out)
    drawings = world / "drawings" / "drawings.parquet"
    if not (out / "reader" / "reader.json").is_file():
        train_reader(ReaderOptions(drawings=drawings, out=out / "reader", held_out=max(8, sizes.held_out)))
    if not (out / "janus" / "config.json").is_file():
        with whole(out / "janus") as partial_folder:
            error = make_model(partial_folder, world, load_rows(drawings), steps=sizes.tokenizer_steps)
        print(f"tokenizer of drawings: mean squared error {error:.4f}", flush=True)
    train(CONTROL, out / "janus", drawings, out / "sft", steps=sizes.sft_steps, learning_rate="1e-3", seed=0)


def make_data(arm: Arm, seed: int, out: Path, sizes: Sizes) -> Path:
    """Make an arm's rows where they are missing."""
    world = make_world(out / "data" / str(seed), seed=seed, drawings=sizes.rows, held_out=1) / "drawings"
    if arm.data == "rounds":
        return world / "drawings.parquet"
    made = world / f"{arm.data}.parquet"
    if arm.data == "chosen" and not made.is_file():
        rows = load_rows(world / "drawn_pairs.parquet")
        write_dataset(made, rows.select_columns(["id", "caption", "image_chosen"]).rename_column("image_chosen", "image"))
    if arm.data == "own" and not made.is_file():
        captions = world / "drawings.parquet"
        run(
            [
                "sample-images",
                captions,
                "--model",
                out / "sft",
                "--guidance",
                1,
                "--batch-size",
                64,
                "--seed",
                seed,
                "--out",
                world / "drawn",
            ]
        )
        pair_pictures(PairPicturesOptions(samples=world / "drawn" / "data", data=captions, out=made))
    return made


def train(arm: Arm, model: Path, data: Path, out: Path, *, steps: int, learning_rate: str, seed: int, beta: str = NO_BETA) -> None:
    """Run one training to its end."""
    own = [] if arm.method == "sft" else ["--objective", arm.objective, "--beta", beta, "--reference", "copy"]
    if not (out / "train_log.json").is_file():
        run(["train", arm.method, "--pictures", "--model", model, "--data", data, "--out", out, "--batch-size", BATCH, "--max-steps", steps,
             "--learning-rate", learning_rate, "--warmup-ratio", 0.1, "--logging-steps", max(1, steps // 15), "--seed", seed,
             *own])  # fmt: skip


def train_rounds(arm: Arm, model: Path, captions: Path, out: Path, *, sizes: Sizes, learning_rate: str, seed: int, beta: str) -> Path:
    """Run an arm's rounds; return the last one's model."""
    steps = max(1, sizes.steps // ROUNDS)
    training = f"--beta {beta} --batch-size {BATCH} --max-steps {steps} --learning-rate {learning_rate} --warmup-ratio 0.1 --seed {seed}"
    words = [captions, "--kind", "pictures", "--scorer", f"likelihood:{out.parents[1] / 'reader'}", "--model", model, "--out", out,
             "--rounds", ROUNDS, "--rewards", "win-rate", "--objective", arm.objective, "--seed", seed, "--train", training,
             "--sample", "--samples 4 --guidance 1 --batch-size 64"]  # fmt: skip
    if iterate([str(word) for word in words]) != 0:
        raise SystemExit(f"the study stopped at the rounds of {out}")
    return out / f"round-{ROUNDS}" / "model"


def measure(model: Path, world: Path, reader: Path) -> dict[str, float]:
    """Draw a held-out world's captions twice, with guidance and without, and read the pictures."""
    metrics = {}
    for name, guidance in GUIDANCE.items():
        drawn = model / f"drawn-{world.name}-{guidance}"
        run(["sample-images", world / "eval" / "drawings.parquet", "--model", model, "--samples", 2, "--guidance", guidance,
             "--batch-size", 64, "--out", drawn])  # fmt: skip
        run(["evaluate", "images", drawn / "data", "--reader", reader, "--out", drawn / "result"])
        found = read_json(drawn / "result" / "images.json")["metrics"]
        metrics |= {f"{name}{key}": value * (1 if key in NO_SHARES else 100) for key, value in found.items()}
    return metrics


def run_cell(cell: Cell, out: Path, *, sizes: Sizes) -> str:
    """Train, measure, and keep the numbers and the log; the weights are deleted."""
    arm, searching = cell.arm, bool(cell.beta)
    beta, rate = (cell.beta, cell.learning_rate) if searching else best_of(arm, out)
    data = make_data(arm, cell.seed, out, sizes)
    model = out / "models" / "-".join(map(slug, (arm.name, str(cell.seed), beta, rate)))
    shutil.rmtree(model, ignore_errors=True)
    trained = model
    if arm.data == "rounds":
        trained = train_rounds(arm, out / "sft", data, model, sizes=sizes, learning_rate=rate, seed=cell.seed, beta=beta)
    else:
        train(arm, out / "sft", data, model, steps=sizes.steps, learning_rate=rate, seed=cell.seed, beta=beta)
    metrics = measure(trained, out / ("validation" if searching else "test"), out / "reader")
    write_run(cell.path(out), metrics, model=trained)
    shutil.rmtree(model)
    return f"F1 {metrics['f1']:.1f}, with guidance {metrics['guided f1']:.1f}"


def run_study(options: argparse.Namespace) -> None:
    """Make the start; search beta and learning rate; compare."""
    form = {"quick": options.quick, "smoke": options.smoke}
    out, sizes = options.out, choose_sizes(**form)
    make_start(out, sizes)
    if not (out / "cells" / "sft.json").is_file():
        write_json(out / "cells" / "sft.json", measure(out / "sft", out / "test", out / "reader"))
    print(f"SFT: F1 {read_json(out / 'cells' / 'sft.json')['f1']:.1f}", flush=True)
    for cells in (list_searches(**form), list_cells(**form)):
        # Arms of a seed share its world.
        run_missing(cells, partial(run_cell, out=out, sizes=sizes), options, together=lambda cell: cell.seed)


if __name__ == "__main__":
    main(__doc__, name="pictures", quick="one seed, fewer steps, fewer pictures", run=run_study, write_page=write_page)
