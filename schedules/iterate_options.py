"""Options of ``iterate.py``, and which of them go together."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from data_tools.did import read_rejected
from mmalign.errors import UserError
from schedules.stages import option_values, refuse_own, training_words


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
    """options of data_tools/sample_pairs.py for every round, in quotes, without model, out and seed; pictures: of mmalign sample-images or
    sample-denoiser"""
    kind: Literal["words", "pictures", "denoiser"] = "words"
    """what is sampled: answers to questions; pictures of captions, as tokens or by a text-to-image pipeline"""
    scorer: str | None = None
    """pictures: reader:DIR, likelihood:DIR or function:FILE.py:NAME, as of data_tools/pair_pictures.py"""
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
    """folder with CHAIR's and POPE's files: scores each round's model; pictures: held-out captions"""
    seed: int = 0
    """of sampling and of the replay; each round adds its number"""


_DEFAULTS = {one.name: one.default for one in fields(IterateOptions)}
_PAIR_OPTIONS = ("rewards", "rejected", "reward_scale", "min_score", "min_gap", "min_gap_student", "pairs_per_prompt", "replay")
_SET = ("--model", "--out", "--seed", "--shard")
"""Options of sampling that no round leaves to the user: its policy, its folder, its seed, and that all of it is done."""
_WORD_OPTIONS = ("min_gap_student", "repetition", "image_root")


def check_options(options: IterateOptions) -> None:
    """Refuse what can't be, or does not go together.

    Raises:
        ValueError: With the option.
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
    refuse_own("--sample", options.sample, _SET)
    _check_method(options)
    _check_pictures(options)
    read_rejected(options.rejected)
    if not options.reward_scale > 0:
        raise UserError(f"reward_scale is {options.reward_scale}; expected a positive number")


def _check_method(options: IterateOptions) -> None:
    """Refuse options of pairs where there are none, and of groups where there are none."""
    if options.method == "preference" and options.correct is not None:
        raise UserError("--correct is for --method listwise; pairs are chosen by --min-score and --min-gap")
    if options.method == "listwise" and option_values(options.sample, "--gold"):
        raise UserError("--sample holds --gold, and a group of --method listwise is of the policy's own samples; leave it out")
    if options.method == "listwise" and (changed := _changed(options, _PAIR_OPTIONS)):
        raise UserError(f"--{changed} is of pairs, and --method listwise makes none; leave it out")


def _check_pictures(options: IterateOptions) -> None:
    """Refuse options of words where pictures are sampled, and pictures without a scorer."""
    if options.kind != "words" and options.scorer is None:
        raise UserError(
            f"--kind {options.kind} needs --scorer reader:DIR, likelihood:DIR or function:FILE.py:NAME, which scores what was drawn"
        )
    if options.scorer is not None and options.kind == "words":
        raise UserError("--scorer is for --kind pictures or denoiser; that of words is one of the options in --sample")
    if options.kind != "words" and (changed := _changed(options, _WORD_OPTIONS)):
        raise UserError(f"--{changed} is of words, and --kind {options.kind} samples none; leave it out")


def _changed(options: IterateOptions, names: tuple[str, ...]) -> str | None:
    """Name the first of these options that is not at its default."""
    return next((name.replace("_", "-") for name in names if getattr(options, name) != _DEFAULTS[name]), None)
