"""A small network that reads drawings of the embedded world: which kind and colour stands in each quarter.

It is trained on drawings whose truth is known, and then says what a model has drawn.

Shape legend: B = pictures, Q = quarters.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.files import expected_form, read_json_object, whole, write_whole

QUARTERS = 4
SIDE = 32
"""Pictures are read at this size."""
BATCH = 64

Objects = list[tuple[int, int, int]]
"""[kind, colour, place], by number."""


class DrawingReader(nn.Module):
    """Three convolutions and a linear layer: for each quarter scores of no object and of each kind, and of each colour."""

    def __init__(self, num_kinds: int, num_colours: int) -> None:
        """Make the layers."""
        super().__init__()
        self.num_kinds, self.num_colours = num_kinds, num_colours
        head = nn.Linear(96 * (SIDE // 8) ** 2, QUARTERS * (1 + num_kinds + num_colours))
        self.body = nn.Sequential(*_halve(3, 32), *_halve(32, 64), *_halve(64, 96), nn.Flatten(), head)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, side, side) to scores of kinds, (B, Q, 1 + kinds), 0 = none, and of colours, (B, Q, colours)."""
        scores = self.body(pixels).view(len(pixels), QUARTERS, -1)
        kinds, colours = scores.split([1 + self.num_kinds, self.num_colours], -1)
        return kinds, colours

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image]) -> list[Objects]:
        """Say what pictures show."""
        found: list[Objects] = []
        for start in range(0, len(pictures), BATCH):
            kinds, colours = self(to_pixels(pictures[start : start + BATCH]))
            for kind, colour in zip(kinds.argmax(-1).tolist(), colours.argmax(-1).tolist(), strict=True):
                found.append([(k - 1, c, place) for place, (k, c) in enumerate(zip(kind, colour, strict=True)) if k > 0])
        return found

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image], named: Objects) -> list[float]:
        """Log-probability that each picture shows what is named: of the kind of every quarter, and of the named objects' colours.

        Raises:
            ValueError: If a kind or colour is none of its own.
        """
        if unknown := [item for item in named if item[0] >= self.num_kinds or item[1] >= self.num_colours]:
            raise UserError(
                f"objects hold {list(unknown[0])}, and the reader is of {self.num_kinds} kinds and {self.num_colours} colours; train it on "
                "drawings that have both"
            )
        targets, logits = _targets([named] * len(pictures)), self(to_pixels(pictures))
        kinds, colours = (
            F.cross_entropy(own.mT, wanted, ignore_index=-1, reduction="none") for own, wanted in zip(logits, targets, strict=True)
        )
        return (-(kinds + colours).sum(1)).tolist()


def _halve(channels: int, more: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, more, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(more), nn.ReLU()]


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, side, side) from -1 to 1."""
    arrays = [np.asarray(load_image(one).resize((SIDE, SIDE), Image.Resampling.BOX)) for one in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_reader(
    pictures: Sequence[Image.Image], objects: Sequence[Objects], *, num_kinds: int, num_colours: int, epochs: int, seed: int
) -> DrawingReader:
    """Train a reader on pictures with their truth; noise and blur are added, since models draw less sharply.

    Args:
        pictures: Any size.
        objects: What each shows, at most one in a quarter.
        num_kinds: Of the world.
        num_colours: The same.
        epochs: Passes over the pictures.
        seed: Of weights, order and noise.
    """
    torch.manual_seed(seed)
    reader = DrawingReader(num_kinds, num_colours)
    pixels, (kinds, colours) = to_pixels(pictures), _targets(objects)
    steps = epochs * -(-len(pixels) // BATCH)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(pixels)).split(BATCH):
            kind_scores, colour_scores = reader(_soften(pixels[part]))
            loss = F.cross_entropy(kind_scores.flatten(0, 1), kinds[part].flatten())
            loss = loss + F.cross_entropy(colour_scores.flatten(0, 1), colours[part].flatten(), ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return reader.eval()


def _targets(objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
    """(B, Q) kinds counted from 1, 0 = none, and colours, -1 = none."""
    kinds = torch.zeros(len(objects), QUARTERS, dtype=torch.long)
    colours = torch.full((len(objects), QUARTERS), -1)
    for number, row in enumerate(objects):
        for kind, colour, place in row:
            kinds[number, place], colours[number, place] = kind + 1, colour
    return kinds, colours


def _soften(pixels: Tensor) -> Tensor:
    blurred = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    share = torch.rand(len(pixels), 1, 1, 1) * 0.7
    return pixels + share * (blurred - pixels) + 0.1 * torch.randn_like(pixels)


def read_truth(rows: Iterable[Mapping[str, Any]], *, image_root: Path | None = None) -> tuple[list[Image.Image], list[Objects]]:
    """Load pictures and what their captions name from rows with ``image`` and ``objects``.

    Raises:
        ValueError: If a picture can't be read, or objects are no [kind, colour, place] with a place each.
    """
    pictures, objects = [], []
    for row in rows:
        pictures.append(load_image(row["image"], root=image_root))
        objects.append(read_objects(row))
    return pictures, objects


def read_objects(row: Mapping[str, Any]) -> Objects:
    """Read what a caption names from ``objects``; raises as ``read_truth``."""
    named = [tuple(item) for item in row["objects"] or []]
    places = [item[-1] for item in named if len(item) == 3 and all(type(value) is int and value >= 0 for value in item)]
    if len(places) < len(named) or len(set(places)) < len(places) or any(place >= QUARTERS for place in places):
        raise UserError(f"objects are {row['objects']!r}; expected [kind, colour, place] for each, places from 0 to 3, none twice")
    return named


def save_reader(reader: DrawingReader, folder: Path, record: dict[str, Any]) -> None:
    """Write weights, sizes and how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "reader.safetensors") as partial:
        save_file(reader.state_dict(), partial)
    sizes = {"num_kinds": reader.num_kinds, "num_colours": reader.num_colours}
    write_whole(folder / "reader.json", json.dumps({**sizes, **record}, indent=1) + "\n")


def load_reader(folder: Path) -> DrawingReader:
    """Read what ``save_reader`` wrote.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    if not (folder / "reader.json").is_file():
        raise UserError(f"no reader of drawings at {folder}: expected a folder that python -m data_tools.train_reader wrote")
    sizes = read_json_object(folder / "reader.json")
    with expected_form(folder / "reader.json"):
        reader = DrawingReader(sizes["num_kinds"], sizes["num_colours"])
    try:
        reader.load_state_dict(load_file(folder / "reader.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the weights of the reader {folder} can't be used: {error}; train it again") from error
    return reader.eval()
