"""Check preference pairs (TRL's columns) before a run is spent on them, and write what was found.

    python data_tools/validate_pairs.py bpo/pairs --image-root images/ --benchmark-images val2014/ --out bpo_report

Reports broken rows; duplicates and contradictions; training images that are benchmark images, byte for byte or after scaling and
encoding again; whether the chosen response is simply the longer one; sizes, modes and shapes of the images. Writes OUT/report.json and
OUT/summary.md, and the rows concerned in OUT/rejects.jsonl, duplicates.jsonl and leaks.jsonl. It changes no data, and ends with status 0
whatever it finds.

Cost: about 150 rows per second on one core, with photographs of 0.4 megapixels; each row's images are decoded.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.program import run_program
from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """Options of ``validate_pairs.py``."""

    files: list[Path] = field(metadata={"positional": True})
    """pairs: parquet, json or jsonl files, or folders of them"""
    out: Path
    """folder of the report"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    benchmark_images: list[Path] = field(default_factory=list)
    """folders of benchmark images that must not be trained on"""
    max_distance: int = 32
    """most differing bits, of 256, at which two images count as the same"""


def run(options: ValidateOptions) -> None:
    """Look at every row, and write and print the report."""
    from data_tools.records import list_files
    from data_tools.validation import Validation
    from data_tools.validation_summary import summarise

    if not 0 <= options.max_distance < 128:
        raise UserError(f"max_distance is {options.max_distance}; expected 0 to 127: unrelated images differ in about 128 bits")
    files = list_files(options.files)
    validation = Validation(
        out=options.out, image_root=options.image_root, benchmark_images=options.benchmark_images, max_distance=options.max_distance
    )
    report = validation.check(files)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    summary = summarise(report)
    (options.out / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, ValidateOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
