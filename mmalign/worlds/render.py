"""Scenes to pixels: drawn shapes, or mosaics of photographs."""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mmalign.data.images import load_image
from mmalign.worlds.contrast import Contrast
from mmalign.worlds.scenes import SHAPES, Item, Scene

RGB = {
    "red": (214, 40, 40),
    "green": (42, 145, 52),
    "blue": (38, 84, 214),
    "yellow": (246, 205, 30),
    "purple": (140, 45, 170),
    "black": (25, 25, 25),
}
# Shapes are drawn this many times larger and scaled down, for smooth edges.
OVERSAMPLING = 4
BACKGROUND = 226


@dataclass(frozen=True)
class Look:
    """How large a shape is and where in its quarter it stands, in shares of the image's side."""

    radius: float
    shift: tuple[float, float]


def draw_shapes(scene: Scene, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a scene with jitter in place and size, slight overlap, and noise: some objects are hard to see."""
    looks = [_draw_look(rng) for _ in scene.items]
    return _paint(zip(scene.items, looks, strict=True), _draw_noise(rng, size))


def draw_shapes_twice(contrast: Contrast, rng: np.random.Generator, size: int) -> tuple[Image.Image, Image.Image]:
    """Draw own and other scene: with one size and place in its quarter for each object, in one order, under one noise."""
    own, other = draw_alike(contrast.slots, rng, size)
    return own, other


def draw_alike(scenes: Sequence[Sequence[Item | None]], rng: np.random.Generator, size: int) -> list[Image.Image]:
    """Draw scenes of as many slots, some of them empty: the objects of a slot look alike but for what they are and their quarter."""
    looks = [_draw_look(rng) for _ in scenes[0]]
    noise = _draw_noise(rng, size)
    return [_paint(((item, look) for item, look in zip(slots, looks, strict=True) if item is not None), noise) for slots in scenes]


def _draw_look(rng: np.random.Generator) -> Look:
    radius = rng.uniform(0.14, 0.22)
    x, y = rng.uniform(-0.07, 0.07, 2).tolist()
    return Look(radius, (x, y))


def _draw_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.normal(0, rng.uniform(2, 10), (size, size, 3))


def _paint(objects: Iterable[tuple[Item, Look]], noise: np.ndarray) -> Image.Image:
    size = len(noise)
    side = size * OVERSAMPLING
    image = Image.new("RGB", (side, side), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    colours = list(RGB.values())
    for item, look in objects:
        centre = np.array([0.27 + 0.46 * (item.place % 2), 0.27 + 0.46 * (item.place // 2)]) * side
        x, y = centre + np.array(look.shift) * side
        assert item.colour is not None, "drawn objects have colours"
        _DRAW[SHAPES[item.kind]](draw, float(x), float(y), float(side * look.radius), colours[item.colour])
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_mosaic(scene: Scene, rng: np.random.Generator, size: int, photos: dict[int, list[bytes]]) -> Image.Image:
    """Put one photograph of each object's class into its quarter."""
    return _paste([(item, _draw_photo(item, rng, photos)) for item in scene.items], size)


def draw_mosaic_twice(
    contrast: Contrast, rng: np.random.Generator, size: int, photos: dict[int, list[bytes]]
) -> tuple[Image.Image, Image.Image]:
    """Put own and other scene together, with one photograph of each object that is in both."""
    drawn: dict[int, bytes] = {}
    for item in (item for slots in contrast.slots for item in slots if item is not None):
        if item.kind not in drawn:
            drawn[item.kind] = _draw_photo(item, rng, photos)
    own, other = (_paste([(item, drawn[item.kind]) for item in slots if item is not None], size) for slots in contrast.slots)
    return own, other


def _draw_photo(item: Item, rng: np.random.Generator, photos: dict[int, list[bytes]]) -> bytes:
    choices = photos[item.kind]
    return choices[int(rng.integers(len(choices)))]


def _paste(objects: Iterable[tuple[Item, bytes]], size: int) -> Image.Image:
    half = size // 2
    image = Image.new("RGB", (size, size), (BACKGROUND,) * 3)
    for item, photo in objects:
        image.paste(load_image(photo).resize((half, half)), (half * (item.place % 2), half * (item.place // 2)))
    return image


def to_png(image: Image.Image) -> bytes:
    """Encode without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


Colour = tuple[int, int, int]
Drawer = Callable[[ImageDraw.ImageDraw, float, float, float, Colour], None]


def _points(x: float, y: float, r: float, corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x + r * a, y + r * b) for a, b in corners]


def _polygon(corners: list[tuple[float, float]]) -> Drawer:
    def draw(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
        canvas.polygon(_points(x, y, r, corners), fill=colour)

    return draw


def _circle(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _ring(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    canvas.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(1, round(0.36 * r)))


def _moon(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    # A crescent as one polygon, so that what lies below it stays visible.
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(math.radians(50), math.radians(310), 30)]
    inner = [(0.42 + 0.78 * math.cos(a), 0.78 * math.sin(a)) for a in np.linspace(math.radians(280), math.radians(80), 30)]
    canvas.polygon(_points(x, y, r, [*outer, *inner]), fill=colour)


def _heart(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    angles = np.linspace(0, 2 * math.pi, 40)
    curve = [(math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16) for a in angles]
    canvas.polygon(_points(x, y, 1.05 * r, curve), fill=colour)


_STAR = [
    (math.sin(math.pi * i / 5) * (1.15 if i % 2 == 0 else 0.45), -math.cos(math.pi * i / 5) * (1.15 if i % 2 == 0 else 0.45))
    for i in range(10)
]
_CROSS = [
    (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
    (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
]  # fmt: skip

_DRAW: dict[str, Drawer] = {
    "circle": _circle,
    "square": _polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": _polygon([(0, -1.05), (1, 0.85), (-1, 0.85)]),
    "star": _polygon(_STAR),
    "heart": _heart,
    "cross": _polygon(_CROSS),
    "moon": _moon,
    "ring": _ring,
}
