"""Can a rubric judge be trained, and do its margins help? UnifiedReward-Flex's stages (arXiv:2602.02380) on the embedded world.

    python -m scripts.studies.rubric_judge --processes 2           # everything
    python -m scripts.studies.rubric_judge --processes 2 --quick   # one seed, half the steps and pairs

A small model learns to write rubrics from those that the world writes of its pairs (SFT), then from its own: right ones against wrong ones
(DPO), or right ones alone, the control. The judge's margins then train policies on pairs whose labels are in part wrong.
``--report docs/studies`` writes the page.
"""

import argparse
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.collect_traces import run as collect_traces
from data_tools.trace_options import TraceOptions
from mmalign.data.datasets import load_rows
from mmalign.demo import commands, run_commands
from mmalign.files import read_json, write_whole
from mmalign.worlds.tokenizer import train_tokenizer
from scripts.studies.rubric_judge_page import JUDGES, POLICIES, RIGHT, Cell, write_page
from scripts.studies.study import StartCell, main, run_missing, write_dataset, write_json, write_run
from scripts.studies.world import BATCH, CAPTION_NOISE, Condition, load_copy, make_held_out, make_pairs, make_sft, measure, run

SEEDS, HELD_OUT_SEED = (1, 2, 3), 9_004
# Shorter than the usual wording: a small model needs no rules that it was never taught in words.
WORDING = (
    "Compare two responses to a question about the image by a rubric.\nQuestion: {question}\nResponse 1: {first}\nResponse 2: {second}\n"
)
LONGEST = 512
"""A rubric of the world in tokens, at most."""
KEEPS_FORM = ("--beta", 0.1, "--sft-weight", 4, "--reference", "copy")
"""Without the chosen rubric's own loss DPO makes the right ones unlikely too, and what the judge then writes can't be read."""
SMOKE_ARMS = ("judge-sft", "dpo", "smpo-world")
"""A judge of a few steps writes no rubric that could be read."""


@dataclass(frozen=True)
class Sizes:
    """How many pairs are made of each kind, and how long the trainings are."""

    judge_pairs: int
    judge_steps: int
    own_pairs: int
    own_steps: int
    held_out: int
    target_pairs: int
    policy_steps: int


FULL = Sizes(3_000, 600, 400, 60, 500, 1_600, 100)
QUICK = Sizes(1_500, 300, 200, 30, 250, 800, 50)
SMOKE = Sizes(48, 3, 12, 2, 8, 32, 2)


def choose_sizes(options: argparse.Namespace) -> Sizes:
    """Those that the command line asks for."""
    return SMOKE if options.smoke else QUICK if options.quick else FULL


@dataclass(frozen=True)
class Work:
    """A seed's folders, and what is made in them where it is missing."""

    out: Path
    seed: int
    sizes: Sizes
    smoke: bool

    @property
    def rows(self) -> Path:
        """Folder of the seed's pairs and rubrics."""
        return self.out / "rows" / str(self.seed)

    def model(self, name: str) -> Path:
        """Folder of a judge or a policy."""
        return self.out / "models" / str(self.seed) / name

    def pairs(self, name: str, number: int, *, label_noise: float = 0.0, seed: int | None = None) -> Path:
        """Pairs that no other part of the study has."""
        places = ("judge", "own", "target", "held-out")
        condition = Condition(name, label_noise=label_noise)
        own = 10_000 * (1 + places.index(name)) + self.seed if seed is None else seed
        return make_pairs(self.rows / name, condition, own, smoke=False, num_pairs=number)

    def rubrics(self, name: str, pairs: Path, **options: Any) -> Path:
        """Rubrics about pairs, by a model or by the world; the folder of ``collect_traces.py``."""
        wording = self.out / "wording.txt"
        if not wording.is_file():
            write_whole(wording, WORDING)
        out = self.rows / name
        if not (out / "traces.json").is_file():
            asked = {
                "model": "",
                "prompt": wording,
                "max_new_tokens": LONGEST,
                "batch_size": 32,
                "top_p": 1.0,
                "seed": self.seed,
                **options,
            }
            collect_traces(TraceOptions(data=pairs, out=out, **asked))
        return out

    def taught(self) -> Path:
        """The world's rubrics, which the judge learns from first."""
        return self.rubrics("taught", self.pairs("judge", self.sizes.judge_pairs), teacher="world", samples=1)

    def own(self) -> Path:
        """The judge's own, after SFT."""
        return self.rubrics("own-rubrics", self.pairs("own", self.sizes.own_pairs), model=str(self.model("judge-sft")), samples=4)

    def start(self) -> Path:
        """The model that judge and policies begin as: the studies' start, whose tokenizer has the words of rubrics too."""
        folder = self.out / "starts" / str(self.seed)
        steps = commands(folder, seed=self.seed, smoke=self.smoke, caption_noise=CAPTION_NOISE)
        run_commands(folder, {"world/world.json": steps["world/world.json"]})
        if not (folder / "clip" / "config.json").is_file():
            chats = [*load_rows(folder / "world" / "sft")["messages"], *load_rows(self.taught() / "chats")["messages"]]
            words = (turn["content"] for messages in chats for turn in messages)
            train_tokenizer(words).save_pretrained(folder / "world" / "tokenizer")
        return make_sft(folder, smoke=self.smoke, seed=self.seed)

    def judged(self, margins: str) -> Path:
        """The target pairs with scores by the judge's rubrics or the world's; those alone that the judge gives a margin."""
        target = self.pairs("target", self.sizes.target_pairs, label_noise=0.2)
        exact = self.rubrics("target-world", target, teacher="world", samples=1) / "scored.parquet"
        if self.smoke:
            return exact
        right = {name: read_json(Cell(name, self.seed).path(self.out))["right"] for name in JUDGES}
        best = self.model(max(right, key=lambda name: right[name]))
        own = self.rubrics("target-judge", target, model=str(best), samples=1, temperature=0.1) / "scored.parquet"
        if margins == "judge":
            return own
        both = self.rows / "target-both.parquet"
        if not both.is_file():
            read, rows = set(load_rows(own)["id"]), load_rows(exact)
            write_dataset(both, rows.select([index for index, name in enumerate(rows["id"]) if name in read]))
        return both


def train_judge(name: str, work: Work) -> Path:
    """Train a judge where it is missing; it is kept, as the policies ask the best one."""
    model, sizes = work.model(name), work.sizes
    shared = ["--out", model, "--batch-size", BATCH, "--warmup-ratio", 0.1, "--logging-steps", 10, "--seed", work.seed]
    words = {
        "judge-sft": ["sft", "--data", work.taught() / "chats", "--max-steps", sizes.judge_steps, "--learning-rate", 1e-3],
        "judge-more": ["sft", "--max-steps", sizes.own_steps, "--learning-rate", 3e-5],
        "judge-dpo": ["preference", "--max-steps", sizes.own_steps, "--learning-rate", 3e-5, *KEEPS_FORM],
    }[name]
    if not (model / "train_log.json").is_file():
        start, data = work.start(), []
        if name != "judge-sft":
            start, data = work.model("judge-sft"), ["--data", work.own() / ("chats" if name == "judge-more" else "pairs")]
        run(["train", *words, "--model", start, *data, *shared])
    return model


def measure_judge(name: str, work: Work) -> dict[str, float]:
    """Let a judge compare held-out pairs, and say how often it is right: in all, by fault, and over both orders."""
    pairs = work.pairs("held-out", work.sizes.held_out, seed=HELD_OUT_SEED)
    by_fault = work.rows / "held-out" / "by-fault.parquet"
    if not by_fault.is_file():
        rows = load_rows(pairs)
        write_dataset(by_fault, rows.remove_columns("source").add_column("source", list(rows["truth_kind"])))
    found = work.rubrics(f"held-out-{name}", by_fault, model=str(work.model(name)), samples=1, temperature=0.1)
    record = read_json(found / "traces.json")
    every, scored = record["all"], found / "scored.parquet"
    gaps = load_copy(scored)["gap_rubric"] if scored.is_file() else []
    decided = every["prefer_first"] + every["prefer_second"]
    shares = {
        "right": every["right"] / every["replies"],
        "inconsistent": every["inconsistent"] / every["replies"],
        "first": every["prefer_first"] / decided if decided else 0.0,
        "read": 2 * len(gaps) / every["replies"],
        "agrees": 2 * sum(gap > 0 for gap in gaps) / every["replies"],
        **{f"{RIGHT}{kind}": own["right"] / own["replies"] for kind, own in record["sources"].items()},
    }
    return {key: 100 * share for key, share in shares.items()}


def train_policy(name: str, work: Work) -> Path:
    """Train a policy on the target pairs."""
    model = work.model(name)
    shutil.rmtree(model, ignore_errors=True)
    data = work.judged("judge" if name == "smpo-judge" else "world")
    objective = "dpo" if name == "dpo" else "smpo:score_temperature=0.2"
    run(["train", "preference", "--model", work.start(), "--data", data, "--out", model, "--objective", objective, "--beta", 1,
         "--reference", "copy", "--batch-size", BATCH, "--max-steps", work.sizes.policy_steps, "--learning-rate", 3e-4,
         "--warmup-ratio", 0.1, "--logging-steps", 10, "--seed", work.seed])  # fmt: skip
    return model


def run_cell(cell: Cell | StartCell, out: Path, *, sizes: Sizes, smoke: bool) -> str:
    """Make a start, a judge or a policy, and measure it."""
    work = Work(out, cell.seed, sizes, smoke)
    if isinstance(cell, StartCell):
        metrics = measure(work.start(), out / "test", parts=("chair", "pope"))
        write_json(cell.path(out), metrics)
    elif cell.name in JUDGES:
        model = train_judge(cell.name, work)
        metrics = measure_judge(cell.name, work)
        write_run(cell.path(out), metrics, model=model)
    else:
        model = train_policy(cell.name, work)
        metrics = measure(model, out / "test", parts=("chair", "pope"))
        write_run(cell.path(out), metrics, model=model)
        shutil.rmtree(model)
    return ", ".join(f"{key} {value:.1f}" for key, value in list(metrics.items())[:3])


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing, seed by seed."""
    make_held_out(options.out, smoke=options.smoke)
    names = [name for name in (*JUDGES, *POLICIES) if not options.smoke or name in SMOKE_ARMS]
    seeds = SEEDS[:1] if options.quick or options.smoke else SEEDS
    cells = [cell for seed in seeds for cell in (StartCell(seed), *(Cell(name, seed) for name in names))]
    work = partial(run_cell, out=options.out, sizes=choose_sizes(options), smoke=options.smoke)
    run_missing(cells, work, options, together=lambda cell: cell.seed)


def report(options: argparse.Namespace) -> Path:
    """Write the page."""
    return write_page(options, {**vars(choose_sizes(options)), "batch": BATCH})


if __name__ == "__main__":
    main(__doc__, name="rubric_judge", quick="one seed, half the steps and pairs", run=run_study, write_page=report)
