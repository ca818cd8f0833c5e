"""A network that reads drawings exactly, and what is measured with it: the judge of pictures whose truth is known.

Shape legend: B = drawings, Q = quarters (4), K = kinds and none, C = colours.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.denoisers.rows import to_pixels
from mmalign.files import whole
from mmalign.worlds.render import draw_shapes
from mmalign.worlds.scenes import COLOURS, PLACES, SHAPES, Item, Scene, sample_scene

SIDE, MAX_OBJECTS = 32, 3
NONE = len(SHAPES)
READER = "reader.safetensors"
LEAST_ACCURACY = 0.99


class Reader(nn.Module):
    """A small convolutional network: what is in each quarter, and of which colour."""

    def __init__(self) -> None:
        """Start at random."""
        super().__init__()
        widths = (3, 32, 64, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride=1 if i == 3 else 2, padding=1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in pairwise(widths)
        ]
        self.body = nn.Sequential(*blocks, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(64 * 16, len(PLACES) * (NONE + 1 + len(COLOURS)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, K) and (B, Q, C) logits of (B, 3, S, S) pixels from -1 to 1."""
        found = self.head(self.body(pixels).flatten(1)).view(len(pixels), len(PLACES), -1)
        return found[..., : NONE + 1], found[..., NONE + 1 :]

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image]) -> list[Scene]:
        """What is in each picture."""
        kinds, colours = (logits.argmax(-1).tolist() for logits in self(torch.stack([to_pixels(one, side=SIDE) for one in pictures])))
        return [
            Scene(tuple(Item(kind, colour, place) for place, (kind, colour) in enumerate(zip(*row, strict=True)) if kind != NONE))
            for row in zip(kinds, colours, strict=True)
        ]

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image], scene: Scene) -> list[float]:
        """Log-probability that each picture shows a scene: of the kind of every quarter, and of the objects' colours."""
        pixels, kinds, colours = _as_tensors([scene] * len(pictures), pictures)
        logits = self(pixels)
        losses = [F.cross_entropy(own.mT, wanted, reduction="none") for own, wanted in zip(logits, (kinds, colours), strict=True)]
        return (-sum(losses).sum(1)).tolist()


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene of the study's world."""
    return sample_scene(rng, num_kinds=len(SHAPES), max_objects=MAX_OBJECTS, with_colour=True)


def make_reader(out: Path, *, number: int, epochs: int) -> tuple[Reader, float]:
    """Train the reader where it is missing, on drawings of its own.

    Returns:
        The reader, and the share of 400 other drawings that it reads right in all four quarters.
    """
    torch.manual_seed(0)
    reader, rng = Reader(), np.random.default_rng([77, 0])
    if not (out / READER).is_file():
        scenes = [draw_scene(rng) for _ in range(number)]
        pixels, kinds, colours = _as_tensors(scenes, [draw_shapes(scene, rng, SIDE) for scene in scenes])
        _fit(reader, pixels, kinds, colours, epochs=epochs)
        out.mkdir(parents=True, exist_ok=True)
        with whole(out / READER) as partial:
            save_file(reader.state_dict(), partial)
    reader.load_state_dict(load_file(out / READER))
    reader.eval()
    rng = np.random.default_rng([77, 1])
    held_out = [draw_scene(rng) for _ in range(400)]
    found = reader.read([draw_shapes(scene, rng, SIDE) for scene in held_out])
    return reader, sum(one == other for one, other in zip(found, held_out, strict=True)) / len(held_out)


def _as_tensors(scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor, Tensor]:
    kinds, colours = torch.full((len(scenes), len(PLACES)), NONE), torch.full((len(scenes), len(PLACES)), -100)
    for row, scene in enumerate(scenes):
        for item in scene.items:
            assert item.colour is not None
            kinds[row, item.place], colours[row, item.place] = item.kind, item.colour
    return torch.stack([to_pixels(picture, side=SIDE) for picture in pictures]), kinds, colours


def _fit(reader: Reader, pixels: Tensor, kinds: Tensor, colours: Tensor, *, epochs: int, batch: int = 64) -> None:
    steps = max(1, epochs * (len(pixels) // batch))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        start = step % (len(pixels) // batch) * batch
        if start == 0:
            order = torch.randperm(len(pixels))
        chosen = order[start : start + batch]
        kind_logits, colour_logits = reader(pixels[chosen])
        loss = F.cross_entropy(kind_logits.flatten(0, 1), kinds[chosen].flatten())
        loss = loss + F.cross_entropy(colour_logits.flatten(0, 1), colours[chosen].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def score_drawings(read: Sequence[Scene], wanted: Sequence[Scene]) -> dict[str, float]:
    """Compare what was read with what the captions say, in percent.

    Returns:
        ``F1`` of (kind, colour, place) over all pictures, ``all right`` pictures, ``false kinds`` of all drawn ones, and ``objects``, a
        number per picture.
    """
    pairs = [(set(one.items), set(other.items)) for one, other in zip(read, wanted, strict=True)]
    right, drawn, said = (sum(map(len, sets)) for sets in ((one & other for one, other in pairs), *zip(*pairs, strict=True)))
    kinds = [(one.kinds, other.kinds) for one, other in zip(read, wanted, strict=True)]
    false, total = sum(len(one - other) for one, other in kinds), sum(len(one) for one, _ in kinds)
    return {
        "F1": 100 * 2 * right / max(1, drawn + said),
        "all right": 100 * sum(one == other for one, other in pairs) / len(pairs),
        "false kinds": 100 * false / max(1, total),
        "objects": drawn / len(pairs),
    }


def diversity(pictures: Sequence[Image.Image]) -> float:
    """Mean absolute difference of pixels, in percent of their range, between every two pictures of one caption."""
    pixels = [np.asarray(picture, dtype=np.float64) / 255 for picture in pictures]
    return 100 * float(np.mean([np.abs(one - other).mean() for one, other in combinations(pixels, 2)]))
