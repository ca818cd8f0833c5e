"""Convert a public set of preferences between generated pictures to pairs of pictures (caption, image_chosen, image_rejected) in Parquet.

    python data_tools/convert_pictures.py pickapic pickapic_v2/data/ --out pickapic
    python data_tools/convert_pictures.py hpd HPD/train.json --image-root HPD/train --out hpd
    mmalign train image-preference --model PIPELINE --data pickapic/pairs --out dpo

SET is pickapic (Pick-a-Pic v1 and v2: jpg_0, jpg_1, label_0, caption) or hpd (HPD v2's train.json: prompt, file_path, human_preference).
FILES are JSON, JSONL or Parquet files, or folders of them. Ties and records without a label make no pair and are counted. Every pair is
checked as training will check it, both pictures decoded; a broken one goes to OUT/rejects.jsonl with its reason. Rows stream through, so
memory stays the same whatever the size of the set. ``mmalign train preference --pictures`` takes the same pairs.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_tools.conversion import ConversionOptions, Form, convert_files
from data_tools.fields import field as read_field
from data_tools.fields import images_of, number
from data_tools.program import run_program
from mmalign.data.numbers import is_finite
from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PictureSetOptions(ConversionOptions):
    """Options of ``convert_pictures.py``."""

    set: Literal["pickapic", "hpd"] = field(metadata={"positional": True})
    """whose files they are"""


@dataclass(frozen=True)
class PicturePair:
    """A preference as a set has it; pictures are bytes, paths or dicts of them, not yet looked at."""

    id: str
    source: str
    caption: str
    chosen: Any
    rejected: Any

    def columns(self) -> dict[str, Any]:
        """Everything but pictures, by name."""
        return {"id": self.id, "source": self.source, "caption": self.caption}

    def image_columns(self) -> dict[str, list[Any]]:
        """Pictures by the name of their column, undecoded."""
        return {"image_chosen": [self.chosen], "image_rejected": [self.rejected]}


def pickapic(record: Mapping[str, Any], where: str) -> list[PicturePair]:
    """Pick-a-Pic (arXiv:2305.01569): ``label_0`` is 1 where the first picture is preferred, 0.5 for a tie; ``has_label`` may be false."""
    label = number(record, "label_0") if record.get("has_label", True) else 0.5
    if not 0 <= label <= 1:
        raise UserError(f"label_0 is {label}; expected a number from 0 to 1")
    caption, pictures = read_field(record, "caption", str), [read_field(record, name, (bytes, dict, str)) for name in ("jpg_0", "jpg_1")]
    return _pairs(str(record.get("ranking_id", where)), "pickapic", caption, pictures, [label, 1 - label])


def hpd(record: Mapping[str, Any], where: str) -> list[PicturePair]:
    """HPD v2 (arXiv:2306.09341), train.json: ``human_preference`` is 1 for the preferred picture of ``file_path`` (once ``image_path``)."""
    pictures, preference = images_of(record, "file_path", "image_path"), read_field(record, "human_preference", list)
    if len(pictures) != len(preference) or not all(map(is_finite, preference)):
        raise UserError(f"human_preference is {preference!r} for {len(pictures)} pictures; expected a finite number for each")
    return _pairs(where, "hpd", read_field(record, "prompt", str), pictures, preference)


def _pairs(name: str, source: str, caption: str, pictures: Sequence[Any], worth: Sequence[float]) -> list[PicturePair]:
    """Each picture against each that is worth less."""
    found = [(i, j) for i in range(len(worth)) for j in range(len(worth)) if worth[i] > worth[j]]
    ids = [name] if len(found) == 1 else [f"{name}/{place}" for place in range(len(found))]
    return [PicturePair(own, source, caption, pictures[i], pictures[j]) for own, (i, j) in zip(ids, found, strict=True)]


SETS = {"pickapic": pickapic, "hpd": hpd}


def run(options: PictureSetOptions) -> None:
    """Convert all files."""
    from mmalign.data.pictures import PICTURE_PAIR, read_pictures

    def check(pair: PicturePair, **decoded: Sequence[Any]) -> None:
        read_pictures({"caption": pair.caption, **{name: held[0] for name, held in decoded.items()}}, PICTURE_PAIR, index=0)

    form = Form(kind="pairs", read=SETS[options.set], check=check, nothing="without_preference", finish=_one_each)
    convert_files(options, form, {})


def _one_each(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value[0] if name in ("image_chosen", "image_rejected") else value for name, value in row.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, PictureSetOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
