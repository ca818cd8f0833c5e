r"""Rounds of on-policy training: sample from the policy, score, pair, train against that policy; again (DNO, arXiv:2404.03715).

    python -m schedules.iterate world_to_sample/eval --model sft --out runs/dno --rounds 3 \
        --sample "--scorer truth --samples 5 --temperature 0.7" --train "--learning-rate 1e-5 --batch-size 16 --epochs 1"
    python -m schedules.iterate questions-1.jsonl questions-2.jsonl --model policy --out runs/judged --image-root photos/ \
        --sample "--scorer judge --url http://localhost:8000/v1 --llm-name judge" --min-score 8 --min-gap 2 --train "..."
    python -m schedules.iterate questions.jsonl --model sft --out runs/disco --image-root photos/ --method listwise --objective disco \
        --sample "--scorer answers --samples 8 --temperature 0.6" --correct 1 --train "--learning-rate 2e-6 --batch-size 16"

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

Each round leaves OUT/round-N: lists.parquet (responses with their scores, as ``train listwise`` reads them, of prompts whose scores
differ, or of all where groups are trained on), pairs.parquet, the model, and round.json. A stopped run resumes where it stopped;
finished rounds are kept, and more ``--rounds`` add to them.
"""

import json
import random
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data_tools.did import did_weights, read_rejected
from data_tools.program import run_program
from data_tools.sample_pairs import main as sample_pairs
from data_tools.sampled_lists import read_lists
from mmalign.data.datasets import load_rows
from mmalign.errors import UserError
from mmalign.files import claim, read_json_object, write_whole
from mmalign.rewards.groups import mark_right, win_rates
from schedules.selection import demote_repetitions, select_pairs
from schedules.stages import RECORD, pair_row, run_command, train, training_words, write_rows

BENCHMARKS = ("chair", "pope")
PRINTED = ("chair/instance", "chair/sentence", "chair/recall", "pope/f1")

_PAIR_OPTIONS = ("rewards", "rejected", "reward_scale", "min_score", "min_gap", "min_gap_student", "pairs_per_prompt", "replay")
_SHARED_OPTIONS = ("--dtype", "--quantization", "--max-length", "--answer-end")


@dataclass(frozen=True, kw_only=True)
class IterateOptions:
    """Options of ``iterate.py``."""

    sources: list[Path] = field(metadata={"positional": True})
    """what to sample on: one source for all rounds, or one for each"""
    model: str
    """multimodal LLM to start from: folder or hub id"""
    out: Path
    """folder of the rounds"""
    sample: str
    """options of data_tools/sample_pairs.py for every round, in quotes; --scorer is one of them"""
    rounds: int = 3
    """rounds in all"""
    method: Literal["preference", "listwise"] = "preference"
    """pair the samples, or train on each prompt's samples as a group"""
    objective: list[str] = field(default_factory=list)
    """objectives of the training; the method's own default if not given"""
    correct: float | None = None
    """listwise: samples from this score on are right (1), the others wrong (0); the scores as they are if not given"""
    rewards: Literal["scores", "win-rate"] = "scores"
    """what pairs are chosen by: the scores, or the share of a prompt's other samples that a sample beats by them"""
    rejected: str = "worst"
    """the rejected samples: the worst first, or did:beta=0.5: drawn with weight exp(-beta score / reward-scale)"""
    reward_scale: float = 1.0
    """did: a score of so much is one nat of the log-ratio to the reference"""
    min_score: float | None = None
    """lowest score of a chosen response; any if not given"""
    min_gap: float = 1e-6
    """smallest score of chosen - score of rejected"""
    min_gap_student: float | None = None
    """the same where a sample is chosen and not a teacher's answer (--gold of the sampling options); --min-gap if not given"""
    repetition: int = 0
    """a response in which any four words in a row stand more often than this gets less than the prompt's lowest score; 0: none does"""
    pairs_per_prompt: int = 1
    """most pairs of a prompt, the widest margins first"""
    replay: float = 0.0
    """pairs of the round before, by the round's own; half as many of the round before that, and so on"""
    train: str = ""
    """options of mmalign train preference (or listwise) for every round, in quotes"""
    image_root: Path | None = None
    """folder of the images, where the source needs one"""
    eval_data: Path | None = None
    """folder with CHAIR's and POPE's files: scores each round's model"""
    seed: int = 0
    """of sampling and of the replay; each round adds its number"""


def run(options: IterateOptions) -> None:
    """Run the rounds that are not done yet.

    Raises:
        ValueError: If options don't fit together, a step fails, or OUT holds another schedule.
    """
    if options.rounds < 1 or options.pairs_per_prompt < 1:
        raise UserError(f"rounds is {options.rounds} and pairs_per_prompt {options.pairs_per_prompt}; expected at least 1 of each")
    if options.repetition < 0 or not (options.min_gap_student is None or options.min_gap_student > 0):
        raise UserError(
            f"repetition is {options.repetition} and min_gap_student {options.min_gap_student}; expected at least 0, and more than 0"
        )
    if not options.min_gap > 0 or not 0 <= options.replay <= 1:
        raise UserError(f"min_gap is {options.min_gap} and replay {options.replay}; expected more than 0, and a share in [0, 1]")
    if len(options.sources) not in (1, options.rounds):
        raise UserError(f"{len(options.sources)} sources for {options.rounds} rounds; give one for all, or one for each")
    training_words(options.train)
    _check_method(options)
    read_rejected(options.rejected)
    if not options.reward_scale > 0:
        raise UserError(f"reward_scale is {options.reward_scale}; expected a positive number")
    named = ("model", "sample", "min_score", "min_gap", "pairs_per_prompt", "replay", "train", "eval_data", "seed")
    settings = {name: getattr(options, name) for name in named} | {"first_source": options.sources[0]}
    own = {name: getattr(options, name) for name in ("method", "objective", "correct")}
    # Not where they say nothing new: earlier folders don't have them.
    settings |= own if any(own[name] for name in ("objective", "correct")) or options.method == "listwise" else {}
    drawn = {name: getattr(options, name) for name in ("rewards", "rejected", "reward_scale")}
    settings |= drawn if (options.rewards, options.rejected) != ("scores", "worst") else {}
    settings |= {name: getattr(options, name) for name in ("min_gap_student", "repetition") if getattr(options, name)}
    claim(options.out / RECORD, settings, what="another schedule")
    for number in range(1, options.rounds + 1):
        record = options.out / f"round-{number}" / "round.json"
        if not record.is_file():
            run_round(options, number)
        held = read_json_object(record)
        scores = [f"{key} {held['metrics'][key]:.3f}" for key in PRINTED if key in held["metrics"]]
        what = f"{held['num_pairs']:,} pairs" if "num_pairs" in held else f"{held['num_prompts']:,} prompts, {held['alike']:.1%} alike"
        print(f"round {number}: {what}, mean score {held['mean_score']:.3f}", *scores, flush=True)


def _check_method(options: IterateOptions) -> None:
    """Refuse options of pairs where there are none, and of groups where there are none.

    Raises:
        ValueError: With the option.
    """
    if options.method == "preference" and options.correct is not None:
        raise UserError("--correct is for --method listwise; pairs are chosen by --min-score and --min-gap")
    if options.method == "listwise" and option_values(options.sample, "--gold"):
        raise UserError("--sample holds --gold, and a group of --method listwise is of the policy's own samples; leave it out")
    defaults = {one.name: one.default for one in fields(IterateOptions)}
    changed = [name for name in _PAIR_OPTIONS if getattr(options, name) != defaults[name]]
    if options.method == "listwise" and changed:
        raise UserError(f"--{changed[0].replace('_', '-')} is of pairs, and --method listwise makes none; leave it out")


def run_round(options: IterateOptions, number: int) -> None:
    """Sample, pair, train and measure one round; its record is written last."""
    folder = options.out / f"round-{number}"
    policy = options.model if number == 1 else str(options.out / f"round-{number - 1}" / "model")
    lists = list(sample(options, number, policy, folder / "sampled"))
    if options.repetition:
        lists = [{**row, "scores": demote_repetitions(row, most=options.repetition, gap=options.min_gap)} for row in lists]
    if options.rewards == "win-rate":
        lists = [{**row, "scores": win_rates(row["scores"])} for row in lists]
    if options.method == "listwise":
        run_group_round(options, lists, number=number, policy=policy, folder=folder)
        return
    if not (folder / "lists.parquet").is_file():
        # Not for pairs, which such lists have none of: for train listwise, which refuses them.
        write_rows(folder / "lists.parquet", [row for row in lists if len(set(row["scores"])) > 1], image_root=None)
    own = make_pairs(lists, options)
    if not own:
        raise UserError(f"round {number} gave no pairs of {len(lists)} prompts; lower --min-score or --min-gap, or sample more responses")
    if not (folder / "pairs.parquet").is_file():
        write_rows(folder / "pairs.parquet", [*own, *replayed(options, number, len(own))], image_root=None)
    train(_words(options), model=policy, data=folder / "pairs.parquet", out=folder / "model")
    scores = [score for row in lists for score in row["scores"]]
    record = {
        "policy": policy,
        "num_prompts": len(lists),
        "num_pairs": len(own),
        "mean_score": sum(scores) / len(scores),
        "metrics": measure(options, folder),
    }
    write_whole(folder / "round.json", json.dumps(record, indent=1))


def run_group_round(options: IterateOptions, lists: Sequence[dict[str, Any]], *, number: int, policy: str, folder: Path) -> None:
    """Train on groups, held to the policy that sampled them, and measure; the record is written last."""
    groups = [{**row, "scores": mark_right(row["scores"], options.correct)} for row in lists]
    alike = [row["scores"][0] for row in groups if len(set(row["scores"])) == 1]
    if len(alike) == len(groups):
        raise UserError(
            f"round {number}: of {len(groups)} prompts none has samples of different scores, and there is nothing to learn; "
            "change --correct, or sample more or hotter responses"
        )
    if not (folder / "lists.parquet").is_file():
        write_rows(folder / "lists.parquet", groups, image_root=None)
    cached, words = folder / "cached" / "cached.parquet", _words(options)
    if not cached.is_file():
        run_command("cache-logps", folder / "lists.parquet", "--model", policy, "--out", cached.parent, *forwarded(words))
    # It imports torch, which --help does without.
    from mmalign.data.caches import LIST_TOKEN_LOGPS

    train([*words, "--reference", "cached"], model=policy, data=cached, out=folder / "model", method="listwise")
    logps = [value for row in load_rows(cached).select_columns([LIST_TOKEN_LOGPS]) for part in row[LIST_TOKEN_LOGPS] for value in part]
    scores = [score for row in groups for score in row["scores"]]
    record = {
        "policy": policy,
        "num_prompts": len(groups),
        "alike": len(alike) / len(groups),
        "all_lowest": sum(score == min(scores) for score in alike) / len(groups),
        "mean_score": sum(scores) / len(scores),
        "mean_token_logp": sum(logps) / len(logps),
        "metrics": measure(options, folder),
    }
    write_whole(folder / "round.json", json.dumps(record, indent=1))


def _words(options: IterateOptions) -> list[str]:
    """What goes to every training."""
    return [*(["--objective", *options.objective] if options.objective else []), *training_words(options.train)]


def forwarded(words: Sequence[str]) -> list[str]:
    """Those of the training's options that cached log-probabilities depend on."""
    found: list[str] = []
    for place, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name in _SHARED_OPTIONS:
            found += [word] if equals else words[place : place + 2]
    return found


def sample(options: IterateOptions, number: int, policy: str, out: Path) -> Iterator[dict[str, Any]]:
    """Sample and score by ``data_tools/sample_pairs.py``, and read every response with its score."""
    # It imports torch, which --help does without.
    from data_tools.sampling import load_source

    source = options.sources[0 if len(options.sources) == 1 else number - 1]
    words = [str(source), "--model", policy, "--out", str(out), "--seed", str(options.seed + number), *shlex.split(options.sample)]
    words += [] if options.image_root is None else ["--image-root", str(options.image_root)]
    if not (out / "finished").is_file():
        if sample_pairs(words) != 0:
            served = any(word.split("=")[0] == "--endpoint" for word in words)
            advice = f"; the endpoint must serve the round's policy by the name {policy}: start it so, and give the same command again"
            raise UserError(f"round {number} stopped at: data_tools/sample_pairs.py {shlex.join(words)}{advice if served else ''}")
        (out / "finished").touch()
    prompts = option_values(options.sample, "--prompts")
    items, root, _, _ = load_source(source, prompts=prompts, image_root=options.image_root)
    questions = [item.question for item in items]
    return read_lists(out, questions, image_root=root, suffix=str(number), repeated=options.method == "listwise")


def option_values(text: str, name: str) -> list[str]:
    """The values of an option among the sampling options; none where it is not there."""
    words = [part for word in shlex.split(text) for part in (word.split("=", 1) if word.startswith(f"{name}=") else [word])]
    if name not in words:
        return []
    rest = words[words.index(name) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def chosen_gaps(row: Mapping[str, Any], options: IterateOptions) -> list[float]:
    """The margin that each response needs to be chosen: ``--min-gap`` for a teacher's answer, ``--min-gap-student`` for samples."""
    student = options.min_gap if options.min_gap_student is None else options.min_gap_student
    return [options.min_gap if text == row.get("gold") else student for text in row["responses"]]


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


def make_pairs(lists: Sequence[dict[str, Any]], options: IterateOptions) -> list[dict[str, Any]]:
    """Make the round's own pairs."""
    rows = []
    for row in lists:
        for number, (i, j) in enumerate(draw_pairs(row, options)):
            texts, scores = row["responses"], row["scores"]
            rows.append(pair_row(row, texts[i], texts[j], (scores[i], scores[j]), name=f"{row['id']}/{number}"))
    return rows


def replayed(options: IterateOptions, number: int, num_own: int) -> list[dict[str, Any]]:
    """Draw pairs that earlier rounds made themselves."""
    rows: list[dict[str, Any]] = []
    share, generator = options.replay, random.Random(f"{options.seed}/{number}")
    for earlier in range(number - 1, 0, -1):
        lists = list(load_rows(options.out / f"round-{earlier}" / "lists.parquet"))
        pairs = make_pairs(lists, options)
        rows += generator.sample(pairs, min(len(pairs), round(share * num_own)))
        share /= 2
    return rows


def measure(options: IterateOptions, folder: Path) -> dict[str, float]:
    """Score the round's model by CHAIR and POPE, where there is something to score it on."""
    metrics: dict[str, float] = {}
    for benchmark in BENCHMARKS if options.eval_data is not None else ():
        path = folder / "eval" / f"{benchmark}.json"
        if not path.is_file():
            run_command("evaluate", benchmark, "--model", folder / "model", "--data", options.eval_data, "--out", folder / "eval")
        metrics |= json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds; returns the exit status."""
    return run_program(run, IterateOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
