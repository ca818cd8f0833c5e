"""Does difficulty-aware DPO hallucinate less than DPO? Arms from one start on the embedded world, over data sets and seeds.

    python -m scripts.studies.da_dpo --processes 2           # everything
    python -m scripts.studies.da_dpo --processes 2 --quick   # two seeds, about 15 minutes on two cores

A seed draws its own pairs, scores their difficulty and orders the batches; all arms of a seed see the same pairs in the same order with the
same number of steps. ``--report docs/studies`` writes the published page.
"""

import argparse
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.study import main, run_missing, slug, write_run
from scripts.studies.world import BATCH, Condition, headings, load_copy, make_scored_pairs, make_start, measure, measure_start, run

STEPS, BETA, LEARNING_RATE = 150, 0.1, 1e-4
SEEDS = (1, 2, 3, 4, 5)
Source = Literal["estimated", "oracle", "shuffled", "contrastive", "generative"]


@dataclass(frozen=True)
class Arm:
    """How the pairs are trained on.

    Attributes:
        name: In tables.
        mode: Of ``--difficulty-mode``.
        source: Where a pair's difficulty comes from.
        beta: DPO's.
        early_stop: Whether the step with the fewest hallucinated captions on the validation scenes is kept.
        words: More options of ``train preference``.
    """

    name: str
    mode: str = "off"
    source: Source = "estimated"
    beta: float = BETA
    early_stop: bool = False
    words: tuple[str, ...] = ()


MAIN = Condition("80% easy")
CONDITIONS = (
    MAIN,
    Condition("50% easy", 0.5),
    Condition("95% easy", 0.95),
    Condition("80% easy, 10% flipped", 0.8, 0.1),
)
DPO = Arm("DPO")
CORE = (DPO, Arm("DA-DPO paper", "paper"), Arm("DA-DPO loss-weight", "loss-weight"))
FURTHER = (
    Arm("DPO, beta x 1.5", beta=1.5 * BETA),
    Arm("DA-DPO paper-norm", "paper-norm"),
    Arm("DA-DPO both", "both"),
    Arm("DPO, early stop", early_stop=True),
    Arm("paper, true grade", "paper", "oracle"),
    Arm("loss-weight, true grade", "loss-weight", "oracle"),
    Arm("paper, shuffled", "paper", "shuffled"),
    Arm("loss-weight, shuffled", "loss-weight", "shuffled"),
    Arm("paper, CLIP alone", "paper", "contrastive"),
    Arm("paper, MLLM alone", "paper", "generative"),
    Arm("loss-weight, CLIP alone", "loss-weight", "contrastive"),
    Arm("loss-weight, MLLM alone", "loss-weight", "generative"),
)
# What keeps coverage elsewhere: the chosen answer's likelihood beside the preference.
WITH_SFT = tuple(Arm(f"{arm.name}, SFT term", arm.mode, words=("--sft-weight", "1")) for arm in CORE)
GRID = tuple(Arm(f"{arm.name}, beta {beta:g}", arm.mode, beta=beta) for beta in (0.03, 0.3) for arm in CORE)


@dataclass(frozen=True)
class Cell:
    """One run."""

    condition: Condition
    arm: Arm
    seed: int

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / slug(self.condition.name) / str(self.seed) / f"{slug(self.arm.name)}.json"


def list_tiers(*, quick: bool) -> list[list[Cell]]:
    """List the runs, the most important ones first; those of a tier may run side by side."""
    if quick:
        arms = (*CORE, *FURTHER[:4])
        return [[Cell(MAIN, arm, seed) for seed in (1, 2) for arm in arms], _cells(CONDITIONS[2:], CORE, (1, 2))]
    return [
        _cells([MAIN], CORE, SEEDS),
        _cells(CONDITIONS[1:], CORE, SEEDS[:3]),
        *(_cells([MAIN], (*WITH_SFT, *FURTHER), seeds) for seeds in (SEEDS[:3], SEEDS[3:])),
        _cells(CONDITIONS[1:], CORE, SEEDS[3:]),
        _cells([MAIN], GRID, SEEDS[:3]),
    ]


def _cells(conditions: Sequence[Condition], arms: Sequence[Arm], seeds: Sequence[int]) -> list[Cell]:
    return [Cell(condition, arm, seed) for condition in conditions for seed in seeds for arm in arms]


def run_cell(cell: Cell, out: Path, *, smoke: bool) -> str:
    """Train one arm, measure it, and keep the numbers and the log; the weights are deleted."""
    arm, steps = cell.arm, 3 if smoke else STEPS
    data = write_difficulty(cell, make_scored_pairs(out, cell.condition, cell.seed, smoke=smoke))
    model = out / "models" / f"{slug(cell.condition.name)}-{cell.seed}-{slug(arm.name)}"
    words = ["train", "preference", "--model", out / "start" / "sft", "--data", data, "--reference", "cached", "--out", model,
             "--batch-size", BATCH, "--max-steps", steps, "--learning-rate", LEARNING_RATE, "--warmup-ratio", 0.1, "--beta", arm.beta,
             "--difficulty-mode", arm.mode, "--logging-steps", max(1, steps // 15), "--seed", cell.seed, *arm.words]  # fmt: skip
    if not arm.early_stop:
        run(words)
        metrics = measure(model, out / "start" / "test")
    else:
        run([*words, "--save-steps", max(1, steps // 5), "--save-total-limit", 5])
        best = _best_checkpoint(model, out / "start" / "validation")
        metrics = {"step": float(best.name.split("-")[-1])} | measure(best, out / "start" / "test")
    write_run(cell.path(out), metrics, model=model)
    shutil.rmtree(model)
    return f"{metrics['hallucinated']:.1f}% hallucinated captions"


def write_difficulty(cell: Cell, scored: Path) -> Path:
    """Return the scored pairs with the difficulty that the arm asks for."""
    source = cell.arm.source
    if source == "estimated":
        return scored
    path, rows = scored.parent / f"{source}-{os.getpid()}.parquet", load_copy(scored)
    if source == "oracle":
        # A pair whose label is wrong is as hard as can be.
        values = [1.0 if flipped else value for value, flipped in zip(rows["truth_difficulty"], rows["truth_flipped"], strict=True)]
    elif source == "shuffled":
        values = np.random.default_rng(cell.seed).permutation(rows["difficulty"]).tolist()
    else:
        values = [1 - value for value in rows[f"easiness_{source}"]]
    rows.remove_columns("difficulty").add_column("difficulty", values).to_parquet(str(path))
    return path


def _best_checkpoint(model: Path, validation: Path) -> Path:
    """Return the checkpoint with the fewest hallucinated captions on the validation scenes; the earliest of equals."""
    checkpoints = sorted((model / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return min(checkpoints, key=lambda path: measure(path, validation, parts=("chair",))["hallucinated"])


def run_study(options: argparse.Namespace) -> None:
    """Make the start, and run what is missing."""
    measure_start(make_start(options.out / "start", smoke=options.smoke), options.out)
    for tier in list_tiers(quick=options.quick):
        # One process per data set, so that no two make the same one.
        work = partial(run_cell, out=options.out, smoke=options.smoke)
        run_missing(tier, work, options, together=lambda cell: (cell.condition, cell.seed))


COLUMNS = headings("hallucinated", "CHAIR_i", "coverage", "POPE F1", "general", "words")
MORE = {
    "POPE F1 random": "POPE random",
    "POPE F1 popular": "popular",
    "POPE F1 adversarial": "adversarial",
    "yes": "yes %",
    "AMBER": "AMBER score ↑",
    "Cog": "Cog % ↓",
    "attribute": "colour ↑",
    "count": "count ↑",
    "relation": "relation ↑",
}
COMPARED = ("hallucinated", "coverage", "POPE F1", "general")
BASELINE = "dpo"
COLOURS = {"dpo": "#3a86d4", "da-dpo-paper": "#d9730d", "da-dpo-loss-weight": "#1a9e77"}
NAMES = {slug(arm.name): arm.name for arm in (*CORE, *FURTHER, *WITH_SFT, *GRID)}


def arms_table(runs: page.Runs, columns: Mapping[str, str], sft: page.Metrics | None = None) -> str:
    """Lay out arms by metrics, below the start where it is given."""
    first = [] if sft is None else [page.start_row("SFT (the start)", sft, columns)]
    return markdown_table(["arm", "seeds", *columns.values()], [*first, *page.arm_rows(runs, NAMES, columns).values()])


def differences_table(runs: page.Runs) -> str:
    """Lay out each arm's difference from DPO on the same seeds."""
    arms = {arm: name for arm, name in NAMES.items() if arm in runs and arm != BASELINE}
    rows = [[name, *(page.compare_metric(runs[arm], runs[BASELINE], key) for key in COMPARED)] for arm, name in arms.items()]
    return markdown_table(["arm minus DPO", *COMPARED], rows)


def make_marks(runs: page.Runs) -> dict[str, page.Mark]:
    """Mark the main arms and what they are at other betas; the note is beta."""
    marks = {}
    for arm, colour in COLOURS.items():
        for name in sorted(runs):
            if re.fullmatch(rf"{arm}(-beta-[\d.]+)?", name):
                beta = name.rpartition("beta-")[2] if "beta-" in name else f"{BETA:g}"
                marks[name] = page.Mark(colour, arm if name == arm else None, beta, {"color": colour, "marker": "X"})
    return marks


def draw_margins(folder: Path, path: Path) -> None:
    """Draw reward margin over steps by difficulty quartile, mean over seeds, for the three main arms side by side."""
    with page.drawing(path, (9.6, 3.4)) as figure:
        panels = figure.subplots(1, len(COLOURS), sharey=True)
        for axes, arm in zip(panels, COLOURS, strict=True):
            logs = [read_json(log) for log in sorted(folder.glob(f"*/{arm}.log.json"))]
            for quartile in range(1, 5):
                shade = 0.25 + 0.2 * quartile
                label = f"Q{quartile}" + {1: " (easiest)", 4: " (hardest)"}.get(quartile, "")
                colour = (0.85 - 0.8 * shade * 0.8, 0.35, shade * 0.8)
                axes.plot(*page.mean_curve(logs, f"rewards/margin_q{quartile}"), color=colour, label=label)
            axes.set_title(f"{arm}, {len(logs)} seeds", fontsize=10)
            axes.set_xlabel("step")
        panels[0].set_ylabel("reward margin (plain beta), nats")
        panels[0].legend(fontsize=8)


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of da_dpo.md and its pictures.

    Raises:
        SystemExit: If no run of DPO on the main data set is finished.
    """
    folder, cells = options.report, options.out / "cells"
    by_condition = {condition.name: page.read_runs(cells / slug(condition.name)) for condition in CONDITIONS}
    runs = by_condition.pop(MAIN.name)
    if BASELINE not in runs:
        raise SystemExit("no finished DPO run on the main data set: nothing to report")
    sft = read_json(cells / "sft.json")
    page.draw_tradeoff(
        folder / "da_dpo_tradeoff.png", runs, make_marks(runs), start=(sft, {"s": 70, "marker": "s", "label": "SFT"}), size=(6.4, 4.2),
        points={"s": 14, "alpha": 0.35}, legend={},
    )  # fmt: skip
    draw_margins(cells / slug(MAIN.name), folder / "da_dpo_margins.png")
    parts = [
        f"## {MAIN.name}, clean labels",
        arms_table(runs, COLUMNS, sft),
        "Paired over seeds:",
        differences_table(runs),
        "![hallucination against coverage](da_dpo_tradeoff.png)",
        "![margins by difficulty quartile](da_dpo_margins.png)",
        "### Further metrics",
        arms_table(runs, MORE, sft),
    ]
    for name, those in by_condition.items():
        if BASELINE in those:
            parts += [f"## {name}", arms_table(those, COLUMNS), differences_table(those)]
    return page.write_measured(folder / "da_dpo.md", "DA-DPO against DPO", parts)


if __name__ == "__main__":
    main(__doc__, name="da_dpo", quick="two seeds and the most important arms", run=run_study, write_page=write_page)
