"""Studies whose arms train one start in other ways: a search for each arm's learning rate, then all arms over seeds, and their page.

A seed draws the start, the data and the order of the batches. The search trains the first seed's start on data of its own, and is judged on
scenes that are not measured on. Costs are counted in tokens, rows and seconds of this process, not in time that others may share.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.study import SFT, ArmCell, StartCell, best_setting, main, run_missing, slug, write_json, write_run
from scripts.studies.world import headings, make_held_out, make_sft, measure, object_f1, read_metrics

PARTS = ("chair", "pope")
SEARCH_SEED, SEEDS = 100, (1, 2, 3, 4, 5)
RATES = ("1e-4", "3e-4")
COLUMNS = headings("object F1", "hallucinated", "CHAIR_i", "coverage", "POPE F1", "words")
COMPARED = headings("object F1", "hallucinated", "POPE F1", "words")


@dataclass(frozen=True)
class Arm:
    """A way to train."""

    name: str
    words: tuple[str, ...]
    """Options of the training's command that are its own."""
    others: tuple[str, ...] = ()
    """The arms that it is compared with."""
    in_smoke: bool = True
    """Whether the smoke form has it: its start can hardly speak."""


@dataclass(frozen=True)
class Cell(ArmCell[Arm]):
    """One run: of the search where it has a learning rate, else of the comparison with the rate that the search found."""

    rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if self.rate:
            return out / "search" / slug(self.arm.name) / f"{self.rate}.json"
        return super().path(out)


@dataclass(frozen=True)
class Training:
    """What an arm's training is given."""

    arm: Arm
    seed: int
    rate: str
    steps: int
    smoke: bool
    out: Path
    """The study's folder."""

    @property
    def start(self) -> Path:
        """Folder of the start's world and models."""
        return start_folder(SEEDS[0] if self.seed == SEARCH_SEED else self.seed, self.out)

    @property
    def model(self) -> Path:
        """Folder of what is trained."""
        return self.out / "models" / "-".join((slug(self.arm.name), str(self.seed), self.rate))


Train = Callable[[Training], Mapping[str, float]]
"""Makes what a training needs where it is missing, trains, and returns costs by their headings."""


@dataclass(frozen=True)
class Study:
    """What is compared, and what its page says."""

    name: str
    title: str
    about: str
    """With {steps}."""
    arms: Sequence[Arm]
    train: Train
    steps: int
    costs: Sequence[str]
    """Headings of what ``train`` returns."""
    rates: Sequence[str] = RATES
    """That each arm's search tries; one alone is taken without a search."""

    def list_arms(self, *, smoke: bool) -> list[Arm]:
        """List the arms, those of the smoke form alone if ``smoke``."""
        return [arm for arm in self.arms if arm.in_smoke or not smoke]

    def count_steps(self, options: argparse.Namespace) -> int:
        """Count the steps of each training."""
        return 2 if options.smoke else self.steps // 2 if options.quick else self.steps


def start_folder(seed: int, out: Path) -> Path:
    """The folder of a seed's start."""
    return out / "starts" / str(seed)


def list_searches(study: Study, *, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of all searches, as many for each arm: one in the quick and the smoke form, none where there is one rate."""
    rates = study.rates[: 1 if quick or smoke else None] if len(study.rates) > 1 else ()
    return [Cell(arm, SEARCH_SEED, rate) for arm in study.list_arms(smoke=smoke) for rate in rates]


def list_cells(study: Study, seed: int, *, smoke: bool = False) -> list[Cell]:
    """List a seed's runs of the comparison."""
    return [Cell(arm, seed) for arm in study.list_arms(smoke=smoke)]


def read_search(study: Study, arm: Arm, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an arm's search: ("0", learning rate) -> object F1, in the order of the grid."""
    cells = [cell for cell in list_searches(study) if cell.arm == arm]
    return {("0", cell.rate): object_f1(read_json(path)) for cell in cells if (path := cell.path(out)).is_file()}


def find_rate(study: Study, arm: Arm, out: Path) -> str:
    """Return the learning rate that an arm's search found best, or the only one.

    Raises:
        ValueError: If the search has no finished run.
    """
    return study.rates[0] if len(study.rates) == 1 else best_setting(read_search(study, arm, out), arm.name, out)[1]


def run_start(cell: StartCell, out: Path, *, smoke: bool) -> str:
    """Make a seed's start, and measure it."""
    metrics = measure(make_sft(start_folder(cell.seed, out), smoke=smoke, seed=cell.seed), out / "test", parts=PARTS)
    write_json(cell.path(out), metrics)
    return f"object F1 {object_f1(metrics):.1f}"


def run_cell(cell: Cell, study: Study, out: Path, *, steps: int, smoke: bool) -> str:
    """Train, measure, and keep the numbers and the log; the weights are deleted."""
    rate = cell.rate or find_rate(study, cell.arm, out)
    training = Training(cell.arm, cell.seed, rate, steps, smoke, out)
    shutil.rmtree(training.model, ignore_errors=True)
    costs = study.train(training)
    world, parts = ("validation", PARTS[:1]) if cell.rate else ("test", PARTS)
    metrics = measure(training.model, out / world, parts=parts)
    write_run(cell.path(out), {**metrics, **costs, "learning rate": float(rate)}, model=training.model)
    shutil.rmtree(training.model)
    return f"object F1 {object_f1(metrics):.1f}"


def run_study(options: argparse.Namespace, study: Study) -> None:
    """Search; then compare. The runs of a seed share its data, and are done one after the other."""
    form = {"quick": options.quick, "smoke": options.smoke}
    make_held_out(options.out, smoke=options.smoke)
    work = partial(run_one, study=study, out=options.out, steps=study.count_steps(options), smoke=options.smoke)
    run_missing([StartCell(SEEDS[0]), *list_searches(study, **form)], work, options, together=lambda cell: "search")
    seeds = SEEDS[: 1 if options.quick or options.smoke else None]
    run_missing(
        [cell for seed in seeds for cell in (StartCell(seed), *list_cells(study, seed, smoke=options.smoke))],
        work,
        options,
        together=lambda cell: cell.seed,
    )


def run_one(cell: StartCell | Cell, study: Study, out: Path, *, steps: int, smoke: bool) -> str:
    """Make a start, or train an arm."""
    if isinstance(cell, StartCell):
        return run_start(cell, out, smoke=smoke)
    return run_cell(cell, study, out, steps=steps, smoke=smoke)


def run_arm_study(study: Study, doc: str | None) -> None:
    """The study's program; ``doc`` is its help."""
    quick = "one seed, half the steps"
    main(doc, name=study.name, quick=quick, run=partial(run_study, study=study), write_page=partial(write_page, study=study))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Do it, and return the seconds that this process computed."""
    before = time.process_time()
    work()
    return time.process_time() - before


def write_page(options: argparse.Namespace, study: Study) -> Path:
    """Write the measured part of the study's page; what has no finished run is left out."""
    command = f"python -m scripts.studies.{study.name} --out runs/studies/{study.name} --processes 2 --report docs/studies"
    parts = [f"```\n{command}\n```", study.about.format(steps=study.count_steps(options))]
    runs = page.read_runs(options.out / "cells", read=read_metrics)
    names = {slug(arm.name): arm.name for arm in study.arms}
    if runs:
        rows = page.arm_rows(runs, {SFT: "SFT (the starts)", **names}, COLUMNS).values()
        parts += ["## What the model says", markdown_table(["arm", "seeds", *COLUMNS.values()], rows)]
    if set(runs) & set(names):
        parts += ["## Differences", *_differences(runs, study)]
        parts += ["## Costs", markdown_table(["arm", "seeds", *study.costs], page.arm_rows(runs, names, study.costs).values())]
    searches = {(arm.name, ""): found for arm in study.arms if (found := read_search(study, arm, options.out))}
    if searches:
        rates = " and ".join(page.learning_rates(searches.values()))
        told = f"Object F1 of captions of the validation scenes, one seed; learning rates {rates}."
        rows = [[name, *(f"{score:.1f}" for score in found.values())] for (name, _), found in searches.items()]
        parts += ["## The search for the learning rate", told, markdown_table(["arm", *page.learning_rates(searches.values())], rows)]
    return page.write_measured(options.report / f"{study.name}.md", study.title, parts)


def _differences(runs: page.Runs, study: Study) -> list[str]:
    """Arms less those that they are compared with, over the seeds that both have."""
    pairs = [(arm.name, other) for arm in study.arms for other in arm.others]
    both = [(a, b) for a, b in pairs if set(runs.get(slug(a), {})) & set(runs.get(slug(b), {}))]
    rows = [[f"{a} - {b}", *(page.compare_metric(runs[slug(a)], runs[slug(b)], key) for key in COMPARED)] for a, b in both]
    return ["Paired over seeds, with the p-value of the t-test:", markdown_table(["arm - other", *COMPARED.values()], rows)]
