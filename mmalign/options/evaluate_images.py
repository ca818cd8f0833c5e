"""Pictures that are compared with their captions."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class EvaluateImagesOptions(Options):
    """Options of ``mmalign evaluate images``."""

    pictures: Path = field(metadata={"positional": True})
    """rows with image and objects: what sample-images drew of a world's captions, or drawings themselves"""
    reader: Path
    """reader of drawings, as data_tools/train_reader.py leaves it"""
    out: Path
    """folder of images.json"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
