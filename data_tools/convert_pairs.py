"""Convert a public preference set, in its own files, to TRL's columns (images, prompt, chosen, rejected, id, source) in Parquet.

    python data_tools/convert_pairs.py bpo bpo_instruct.json --image-root images/ --out bpo
    mmalign score-difficulty bpo/pairs --image-root images/ --clip ... --mllm ... --out bpo_scored

SET is one of bpo, rlhf-v, rlaif-v, vlfeedback (Silkie), llava-rlhf, povid, spa-vl, hsa-dpo, sentinel, mm-rlhf, s-vco, ms-swift (rows
that it trains on), and trl (checks TRL rows, changes no text). FILES are JSON, JSONL or Parquet files, or folders of them. Where a set
has numbers, pairs have score_chosen and score_rejected; --lists writes all responses of a prompt with their scores instead. Every row is
checked as training will check it, images decoded; a broken one goes to OUT/rejects.jsonl with its reason. Rows stream through, so memory
stays the same whatever the size of the set.

Cost: about 150 records per second on one core, with photographs of 0.4 megapixels; the images of a record are decoded once.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_tools.contrast_sets import CONTRAST_SETS
from data_tools.pair_sets import PAIR_SETS, Pair
from data_tools.program import run_program
from data_tools.rated_sets import RATED_SETS, ScoredList, rated_list, rated_pairs
from data_tools.score_scale import Scale, ScaleName, Spread
from mmalign.errors import UserError

SetName = Literal[
    "bpo", "rlhf-v", "rlaif-v", "vlfeedback", "llava-rlhf", "povid", "spa-vl", "hsa-dpo", "sentinel", "mm-rlhf", "s-vco", "ms-swift", "trl"
]  # fmt: skip
PLAIN_SETS = {**PAIR_SETS, **CONTRAST_SETS}
Reader = Callable[[Mapping[str, Any], str], Sequence[Pair | ScoredList]]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``convert_pairs.py``."""

    set: SetName = field(metadata={"positional": True})
    """whose files they are"""
    files: list[Path] = field(metadata={"positional": True})
    """the set's files, or folders of them"""
    out: Path
    """folder of pairs/*.parquet (with --lists: lists/*.parquet), rejects.jsonl and conversion.json"""
    image_root: Path | None = None
    """folder that image paths in the files start from"""
    lists: bool = False
    """write one row per prompt with all its responses and their scores, for train listwise"""
    scale: ScaleName = "none"
    """map the scores by the whole set's mean and deviation (zscore), or to [0, 1] (minmax)"""
    embed_images: bool = False
    """put images that are paths into the Parquet files as bytes"""
    max_words: int | None = None
    """drop records with a longer response (BPO's and DA-DPO's trainers: 350)"""
    max_reject_share: float = 0.05
    """stop if more than this share of rows is broken"""
    shard_rows: int = 2000
    """most rows a Parquet file"""

    def __post_init__(self) -> None:
        """Refuse lists of a set without numbers."""
        if self.lists and self.set not in RATED_SETS:
            raise UserError(f"--lists: {self.set} has no number for each response; sets that have: {', '.join(RATED_SETS)}")


def run(options: ConvertOptions) -> None:
    """Convert all files to ``OUT.partial``, which becomes ``OUT`` when it is whole."""
    from data_tools.records import list_files
    from data_tools.row_files import RowWriter
    from mmalign.data.rejects import Rejects

    kind = "lists" if options.lists else "pairs"
    files = list_files(options.files)
    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another --out, or remove it")
    scale = _measure(options, files)
    partial = options.out.with_name(options.out.name + ".partial")
    writer = RowWriter(partial / kind, name=kind, shard_rows=options.shard_rows)
    for stale in partial.glob("*/*.parquet"):
        stale.unlink()
    rejects = Rejects(partial / "rejects.jsonl", max_share=options.max_reject_share)
    counts = _convert(options, files, scale, writer, rejects)
    writer.close()
    if not writer.num_rows:
        raise UserError(f"no {kind[:-1]} in {len(files)} files ({_told(counts)}); the reasons are in {rejects.path}")
    _write_record(options, files, partial, scale, {**counts, kind: writer.num_rows, "rejected": rejects.num_rejected})
    partial.rename(options.out)
    print(f"{writer.num_rows:,} {kind} in {options.out / kind}, {rejects.num_rejected:,} rows rejected; {_told(counts)}")


def _reader(options: ConvertOptions) -> Reader:
    """What makes the rows of a record."""
    if options.lists:
        read = RATED_SETS[options.set]
        return lambda record, where: [made] if (made := rated_list(read(record, where))) else []

    def pairs(record: Mapping[str, Any], where: str) -> list[Pair]:
        if _is_rated(options.set, record):
            return list(rated_pairs(RATED_SETS[options.set](record, where)))
        return PLAIN_SETS[options.set](record, where)

    return pairs


def _is_rated(set_name: str, record: Mapping[str, Any]) -> bool:
    """Whether a record of this set rates its responses; MM-RLHF publishes both kinds."""
    return set_name in RATED_SETS and (set_name not in PLAIN_SETS or "responses" in record)


def _measure(options: ConvertOptions, files: Sequence[Path]) -> Scale:
    """Read the whole set once for the scale of its scores; images are not looked at."""
    from data_tools.records import read_records

    if options.scale == "none":
        return Scale()
    spread = Spread()
    for path in files:
        for record in read_records(path):
            try:
                if record.fault is None:
                    spread.add(_scores(options.set, record.value, record.where))
            except UserError:
                # The second reading tells why.
                continue
    return spread.scale(options.scale, what=options.set)


def _scores(set_name: str, record: Mapping[str, Any], where: str) -> list[float]:
    """All scores of a record, each response's once where the set has responses."""
    if _is_rated(set_name, record):
        return [response.score for response in RATED_SETS[set_name](record, where).responses]
    return [score for pair in PLAIN_SETS[set_name](record, where) for score in pair.scores or ()]


def _convert(options: ConvertOptions, files: Sequence[Path], scale: Scale, writer: Any, rejects: Any) -> dict[str, int]:
    from tqdm import tqdm

    from data_tools.records import read_records

    read = _reader(options)
    nothing = "with_one_score" if options.lists else "without_unequal_pair"
    counts = {"records": 0, nothing: 0, "too_long": 0}
    seen = 0
    for path in files:
        for record in tqdm(read_records(path), desc=path.name, unit="record", leave=False):
            counts["records"] += 1
            try:
                if record.fault:
                    raise UserError(record.fault)
                rows = read(record.value, record.where)
                counts[nothing] += not rows
                if options.max_words is not None and any(_words(row) > options.max_words for row in rows):
                    counts["too_long"] += 1
                    continue
                decoded = _load_images(rows, options.image_root)
            except UserError as error:
                seen += 1
                rejects.add(record.where, str(error))
                rejects.check(seen)
                continue
            for row in rows:
                seen += 1
                try:
                    writer.add(_checked_row(row, decoded, scale, options))
                except UserError as error:
                    rejects.add(row.id, str(error))
                    rejects.check(seen)
    rejects.check(seen, final=True)
    return counts


def _load_images(rows: Sequence[Pair | ScoredList], root: Path | None) -> dict[int, Any]:
    """Decode a record's images once for all its rows: by identity, as the rows share them."""
    from mmalign.data.images import load_image

    values = {id(value): value for row in rows for held in row.image_columns().values() for value in held}
    return {key: load_image(value, root=root) for key, value in values.items()}


def _checked_row(row: Pair | ScoredList, decoded: Mapping[int, Any], scale: Scale, options: ConvertOptions) -> dict[str, Any]:
    from data_tools.row_files import checked_list, checked_pair, written_row

    images = [decoded[id(value)] for value in row.images]
    if isinstance(row, Pair):
        checked_pair(row, images)
    else:
        checked_list(row, images)
    return scale.applied(written_row(row, root=options.image_root, embed=options.embed_images))


def _words(row: Pair | ScoredList) -> int:
    """Words of the longest response."""
    return max(len(text.split()) for text in row.texts())


def _write_record(options: ConvertOptions, files: Sequence[Path], folder: Path, scale: Scale, counts: dict[str, int]) -> None:
    from mmalign import __version__
    from mmalign.files import hash_file

    content = {
        "set": options.set,
        "files": {path.name: hash_file(path) for path in files},
        "image_root": None if options.image_root is None else str(options.image_root),
        "embed_images": options.embed_images,
        "max_words": options.max_words,
        "lists": options.lists,
        "scale": {"name": options.scale, "zero": scale.zero, "one": scale.one},
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
