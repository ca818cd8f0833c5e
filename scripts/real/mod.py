"""LLaVA-MoD on photographs: does a student that mimics hallucinate less than one that is trained, a sparse one less than a dense one?

    python -m scripts.real.mod --out runs/real-full                      # after make real, whose start is the teacher
    python -m scripts.real.mod --out runs/real-full --minutes 120        # what fits; again to resume
    python -m scripts.real.mod --out runs/real-full --report-only --report docs/studies

Students have the teacher's tower, frozen, and every third or second layer of its language model as it was before it saw images. A seed
draws the projector, the router and the order of the data; all arms of a seed train for as many steps on the same rows, those that the
teacher was asked about (the arms and their order are those of ``scripts/studies/llava_mod.py``). Pairs are the main run's. A finished arm
leaves ``OUT/mod/cells/SEED/ARM.json``; its weights are deleted when no missing arm begins with them.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from scripts.real.arms import KEEP_EVERY, STUDENTS
from scripts.real.cells import MOD, Cell, run_chosen
from scripts.real.mod_page import read_variety, teacher_path, write_page
from scripts.real.steps import BETA, FREEZE, RATE, Job, Step, delete_weights, measured, quoted, run_steps
from scripts.real.study import add_options, choose_seeds, find_job
from scripts.studies.llava_mod import BY_NAME, Arm
from scripts.studies.study import main, read_sizes, slug, write_json, write_run

TOP_K = 64


def list_cells(seeds: Sequence[int], *, smoke: bool = False) -> list[Cell]:
    """List the students; the smoke form has one that passes through every stage."""
    return [Cell(MOD, arm, seed) for seed in seeds for arm in (("KTO, teacher as reference",) if smoke else STUDENTS)]


def lineage(name: str) -> Iterator[Arm]:
    """The arms that one begins with, the first one first, and itself."""
    arm = BY_NAME[name]
    if arm.parent:
        yield from lineage(arm.parent)
    yield arm


def model_folder(job: Job, name: str, seed: int) -> Path:
    """Folder of a student."""
    return job.out / "mod" / str(seed) / slug(name)


def list_prepared(job: Job) -> list[Step]:
    """What all seeds share: the cut language models, and what the teacher would say to every row."""
    mod, data = job.out / "mod", job.path("data")
    steps = [
        Step.of(mod / f"parts-{number}" / "parts.json", f"scripts.real.parts --out {quoted(mod / f'parts-{number}')} --keep-every {number}")
        for number in KEEP_EVERY.values()
    ]
    taught = f"mmalign cache-teacher {data}/sft --image-root {data}/images --model {job.path('sft')} --dtype {job.dtype} --top-k {TOP_K}"
    return [*steps, Step.of(mod / "taught" / "finished", f"{taught} --shard {job.sizes.taught} --out {quoted(mod / 'taught')}")]


def make_step(job: Job, arm: Arm, seed: int) -> Step:
    """The command that makes an arm's model from its parent's."""
    out, parent = model_folder(job, arm.name, seed), model_folder(job, arm.parent, seed)
    kind, *words = arm.words
    if kind == "compose":
        llm = job.out / "mod" / f"parts-{KEEP_EVERY[words[0]]}" / "llm"
        line = f"mmalign compose --vision {job.path('parts', 'tower')} --llm {quoted(llm)} --chat-template chatml --image-size 192"
        return Step.of(out / "processor_config.json", f"{line} --seed {seed} --out {quoted(out)}")
    if kind == "upcycle":
        line = f"mmalign upcycle {quoted(parent)} {' '.join(words)} --seed {seed} --out {quoted(out)}"
        return Step.of(out / "processor_config.json", line)
    frozen = [] if "--stage" in words else [FREEZE]
    if words[0] == "preference":
        held = f"--reference-model {job.path('sft')}" if "--reference" in words else "--reference copy"
        options = " ".join([*words[1:], *frozen, held, f"--beta {BETA} --learning-rate {RATE}"])
        return job.preference(job.out / "pairs" / "pairs.jsonl", out, seed=seed, words=options, model=parent)
    first = arm.name.endswith(" 1")
    half = job.sizes.sft_steps // 2
    rate, rows = "2e-4" if first else "1e-4", job.out / "mod" / "taught" / "data"
    if words[0] == "sft":
        return job.sft(parent, out, seed=seed + (0 if first else 1000), steps=half, learning_rate=rate, data=rows)
    line = f"mmalign train {' '.join([*words, *frozen])} --model {quoted(parent)} --data {quoted(rows)}"
    line += f" --teacher cached {job.training(seed + (0 if first else 1000))} --max-steps {half} --learning-rate {rate}"
    return Step.of(out / "train_log.json", f"{line} --out {quoted(out)}")


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Make and measure a student, and before it those that it begins with; keep the numbers and the log."""
    torch.set_num_threads(options.threads)
    job = find_job(options, trained=("sft",))
    model = model_folder(job, cell.arm, cell.seed)
    run_steps([*list_prepared(job), *(make_step(job, arm, cell.seed) for arm in lineage(cell.arm))])
    run_steps(job.evaluations(model, model))
    write_run(cell.path(options.out), measured(model) | read_variety(model) | read_sizes(model), model=model)
    delete_weights(finished(job, cell.seed, list_cells([cell.seed], smoke=options.smoke)))
    return f"{measured(model)['hallucinated']:.1f}% hallucinated captions"


def finished(job: Job, seed: int, cells: Sequence[Cell]) -> list[Path]:
    """The models of a seed that no missing cell begins with."""
    missing = [cell for cell in cells if not cell.path(job.out).is_file()]
    needed = {arm.name for cell in missing for arm in lineage(cell.arm)}
    made = {arm.name for cell in cells for arm in lineage(cell.arm)}
    return [model_folder(job, name, seed) for name in sorted(made - needed)]


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing; the teacher has been measured."""
    teacher = find_job(options, trained=("sft",)).out / "sft"
    write_json(teacher_path(options.out), measured(teacher) | read_variety(teacher))
    run_chosen(list_cells(choose_seeds(options), smoke=options.smoke), run_cell, options)


if __name__ == "__main__":
    main(
        __doc__, name="real_mod", quick="one seed", run=run_study, write_page=write_page, add_options=add_options, folders=(f"{MOD}/cells",)
    )
