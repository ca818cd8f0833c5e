"""Scenes to pixels: drawn shapes, or mosaics of photographs."""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from mmalign.data.images import load_image
from mmalign.worlds.scenes import SHAPES, Scene

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


def draw_shapes(scene: Scene, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a scene with jitter in place and size, slight overlap, and noise: some objects are hard to see."""
    side = size * OVERSAMPLING
    image = Image.new("RGB", (side, side), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    colours = list(RGB.values())
    for item in scene.items:
        radius = side * rng.uniform(0.14, 0.22)
        centre = np.array([0.27 + 0.46 * (item.place % 2), 0.27 + 0.46 * (item.place // 2)]) * side
        x, y = centre + rng.uniform(-0.07, 0.07, 2) * side
        assert item.colour is not None, "drawn objects have colours"
        _DRAW[SHAPES[item.kind]](draw, float(x), float(y), float(radius), colours[item.colour])
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    pixels = pixels + rng.normal(0, rng.uniform(2, 10), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_mosaic(scene: Scene, rng: np.random.Generator, size: int, photos: dict[int, list[bytes]]) -> Image.Image:
    """Put one photograph of each object's class into its quarter."""
    half = size // 2
    image = Image.new("RGB", (size, size), (BACKGROUND,) * 3)
    for item in scene.items:
        choices = photos[item.kind]
        photo = load_image(choices[int(rng.integers(len(choices)))]).resize((half, half))
        image.paste(photo, (half * (item.place % 2), half * (item.place // 2)))
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
