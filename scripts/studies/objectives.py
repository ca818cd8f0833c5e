"""Which preference objective? All of them from one start on the embedded world, each with the same search, over seeds.

    python -m scripts.studies.objectives --out runs/studies/objectives --processes 2           # everything
    python -m scripts.studies.objectives --out runs/studies/objectives --processes 2 --quick   # six, about 16 minutes on two cores

First each objective searches its strength and its learning rate on data of a seed of their own, by the object F1 of captions of the
validation scenes: the harmonic mean of precision (100 - CHAIR_i) and coverage, which silence does not raise. Then it trains with the
best: those of pairs on clean and 20% flipped labels, on easy-skewed and balanced pairs; those of lists on responses that the start
samples and the truth scores. Each finished run is a file under ``search/``, ``search_lists/`` or ``cells/``: a stopped study goes on
where it stopped, and ``--report`` writes the page from what is there.

Scores for the objectives of pairs that read them (madpo, dno, smpo, adpo_pair; visits of step_dpo) come from the CLIP scorer's gap,
which doesn't know which labels were flipped.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from scripts.studies.objectives_data import make_data
from scripts.studies.objectives_grid import (
    LIST_CONDITIONS,
    LIST_GRID,
    PAIR_CONDITIONS,
    PAIR_GRID,
    Cell,
    Condition,
    best_of,
    list_cells,
    list_searches,
    read_search,
)
from scripts.studies.objectives_report import Group, object_f1, write_report
from scripts.studies.processes import run_over_processes
from scripts.studies.world_start import make_start, measure, measure_start, quiet, run, write_json

STEPS, QUICK_STEPS, BATCH = 150, 60, 16
KL_PROMPTS = 64


def run_cell(cell: Cell, out: Path, *, steps: int, smoke: bool) -> None:
    """Train, measure, and keep the numbers; the weights are deleted."""
    quiet()
    objective, searching = cell.objective, bool(cell.value)
    value, rate = (cell.value, cell.learning_rate) if searching else best_of(cell.condition, objective, out)
    data = make_data(cell.condition, cell.seed, out, smoke=smoke)[objective.method]
    model = out / "models" / f"{os.getpid()}-{objective.name}"
    shutil.rmtree(model, ignore_errors=True)
    run(["train", objective.method, "--model", out / "start" / "sft", "--data", data, "--out", model, "--objective", objective.words(value),
         *(["--reference", "cached"] if objective.has_reference else []), "--batch-size", BATCH, "--max-steps", steps,
         "--learning-rate", rate, "--warmup-ratio", 0.1, "--logging-steps", steps, "--seed", cell.seed])  # fmt: skip
    world = out / "start" / ("validation" if searching else "test")
    metrics = measure(model, world, parts=("chair",) if searching else ("chair", "pope"))
    log = json.loads((model / "train_log.json").read_text(encoding="utf-8"))
    seconds = next(entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry) / steps
    metrics |= {"seconds a step": seconds, "learning rate": float(rate), objective.parameter: float(value)}
    if not searching:
        metrics["KL"] = divergence_from_start(model, out / "start" / "sft", world)
    write_json(cell.path(out), metrics)
    shutil.rmtree(model)
    print(f"{cell.path(out).relative_to(out)}: object F1 {object_f1(metrics):.1f}", flush=True)


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


def _make_data(conditions: Sequence[Condition], seed: int, out: Path, smoke: bool) -> None:
    quiet()
    for condition in conditions:
        make_data(condition, seed, out, smoke=smoke)


def _run_all(cells: Sequence[Cell], out: Path, *, processes: int, steps: int, smoke: bool) -> None:
    """Run cells over processes. The data sets are made before, each by one process; lists of one seed share what is sampled."""
    cells = [cell for cell in cells if not cell.path(out).is_file()]
    sets: dict[tuple[str, int], list[Condition]] = {}
    for condition, seed in dict.fromkeys((cell.condition, cell.seed) for cell in cells):
        sets.setdefault(("lists" if condition.lists else condition.name, seed), []).append(condition)
    run_over_processes(_make_data, [(those, seed, out, smoke) for (_, seed), those in sets.items()], processes=processes)
    run_over_processes(partial(run_cell, steps=steps, smoke=smoke), [(cell, out) for cell in cells], processes=processes)


def main() -> None:
    """Run what is not finished, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/objectives"))
    parser.add_argument("--quick", action="store_true", help="six objectives of pairs, fewer steps, two seeds, easy-skewed pairs")
    parser.add_argument("--smoke", action="store_true", help="three objectives and a few steps: checks the path, shows no effect")
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
        form = {"quick": options.quick, "smoke": options.smoke}
        for cells in (list_searches(**form), list_cells(**form)):
            _run_all(cells, options.out, processes=options.processes, steps=steps, smoke=options.smoke)
        print(f"done in {time.perf_counter() - begin:.0f} s")
    groups = [
        Group(
            title,
            {condition.name: condition.heading for condition in conditions},
            [(one.name, one.parameter, read_search(conditions[0], one, options.out)) for one in grid],
        )
        for title, conditions, grid in (("Pairs", PAIR_CONDITIONS, PAIR_GRID), ("Lists", LIST_CONDITIONS, LIST_GRID))
    ]
    print(write_report(options.out, options.report or options.out, groups=groups, steps=steps, batch_size=BATCH))


if __name__ == "__main__":
    main()
