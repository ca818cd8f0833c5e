"""The checks of ``validate_pairs.py``, in one pass over the rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_tools.duplicates import DuplicateFinder
from data_tools.image_hashes import describe_bytes
from data_tools.leaks import index_images
from data_tools.length_bias import LengthBias
from data_tools.records import read_records
from data_tools.row_files import image_cell
from mmalign.data.rejects import Rejects
from mmalign.data.rows import PAIR_COLUMNS, check_columns, place_row_images, read_pair, split_pair
from mmalign.errors import UserError


class Validation:
    """One pass over the rows: what is broken, doubled, leaked, and how long texts and large images are."""

    def __init__(self, *, out: Path, image_root: Path | None, benchmark_images: Sequence[Path], max_distance: int) -> None:
        """Hash the benchmark images.

        Args:
            out: Folder of the rows concerned: rejects.jsonl, duplicates.jsonl, leaks.jsonl.
            image_root: Folder that relative image paths in the data start from.
            benchmark_images: Folders of images that must not be trained on.
            max_distance: Most differing bits, of 256, at which two images count as the same.
        """
        self.out, self.image_root, self.max_distance = out, image_root, max_distance
        self.benchmark = index_images(benchmark_images)
        out.mkdir(parents=True, exist_ok=True)
        # A report of broken rows is what is asked for here: no share of them stops it.
        self.rejects = Rejects(out / "rejects.jsonl", max_share=1.0)
        self.duplicates = DuplicateFinder()
        self.lengths: dict[str, LengthBias] = {"all": LengthBias()}
        self.images = ImageStatistics()
        self.leaks_of: dict[str, list[dict[str, Any]]] = {}

    def check(self, files: Sequence[Path]) -> dict[str, Any]:
        """Look at every row of the files.

        Returns:
            The report, as it is written to report.json.

        Raises:
            ValueError: If no row can be used.
        """
        rows, kinds, leaking = 0, Counter[str](), Counter[str]()
        paths = {name: self.out / f"{name}.jsonl" for name in ("duplicates", "leaks")}
        with paths["duplicates"].open("w", encoding="utf-8") as duplicates, paths["leaks"].open("w", encoding="utf-8") as leaks:
            for path in files:
                for record in tqdm(read_records(path), desc=path.name, unit="row", leave=False):
                    rows += 1
                    try:
                        if record.fault:
                            raise UserError(record.fault)
                        duplicate, found = self._row(record.value, record.where)
                    except UserError as error:
                        self.rejects.add(str(record.value.get("id") or record.where), str(error))
                        continue
                    if duplicate is not None:
                        kinds[duplicate["kind"]] += 1
                        duplicates.write(json.dumps(duplicate) + "\n")
                    leaking.update({leak["kind"] for leak in found})
                    leaks.writelines(json.dumps(leak) + "\n" for leak in found)
        return self._report(files, rows, kinds, leaking)

    def _row(self, raw: dict[str, Any], where: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Check one row; its duplicate and its leaks."""
        check_columns(raw, PAIR_COLUMNS, what="the row")
        row = read_pair(raw, index=0, image_root=self.image_root)
        name = where if raw.get("id") is None else row.id
        _, images = place_row_images(raw, split_pair(raw)[0], "prompt")
        encoded = [image_cell(value, root=self.image_root, embed=True)["bytes"] for value in images]
        digests = [hashlib.sha256(data).hexdigest() for data in encoded]
        leaks = []
        for data, digest, image in zip(encoded, digests, row.images, strict=True):
            if self.images.add(digest, data, image.size):
                self.leaks_of[digest] = self.benchmark.find(digest, image, max_distance=self.max_distance)
            leaks += [{"id": name, **leak} for leak in self.leaks_of[digest]]
        for group in {"all", row.source}:
            self.lengths.setdefault(group, LengthBias()).add(row.chosen, row.rejected)
        prompt = json.dumps(row.prompt, sort_keys=True)
        return self.duplicates.add(name, digests, prompt, row.chosen, row.rejected), leaks

    def _report(self, files: Sequence[Path], rows: int, kinds: Counter[str], leaking: Counter[str]) -> dict[str, Any]:
        prompts = self.duplicates.prompts
        good = sum(prompts.values())
        if not good:
            raise UserError(f"no row of {rows} can be used; the reasons are in {self.rejects.path}. The first is {self.rejects.first}")
        # One source is all there is to tell about: its numbers are those of all.
        lengths = self.lengths if len(self.lengths) > 2 else {"all": self.lengths["all"]}
        return {
            "files": [str(path) for path in files],
            "rows": rows,
            "broken": self.rejects.num_rejected,
            "duplicates": {kind: kinds[kind] for kind in ("exact", "text", "contradiction")},
            "prompts": {"distinct": len(prompts), "most_pairs": max(prompts.values())},
            "leaks": {
                "benchmark_images": len(self.benchmark.names),
                "unreadable_benchmark_images": len(self.benchmark.unreadable),
                "max_distance": self.max_distance,
                **{f"rows_{kind}": leaking[kind] for kind in ("exact", "perceptual")},
            },
            "length": {group: bias.summary() for group, bias in lengths.items()},
            "images": self.images.summary(),
        }


class ImageStatistics:
    """Sizes, modes and formats of distinct images."""

    def __init__(self) -> None:
        """Start with none."""
        self.uses: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []

    def add(self, digest: str, data: bytes, size: tuple[int, int]) -> bool:
        """Count a use of an image, ``size`` as it is seen; whether it is the first."""
        self.uses[digest] += 1
        if self.uses[digest] > 1:
            return False
        mode, kind = describe_bytes(data)
        self.sizes.append(size)
        self.modes[mode] += 1
        self.formats[kind] += 1
        return True

    def summary(self) -> dict[str, Any]:
        """Counts, and the spread of widths, heights and shapes over distinct images."""
        widths, heights = ([size[axis] for size in self.sizes] for axis in (0, 1))
        return {
            "distinct": len(self.sizes),
            "most_uses": max(self.uses.values(), default=0),
            "width": _spread(widths),
            "height": _spread(heights),
            "aspect_ratio": _spread([width / height for width, height in self.sizes]),
            "modes": dict(self.modes.most_common()),
            "formats": dict(self.formats.most_common()),
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, quartiles and largest."""
    names = ("min", "q1", "median", "q3", "max")
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True)) if values else {}
