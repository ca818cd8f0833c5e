r"""Rounds of on-policy training: sample from the policy, score, pair, train against that policy; again (DNO, arXiv:2404.03715).

    python -m schedules.iterate world_to_sample/eval --model sft --out runs/dno --rounds 3 \
        --sample "--scorer truth --samples 5 --temperature 0.7" --train "--learning-rate 1e-5 --batch-size 16 --epochs 1"
    python -m schedules.iterate questions-1.jsonl questions-2.jsonl --model policy --out runs/judged --image-root photos/ \
        --sample "--scorer judge --url http://localhost:8000/v1 --llm-name judge" --min-score 8 --min-gap 2 --train "..."
    python -m schedules.iterate questions.jsonl --model sft --out runs/disco --image-root photos/ --method listwise --objective disco \
        --sample "--scorer answers --samples 8 --temperature 0.6" --correct 1 --train "--learning-rate 2e-6 --batch-size 16"
    python -m schedules.iterate captions.parquet --kind pictures --scorer reader:reader --model janus --out runs/drawn \
        --sample "--samples 4 --guidance 1" --rewards win-rate --objective dno --train "--learning-rate 1e-5 --batch-size 16"

SOURCES are what ``data_tools/sample_pairs.py`` takes: one for all rounds, or one for each. A prompt's pairs are its responses of at
least ``--min-score`` against those at least ``--min-gap`` lower, the widest margins first (DNO's selection: with scores from 0 to 6, 5
and 2). ``--replay 0.3`` mixes in pairs of earlier rounds: 0.3 times as many as the round's own from the one before, half of that from
the one before that. The reference of a round is the policy it starts from (DNO's). ``--sample "--gold COLUMN ..."`` puts a teacher's
answer among the candidates; where a sample is chosen instead, ``--min-gap-student`` is the margin. ``--repetition 4`` makes a response in
which four words in a row stand more often than that a negative.

With ``--sample "--endpoint URL ..."`` a server samples: it is asked for the round's policy by the name of its folder.

With ``--method listwise`` nothing is paired: a round trains on all samples of all prompts as groups (objectives disco, disco_b, grpo), one
pass in minibatches, held to the log-probabilities that the round's policy gave them (``mmalign cache-logps``, in cached/). ``--correct 1``
makes scores right (from there on) or wrong, as DisCO asks for.

With ``--kind pictures`` SOURCES are captions (``id``, ``caption``, and what the scorer reads), ``--sample`` holds options of ``mmalign
sample-images``, ``--scorer`` scores what was drawn, and training is on ``--pictures``; ``--method listwise`` is held to a copy of the
policy. ``--eval-data`` is a file of held-out captions. ``--kind denoiser`` is the same for ``mmalign sample-denoiser`` and ``train
image-preference``, on pairs of paths where ``--sample`` holds ``--paths``.

Each round leaves OUT/round-N: lists.parquet (responses with their scores, as ``train listwise`` reads them, of prompts whose scores differ,
or of all where groups of words are trained on), pairs.parquet, the model, and round.json. A stopped run resumes where it stopped; finished
rounds are kept, and more ``--rounds`` add to them.
"""

import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from data_tools.did import did_weights, read_rejected
from data_tools.program import run_program
from mmalign.errors import UserError
from mmalign.files import claim, read_json_object, write_whole
from mmalign.rewards.groups import mark_right, win_rates
from schedules.iterate_options import IterateOptions, check_options
from schedules.kinds import Kind, Lists
from schedules.rounds_of_pictures import Denoised, Pictures
from schedules.rounds_of_words import Words
from schedules.selection import demote_repetitions, select_pairs
from schedules.stages import RECORD, train, training_words

KINDS: dict[str, type[Kind]] = {"words": Words, "pictures": Pictures, "denoiser": Denoised}
PRINTED = ("chair/instance", "chair/sentence", "chair/recall", "pope/f1", "images/score")


def run(options: IterateOptions) -> None:
    """Run the rounds that are not done yet.

    Raises:
        ValueError: If options don't fit together, a step fails, or OUT holds another schedule.
    """
    check_options(options)
    claim(options.out / RECORD, _settings(options), what="another schedule")
    kind = KINDS[options.kind](options)
    for number in range(1, options.rounds + 1):
        record = options.out / f"round-{number}" / "round.json"
        if not record.is_file():
            run_round(options, kind, number)
        held = read_json_object(record)
        scores = [f"{key} {held['metrics'][key]:.3f}" for key in PRINTED if key in held["metrics"]]
        what = f"{held['num_pairs']:,} pairs" if "num_pairs" in held else f"{held['num_prompts']:,} prompts, {held['alike']:.1%} alike"
        print(f"round {number}: {what}, mean score {held['mean_score']:.3f}", *scores, flush=True)


def _settings(options: IterateOptions) -> dict[str, Any]:
    """What a schedule's folder belongs to."""
    named = ("model", "sample", "min_score", "min_gap", "pairs_per_prompt", "replay", "train", "eval_data", "seed")
    settings = {name: getattr(options, name) for name in named} | {"first_source": options.sources[0]}
    own = {name: getattr(options, name) for name in ("method", "objective", "correct")}
    # Not where they say nothing new: earlier folders don't have them.
    settings |= own if any(own[name] for name in ("objective", "correct")) or options.method == "listwise" else {}
    drawn = {name: getattr(options, name) for name in ("rewards", "rejected", "reward_scale")}
    settings |= drawn if (options.rewards, options.rejected) != ("scores", "worst") else {}
    settings |= {name: getattr(options, name) for name in ("kind", "scorer") if options.kind != "words"}
    return settings | {name: getattr(options, name) for name in ("min_gap_student", "repetition") if getattr(options, name)}


def run_round(options: IterateOptions, kind: Kind, number: int) -> None:
    """Sample, pair, train and measure one round; its record is written last."""
    folder = options.out / f"round-{number}"
    policy = options.model if number == 1 else str(options.out / f"round-{number - 1}" / "model")
    lists = kind.sample(number, policy, folder / "sampled")
    if options.repetition:
        lists = lists.with_scores(lambda row: demote_repetitions(row, most=options.repetition, gap=options.min_gap))
    if options.rewards == "win-rate":
        lists = replace(lists, scores=[win_rates(scores) for scores in lists.scores])
    facts = (train_pairs if options.method == "preference" else train_groups)(options, kind, lists, number=number, policy=policy)
    record = {"policy": policy, "num_prompts": len(lists), **facts, "metrics": kind.measure(folder)}
    write_whole(folder / "round.json", json.dumps(record, indent=1))


def train_pairs(options: IterateOptions, kind: Kind, lists: Lists, *, number: int, policy: str) -> dict[str, Any]:
    """Pair the samples and train on the pairs; return what the record says of it."""
    folder = options.out / f"round-{number}"
    own = choose_pairs(lists, options)
    if not own:
        raise UserError(f"round {number} gave no pairs of {len(lists)} prompts; lower --min-score or --min-gap, or sample more responses")
    if not (folder / "lists.parquet").is_file():
        # Not for pairs, which such lists have none of: for train listwise, which refuses them.
        kind.write_lists(folder / "lists.parquet", lists.differing())
    if not (folder / "pairs.parquet").is_file():
        kind.write_pairs(folder / "pairs.parquet", chain(make_pairs(lists, own, kind), replayed(options, kind, number, len(own))))
    train(_words(options, kind), model=policy, data=folder / "pairs.parquet", out=folder / "model", method=kind.methods["preference"])
    return {"num_pairs": len(own), "mean_score": _mean_score(lists)}


def train_groups(options: IterateOptions, kind: Kind, lists: Lists, *, number: int, policy: str) -> dict[str, Any]:
    """Train on groups, held to the policy that sampled them; return what the record says of it."""
    folder = options.out / f"round-{number}"
    groups = replace(lists, scores=[mark_right(scores, options.correct) for scores in lists.scores])
    alike = [scores[0] for scores in groups.scores if len(set(scores)) == 1]
    if len(alike) == len(groups):
        raise UserError(
            f"round {number}: of {len(groups)} prompts none has samples of different scores, and there is nothing to learn; "
            "change --correct, or sample more or hotter responses"
        )
    words = _words(options, kind)
    held = kind.hold_groups(folder, groups, policy=policy, words=words)
    train([*words, *held.words], model=policy, data=held.data, out=folder / "model", method=kind.methods["listwise"])
    lowest = min(map(min, groups.scores))
    return {
        "alike": len(alike) / len(groups),
        "all_lowest": sum(score == lowest for score in alike) / len(groups),
        "mean_score": _mean_score(groups),
        **held.facts,
    }


def _mean_score(lists: Lists) -> float:
    scores = [score for own in lists.scores for score in own]
    return sum(scores) / len(scores)


def _words(options: IterateOptions, kind: Kind) -> list[str]:
    """What goes to every training."""
    return [*kind.own_words, *(["--objective", *options.objective] if options.objective else []), *training_words(options.train)]


def chosen_gaps(row: Mapping[str, Any], options: IterateOptions) -> list[float]:
    """The margin that each response needs to be chosen: ``--min-gap`` for a teacher's answer, ``--min-gap-student`` for samples."""
    student = options.min_gap if options.min_gap_student is None else options.min_gap_student
    return [options.min_gap if response == row.get("gold") else student for response in row["responses"]]


def draw_pairs(row: Mapping[str, Any], options: IterateOptions) -> list[tuple[int, int]]:
    """Choose a prompt's pairs: by margin, or the best samples first, each against one drawn from those at least --min-gap lower."""
    scores, beta = row["scores"], read_rejected(options.rejected)
    every = select_pairs(scores, min_score=options.min_score, min_gap=chosen_gaps(row, options), most=len(scores) ** 2)
    if beta is None:
        return every[: options.pairs_per_prompt]
    generator = random.Random(f"{options.seed}/{row['id']}")
    lower = {i: sorted(k for j, k in every if j == i) for i in dict.fromkeys(i for i, _ in every)}
    best = sorted(lower, key=lambda i: (-scores[i], i))[: options.pairs_per_prompt]
    weights = {i: did_weights([scores[k] for k in lower[i]], beta=beta, scale=options.reward_scale) for i in best}
    return [(i, generator.choices(lower[i], weights[i])[0]) for i in best]


class Choice(NamedTuple):
    """A pair before its responses are read."""

    row: int
    """Number of its list."""
    chosen: int
    rejected: int
    name: str


def choose_pairs(lists: Lists, options: IterateOptions) -> list[Choice]:
    """Choose the pairs of all lists."""
    return [
        Choice(number, *pair, name=f"{row['id']}/{place}")
        for number, row in enumerate(lists)
        for place, pair in enumerate(draw_pairs(row, options))
    ]


def make_pairs(lists: Lists, choices: Iterable[Choice], kind: Kind) -> Iterator[dict[str, Any]]:
    """Read what was chosen."""
    for choice in choices:
        row = lists[choice.row]
        chosen, rejected = choice.chosen, choice.rejected
        scores = (row["scores"][chosen], row["scores"][rejected])
        yield kind.pair(row, row["responses"][chosen], row["responses"][rejected], scores, name=choice.name)


def replayed(options: IterateOptions, kind: Kind, number: int, num_own: int) -> Iterator[dict[str, Any]]:
    """Draw pairs that earlier rounds made themselves."""
    share, generator = options.replay, random.Random(f"{options.seed}/{number}")
    for earlier in range(number - 1, 0, -1):
        lists = kind.read_lists(options.out / f"round-{earlier}" / "lists.parquet")
        pairs = choose_pairs(lists, options)
        yield from make_pairs(lists, generator.sample(pairs, min(len(pairs), round(share * num_own))), kind)
        share /= 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds; returns the exit status."""
    return run_program(run, IterateOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
