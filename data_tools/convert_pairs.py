"""Convert a public preference set, in its own files, to TRL's columns (images, prompt, chosen, rejected, id, source) in Parquet.

    python data_tools/convert_pairs.py bpo bpo_instruct.json --image-root images/ --out bpo
    mmalign score-difficulty bpo/pairs --image-root images/ --clip ... --mllm ... --out bpo_scored

SET is one of bpo, rlhf-v, rlaif-v, vlfeedback (Silkie), llava-rlhf, povid, spa-vl, and trl (checks TRL rows, changes no text). FILES are
JSON, JSONL or Parquet files, or folders of them. Every row is checked as training will check it, images decoded; a broken one goes to
OUT/rejects.jsonl with its reason. Rows stream through, so memory stays the same whatever the size of the set.

Cost: about 150 records per second on one core, with photographs of 0.4 megapixels; the images of a record are decoded once.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_tools.pair_sets import SETS, Pair
from data_tools.program import run_program
from mmalign.errors import UserError

SetName = Literal["bpo", "rlhf-v", "rlaif-v", "vlfeedback", "llava-rlhf", "povid", "spa-vl", "trl"]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``convert_pairs.py``."""

    set: SetName = field(metadata={"positional": True})
    """whose files they are"""
    files: list[Path] = field(metadata={"positional": True})
    """the set's files, or folders of them"""
    out: Path
    """folder of pairs/*.parquet, rejects.jsonl and conversion.json"""
    image_root: Path | None = None
    """folder that image paths in the files start from"""
    embed_images: bool = False
    """put images that are paths into the Parquet files as bytes"""
    max_words: int | None = None
    """drop records with a longer response (BPO's and DA-DPO's trainers: 350)"""
    max_reject_share: float = 0.05
    """stop if more than this share of rows is broken"""
    shard_rows: int = 2000
    """most rows a Parquet file"""


def run(options: ConvertOptions) -> None:
    """Convert all files to ``OUT.partial``, which becomes ``OUT`` when it is whole."""
    from data_tools.pair_files import PairWriter
    from data_tools.records import list_files
    from mmalign.data.rejects import Rejects

    files = list_files(options.files)
    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another --out, or remove it")
    partial = options.out.with_name(options.out.name + ".partial")
    writer = PairWriter(partial / "pairs", shard_rows=options.shard_rows)
    for stale in writer.folder.glob("*.parquet"):
        stale.unlink()
    rejects = Rejects(partial / "rejects.jsonl", max_share=options.max_reject_share)
    counts = _convert(options, files, writer, rejects)
    writer.close()
    if not writer.num_rows:
        raise UserError(f"no pair in {len(files)} files ({_told(counts)}); the reasons are in {rejects.path}")
    _write_record(options, files, partial, {**counts, "pairs": writer.num_rows, "rejected": rejects.num_rejected})
    partial.rename(options.out)
    print(f"{writer.num_rows:,} pairs in {options.out / 'pairs'}, {rejects.num_rejected:,} rows rejected; {_told(counts)}")


def _convert(options: ConvertOptions, files: Sequence[Path], writer: Any, rejects: Any) -> dict[str, int]:
    from tqdm import tqdm

    from data_tools.records import read_records

    counts = {"records": 0, "without_unequal_pair": 0, "too_long": 0}
    seen = 0
    for path in files:
        for record in tqdm(read_records(path), desc=path.name, unit="record", leave=False):
            counts["records"] += 1
            try:
                if record.fault:
                    raise UserError(record.fault)
                pairs = SETS[options.set](record.value, record.where)
                counts["without_unequal_pair"] += not pairs
                if options.max_words is not None and any(_words(pair) > options.max_words for pair in pairs):
                    counts["too_long"] += 1
                    continue
                images = _load_images(pairs, options.image_root)
            except UserError as error:
                seen += 1
                rejects.add(record.where, str(error))
                rejects.check(seen)
                continue
            for pair in pairs:
                seen += 1
                try:
                    writer.add(_checked_row(pair, images, options))
                except UserError as error:
                    rejects.add(pair.id, str(error))
                    rejects.check(seen)
    rejects.check(seen, final=True)
    return counts


def _load_images(pairs: Sequence[Pair], root: Path | None) -> list[Any]:
    """Decode a record's images once for all its pairs."""
    from mmalign.data.images import load_image

    return [load_image(value, root=root) for value in pairs[0].images] if pairs else []


def _checked_row(pair: Pair, images: list[Any], options: ConvertOptions) -> dict[str, Any]:
    from data_tools.pair_files import checked_pair, image_cell

    checked_pair(pair, images)
    cells = [image_cell(value, root=options.image_root, embed=options.embed_images) for value in pair.images]
    return {"id": pair.id, "images": cells, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "source": pair.source}


def _words(pair: Pair) -> int:
    """Words of the longer response."""
    return max(len(text.split()) for text in _texts(pair))


def _texts(pair: Pair) -> Iterator[str]:
    from mmalign.data.rows import response_text

    yield response_text(pair.chosen, "chosen")
    yield response_text(pair.rejected, "rejected")


def _write_record(options: ConvertOptions, files: Sequence[Path], folder: Path, counts: dict[str, int]) -> None:
    from mmalign import __version__
    from mmalign.files import hash_file

    content = {
        "set": options.set,
        "files": {path.name: hash_file(path) for path in files},
        "image_root": None if options.image_root is None else str(options.image_root),
        "embed_images": options.embed_images,
        "max_words": options.max_words,
        "counts": counts,
        "mmalign": __version__,
    }
    (folder / "conversion.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, ConvertOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
