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

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_tools.contrast_sets import CONTRAST_SETS
from data_tools.conversion import ConversionOptions, Form, convert_files
from data_tools.pair_sets import PAIR_SETS, Pair
from data_tools.program import run_program
from data_tools.rated_sets import RATED_SETS, ScoredList, rated_list, rated_pairs
from data_tools.reward_benchmarks import REWARD_BENCHMARKS
from data_tools.score_scale import Scale, ScaleName, Spread
from mmalign.errors import UserError

SetName = Literal[
    "bpo", "rlhf-v", "rlaif-v", "vlfeedback", "llava-rlhf", "povid", "spa-vl", "hsa-dpo", "sentinel", "mm-rlhf", "s-vco", "ms-swift", "trl",
    "vl-rewardbench", "multimodal-rewardbench", "mm-rlhf-rewardbench",
]  # fmt: skip
PLAIN_SETS = {**PAIR_SETS, **CONTRAST_SETS, **REWARD_BENCHMARKS}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ConversionOptions):
    """Options of ``convert_pairs.py``."""

    set: SetName = field(metadata={"positional": True})
    """whose files they are"""
    lists: bool = False
    """write one row per prompt with all its responses and their scores, for train listwise"""
    scale: ScaleName = "none"
    """map the scores by the whole set's mean and deviation (zscore), or to [0, 1] (minmax)"""
    max_words: int | None = None
    """drop records with a longer response (BPO's and DA-DPO's trainers: 350)"""

    def __post_init__(self) -> None:
        """Refuse lists of a set without numbers, and numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "max_words")
        if self.lists and self.set not in RATED_SETS:
            raise UserError(f"--lists: {self.set} has no number for each response; sets that have: {', '.join(RATED_SETS)}")


def run(options: ConvertOptions) -> None:
    """Measure the scores where they are to be mapped, then convert all files."""
    from data_tools.row_files import checked_list, checked_pair

    scale = _measure(options)
    most = options.max_words
    form = Form(
        kind="lists" if options.lists else "pairs",
        read=lambda record, where: _rows(options, record, where),
        check=checked_list if options.lists else checked_pair,
        nothing="with_one_score" if options.lists else "without_unequal_pair",
        left_out={"too_long": lambda rows: most is not None and any(_words(row) > most for row in rows)},
        finish=scale.applied,
    )
    mapped = {"name": options.scale, "zero": scale.zero, "one": scale.one}
    convert_files(options, form, {"max_words": options.max_words, "lists": options.lists, "scale": mapped})


def _rows(options: ConvertOptions, record: Mapping[str, Any], where: str) -> Sequence[Pair | ScoredList]:
    """Make the rows of a record."""
    if options.lists:
        made = rated_list(RATED_SETS[options.set](record, where))
        return [] if made is None else [made]
    if _is_rated(options.set, record):
        return list(rated_pairs(RATED_SETS[options.set](record, where)))
    return PLAIN_SETS[options.set](record, where)


def _is_rated(set_name: str, record: Mapping[str, Any]) -> bool:
    """Whether a record of this set rates its responses; MM-RLHF publishes both kinds."""
    return set_name in RATED_SETS and (set_name not in PLAIN_SETS or "responses" in record)


def _measure(options: ConvertOptions) -> Scale:
    """Read the whole set once for the scale of its scores; images are not looked at."""
    from data_tools.records import list_files, read_records

    if options.scale == "none":
        return Scale()
    spread = Spread()
    for path in list_files(options.files):
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


def _words(row: Pair | ScoredList) -> int:
    """Words of the longest response."""
    return max(len(text.split()) for text in row.texts())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, ConvertOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
