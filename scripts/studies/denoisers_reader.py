"""The judge of drawings whose truth is known: a reader of this study's drawings, and what is measured with it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmalign.pictures.metrics import compare_objects, distances_between
from mmalign.pictures.reader import SIDE, DrawingReader, Objects, load_reader, save_reader, train_reader
from mmalign.worlds.render import draw_shapes
from mmalign.worlds.scenes import COLOURS, SHAPES, Scene, sample_scene

MAX_OBJECTS = 3
LEAST_ACCURACY = 0.99
COLUMNS = {"F1": "f1", "all right": "all_right", "false kinds": "false_kinds"}
"""What the page shows of the reader's metrics, in percent."""


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene of the study's world."""
    return sample_scene(rng, num_kinds=len(SHAPES), max_objects=MAX_OBJECTS, with_colour=True)


def objects_of(scene: Scene) -> Objects:
    """What a scene holds, as the reader says it; all of the study's objects have a colour."""
    return [(item.kind, item.colour, item.place) for item in scene.items if item.colour is not None]


def make_reader(out: Path, *, number: int, epochs: int) -> tuple[DrawingReader, float]:
    """Train the reader where it is missing, on drawings of its own.

    Returns:
        The reader, and the share of 400 other drawings that it reads right in all four quarters.
    """
    folder = out / "reader"
    if not (folder / "reader.json").is_file():
        pictures, objects = _draw(number, seed=0)
        trained = train_reader(pictures, objects, num_kinds=len(SHAPES), num_colours=len(COLOURS), epochs=epochs, seed=0)
        save_reader(trained, folder, {"drawings": number, "epochs": epochs})
    reader = load_reader(folder)
    pictures, objects = _draw(400, seed=1)
    return reader, compare_objects(reader.read(pictures), objects)["all_right"]


def _draw(number: int, *, seed: int) -> tuple[list[Image.Image], list[Objects]]:
    rng = np.random.default_rng([77, seed])
    scenes = [draw_scene(rng) for _ in range(number)]
    return [draw_shapes(scene, rng, SIDE) for scene in scenes], [objects_of(scene) for scene in scenes]


def score_drawings(read: Sequence[Objects], wanted: Sequence[Scene]) -> dict[str, float]:
    """Compare what was read with what the captions say: ``COLUMNS`` in percent, and ``objects``, a number per picture."""
    metrics = compare_objects(read, [objects_of(scene) for scene in wanted])
    return {name: 100 * metrics[key] for name, key in COLUMNS.items()} | {"objects": metrics["objects"]}


def diversity(pictures: Sequence[Image.Image]) -> float:
    """Mean difference of pixels, in percent of their range, between every two pictures of one caption."""
    return 100 * float(np.mean(distances_between(pictures))) / 255
