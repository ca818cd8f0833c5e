"""Which preference objective? All pair objectives from one start on the embedded world, each with the same search, over seeds.

    python -m scripts.studies.objectives --out runs/studies/objectives --processes 2           # everything
    python -m scripts.studies.objectives --out runs/studies/objectives --processes 2 --quick   # six, about 16 minutes on two cores

First each objective searches its strength and its learning rate on pairs of a seed of their own, by the object F1 of captions of the
validation scenes: the harmonic mean of precision (100 - CHAIR_i) and coverage, which silence does not raise. Then it trains with the
best on clean and 20% flipped labels, on easy-skewed and balanced pairs. Each finished run is a file under ``search/`` or ``cells/``: a
stopped study goes on where it stopped, and ``--report`` writes the page from what is there.

Scores for the objectives that read them (madpo, dno, smpo, adpo_pair; visits of step_dpo) come from the CLIP scorer's gap, which doesn't
know which labels were flipped.
"""

import argparse
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from scripts.studies.objectives_report import object_f1, write_report
from scripts.studies.world_start import make_scored_pairs, make_start, measure, measure_start, quiet, read_json, run, slug, write_json

NUM_PAIRS, STEPS, QUICK_STEPS, BATCH = 2400, 150, 60, 16
SEARCH_SEED, SEEDS, QUICK_SEEDS = 100, (1, 2, 3), (1, 2)
LEARNING_RATES = ("1e-4", "3e-4")
KL_PROMPTS = 64
VISITS = 16


@dataclass(frozen=True)
class Condition:
    """How the pairs are made."""

    name: str
    easy_share: float
    label_noise: float


@dataclass(frozen=True)
class Objective:
    """An objective, and the values of its strength that are tried: stronger than usual, since weaker ones were never the best here."""

    name: str
    parameter: str = "beta"
    values: tuple[str, ...] = ("0.3", "1", "0.1")
    fixed: str = ""

    def words(self, value: str) -> str:
        """What ``--objective`` is given."""
        return f"{self.name}:{self.parameter}={value}" + (f",{self.fixed}" if self.fixed else "")


CONDITIONS = (
    Condition("easy-skewed, clean", 0.8, 0.0),
    Condition("easy-skewed, 20% flipped", 0.8, 0.2),
    Condition("balanced, clean", 0.5, 0.0),
    Condition("balanced, 20% flipped", 0.5, 0.2),
)
# The most important first. Strengths of mean scores are larger, because a mean is a tenth of a sum here.
OBJECTIVES = (
    Objective("dpo"),
    Objective("simpo", values=("5", "10", "2")),
    Objective("ipo", values=("1", "3", "0.3")),
    Objective("cdpo", fixed="label_smoothing=0.2"),
    Objective("orpo", "odds_weight", ("1", "3", "0.3")),
    Objective("kto_pair"),
    Objective("flex_dpo"),
    Objective("madpo"),
    Objective("ld_dpo"),
    Objective("fdpo"),
    Objective("rdpo", fixed="label_smoothing=0.2"),
    Objective("hinge"),
    Objective("asft", "align_weight", ("1", "3", "0.3")),
    Objective("dno"),
    Objective("adpo_pair", "temperature", ("3", "1", "10")),
    Objective("smpo"),
    Objective("ddo"),
    Objective("step_dpo"),
    Objective("clipped_dpo", values=("3", "10", "1")),
)


@dataclass(frozen=True)
class Cell:
    """One run: of the search where there is no condition, else of the comparison with what the search found."""

    objective: Objective
    seed: int
    condition: Condition | None = None
    value: str = ""
    learning_rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if self.condition is None:
            return out / "search" / self.objective.name / f"{self.value}_{self.learning_rate}.json"
        return out / "cells" / slug(self.condition.name) / str(self.seed) / f"{self.objective.name}.json"


def list_search(*, quick: bool) -> Iterator[Cell]:
    """List the search's runs: as many for every objective."""
    for objective in OBJECTIVES[: 6 if quick else None]:
        for rate in LEARNING_RATES[: 1 if quick else None]:
            yield from (Cell(objective, SEARCH_SEED, None, value, rate) for value in objective.values[: 2 if quick else None])


def list_cells(*, quick: bool) -> Iterator[Cell]:
    """List the comparison's runs, the most important ones first."""
    objectives = OBJECTIVES[: 6 if quick else None]
    for seeds in (QUICK_SEEDS,) if quick else (QUICK_SEEDS, SEEDS[len(QUICK_SEEDS) :]):
        for condition in CONDITIONS[: 2 if quick else None]:
            for seed in seeds:
                yield from (Cell(objective, seed, condition) for objective in objectives)


def read_search(objective: Objective, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an objective's search: (strength, learning rate) -> object F1, in the order of the grid."""
    grid = [Cell(objective, SEARCH_SEED, None, value, rate) for rate in LEARNING_RATES for value in objective.values]
    return {(cell.value, cell.learning_rate): object_f1(read_json(path)) for cell in grid if (path := cell.path(out)).is_file()}


def best_of(objective: Objective, out: Path) -> tuple[str, str]:
    """Return the strength and the learning rate that the search found best; the first of equals in the order of the grid.

    Raises:
        ValueError: If the objective has no finished run of the search.
    """
    scores = read_search(objective, out)
    if not scores:
        raise ValueError(f"{objective.name} has no finished run of the search in {out / 'search'}; run the study without --report-only")
    return max(scores, key=lambda key: scores[key])


def run_cell(cell: Cell, out: Path, *, steps: int, smoke: bool) -> None:
    """Train, measure, and keep the numbers; the weights are deleted."""
    quiet()
    searching = cell.condition is None
    value, rate = (cell.value, cell.learning_rate) if searching else best_of(cell.objective, out)
    data = make_data(cell.condition or CONDITIONS[0], cell.seed, out, smoke=smoke)
    model = out / "models" / f"{os.getpid()}-{cell.objective.name}"
    shutil.rmtree(model, ignore_errors=True)
    uses_reference = cell.objective.name not in ("simpo", "orpo", "asft")
    words = cell.objective.words(value)
    run(["train", "preference", "--model", out / "start" / "sft", "--data", data, "--out", model, "--objective", words,
         *(["--reference", "cached"] if uses_reference else []), "--batch-size", BATCH, "--max-steps", steps, "--learning-rate", rate,
         "--warmup-ratio", 0.1, "--logging-steps", steps, "--seed", cell.seed])  # fmt: skip
    world = out / "start" / ("validation" if searching else "test")
    metrics = measure(model, world, parts=("chair",) if searching else ("chair", "pope"))
    log = read_json(model / "train_log.json")
    seconds = next(entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry) / steps  # type: ignore[call-overload]
    metrics |= {"seconds a step": seconds, "learning rate": float(rate), cell.objective.parameter: float(value)}
    if not searching:
        metrics["KL"] = divergence_from_start(model, out / "start" / "sft", world)
    write_json(cell.path(out), metrics)
    shutil.rmtree(model)
    print(f"{cell.path(out).relative_to(out)}: object F1 {object_f1(metrics):.1f}", flush=True)


def make_data(condition: Condition, seed: int, out: Path, *, smoke: bool) -> Path:
    """Return the pairs of a data set with reference, scores and visits, made where they are missing."""
    folder = out / "pairs" / f"{slug(condition.name)}-{seed}"
    scored = make_scored_pairs(
        folder, start=out / "start", seed=seed, num_pairs=48 if smoke else NUM_PAIRS,
        easy_share=condition.easy_share, label_noise=condition.label_noise,
    )  # fmt: skip
    path = folder / "with_scores.parquet"
    if not path.is_file():
        rows = Dataset.from_parquet(str(scored), cache_dir=str(folder / f"cache-{os.getpid()}"))
        gap = np.asarray(rows["gap_contrastive"])
        # In units of a reward model's logits: two standard deviations are a gap of 4.
        gap = 2 * gap / max(float(gap.std()), 1e-9)
        visits = VISITS / (1 + np.exp(-gap))
        columns = {"score_chosen": gap, "score_rejected": np.zeros_like(gap), "visits_chosen": visits, "visits_rejected": VISITS - visits}
        for name, values in columns.items():
            rows = rows.add_column(name, values.tolist())
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        rows.to_parquet(str(partial))
        partial.rename(path)
    return path


@torch.no_grad()
def divergence_from_start(model: Path, start: Path, world: Path) -> float:
    """KL(policy || start) of whole captions, in nats: each next token's exact divergence, summed along captions that the policy samples."""
    from accelerate.utils import send_to_device

    from data_tools.sampling import sample_responses
    from mmalign.data.encode import encode_responses
    from mmalign.data.images import load_image
    from mmalign.data.rows import Message
    from mmalign.engine.batch import collate_prompts
    from mmalign.engine.divergence import Divergence, linear_divergence
    from mmalign.engine.states import compute_response_states, read_output_head
    from mmalign.evaluation.chair import load_chair
    from mmalign.models.load import best_device, load_mllm

    questions = load_chair(world / "eval").questions()[:KL_PROMPTS]
    images = [load_image(question.image, root=world / "eval" / "images") for question in questions]
    (policy, processor), (reference, _) = (load_mllm(str(folder)) for folder in (model, start))
    policy, reference = policy.to(best_device()), reference.to(best_device())
    sampling = {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64, "seed": 0}
    texts = sample_responses(policy, processor, [question.prompt for question in questions], images, **sampling)  # type: ignore[arg-type]
    encoded = [
        encode_responses(processor, images=[image], prompt=[Message(role="user", content=_asked(question.prompt))], responses=text)
        for question, image, text in zip(questions, images, texts, strict=True)
        if text[0]
    ]
    if not encoded:
        return float("nan")
    batch = send_to_device(collate_prompts(encoded, pad_token_id=processor.tokenizer.pad_token_id), next(policy.parameters()).device)
    mine, theirs = compute_response_states(policy, batch), compute_response_states(reference, batch)
    heads = read_output_head(policy).head, read_output_head(reference).head
    by_token = linear_divergence(mine.final, heads[0], theirs.final, heads[1], Divergence("reverse"))
    return float(by_token.sum()) / len(encoded)


def _asked(prompt: str) -> list[dict[str, str]]:
    return [{"type": "image"}, {"type": "text", "text": prompt}]


def _work(cells: Sequence[Cell], out: Path, steps: int, smoke: bool) -> None:
    for cell in cells:
        if not cell.path(out).is_file():
            run_cell(cell, out, steps=steps, smoke=smoke)


def _run_all(cells: Sequence[Cell], out: Path, *, processes: int, steps: int, smoke: bool) -> None:
    """Run cells over processes. The data sets are made before, so that no two processes make the same one."""
    for condition, seed in dict.fromkeys((cell.condition or CONDITIONS[0], cell.seed) for cell in cells if not cell.path(out).is_file()):
        make_data(condition, seed, out, smoke=smoke)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(_work, [cell], out, steps, smoke) for cell in cells]:
            future.result()


def main() -> None:
    """Run what is not finished, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/objectives"))
    parser.add_argument("--quick", action="store_true", help="six objectives, fewer steps, two seeds, easy-skewed pairs")
    parser.add_argument("--smoke", action="store_true", help="two objectives and a few steps: checks the path, shows no effect")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--report", type=Path, help="folder that objectives.md is written to, such as docs/studies")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    quiet()
    steps = 3 if options.smoke else QUICK_STEPS if options.quick else STEPS
    if not options.report_only:
        begin = time.perf_counter()
        model = make_start(options.out / "start", smoke=options.smoke)
        measure_start(model, options.out, parts=("chair", "pope"))
        for cells in (list(list_search(quick=options.quick)), list(list_cells(quick=options.quick))):
            if options.smoke:
                cells = [cell for cell in cells if cell.objective.name in ("dpo", "simpo") and cell.seed != QUICK_SEEDS[1]]
            _run_all(cells, options.out, processes=options.processes, steps=steps, smoke=options.smoke)
        print(f"done in {time.perf_counter() - begin:.0f} s")
    searches = [(objective.name, objective.parameter, read_search(objective, options.out)) for objective in OBJECTIVES]
    names = [condition.name for condition in CONDITIONS]
    print(write_report(options.out, options.report or options.out, conditions=names, searches=searches, steps=steps, batch_size=BATCH))


if __name__ == "__main__":
    main()
