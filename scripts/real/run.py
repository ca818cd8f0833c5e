"""The main job on photographs with pretrained weights: does difficulty-aware DPO hallucinate less where nobody made the world?

    make real PHOTOS=coco/ BENCHMARKS=benchmarks/
    python -m scripts.real.run --photos coco/ --benchmarks benchmarks/ --out runs/real

Joins SmolLM2-135M-Instruct and EfficientNet-Lite0 (``parts.py``); trains the joint model on captions and questions (``data.py``), and a
contrastive scorer on captions; samples preference pairs from the model and puts errors into human captions (``pairs.py``); scores their
difficulty; trains DPO, two forms of DA-DPO and, as a control, SFT for as many steps from the same start; measures hallucination of all,
of a blind model and of human captions. Each step is one command, printed before it runs. Give the same command again after a stop: finished
steps are kept, and a training resumes from its last checkpoint. ``--steps small`` runs the path on a few photographs and shows no effect.
"""

import argparse
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mmalign.errors import UserError
from mmalign.evaluation.nltk_words import tokenize
from mmalign.files import write_whole
from mmalign.tables import markdown_table
from scripts.real.steps import BETA, COLUMNS, FREEZE, RATE, SIZES, Job, Step, measured, quoted, run_steps, show


class Arm(NamedTuple):
    """Preference training from the start: its name in tables, and its options."""

    name: str
    words: str


PREFERENCE_ARMS: Mapping[str, Arm] = {
    "dpo": Arm("DPO", "--difficulty-mode off"),
    "da_dpo_paper": Arm("DA-DPO, paper", "--difficulty-mode paper"),
    "da_dpo_loss_weight": Arm("DA-DPO, loss-weight", "--difficulty-mode loss-weight"),
}
SHARED = f"{FREEZE} --reference copy --beta {BETA}"
"""Options of all of them."""
MODELS = {"sft": "SFT (the start)", "sft_more": "SFT continued", **{arm: name for arm, (name, _) in PREFERENCE_ARMS.items()}}
BASELINES = {"human": "human captions", "blind": "SFT, blind"}
"""A blind model is the start on grey pictures."""


def list_steps(job: Job, *, photos: Path, benchmarks: Path, seed: int) -> list[Step]:
    """List all commands in their order."""
    out, sizes, data, images = job.out, job.sizes, job.path("data"), f"--image-root {job.path('data', 'images')}"
    parts = {name: job.path("parts", name) for name in ("tower", "llm", "scorer")}
    made = {
        "parts/parts.json": f"scripts.real.parts --out {job.path('parts')}",
        "data/data.json": f"scripts.real.data --photos {quoted(photos)} --benchmarks {quoted(benchmarks)} --out {data}"
        f" --seed {seed} {sizes.data}",
        "mllm/processor_config.json": f"mmalign compose --vision {parts['tower']} --llm {parts['llm']} --chat-template chatml"
        f" --image-size 192 --seed {seed} --out {job.path('mllm')}",
    }
    scorer = f"mmalign train contrastive --model {parts['scorer']} --data {data}/captions {images} --out {job.path('scorer')}"
    scorer += f" --batch-size {sizes.scorer_batch} --max-steps {sizes.scorer_steps} --learning-rate 1e-4 --warmup-ratio 0.1 --seed {seed}"
    sampled = f"data_tools/sample_pairs.py {data}/pair_photos {images} --model {job.path('sft')} --scorer truth --no-embed-images"
    sampled += f" --samples {sizes.samples} --max-new-tokens {sizes.caption_tokens} --batch-size 16 --dtype {job.dtype} --seed {seed}"
    scored = out / "difficulty" / "scored.parquet"
    steps = [
        *(Step.of(out / done, line) for done, line in made.items()),
        job.sft(out / "mllm", out / "sft", seed=seed, steps=sizes.sft_steps, learning_rate="2e-4"),
        *job.evaluations(out / "sft", out / "sft"),
        *job.evaluations(out / "sft", out / "blind", images="blank"),
        Step.of(out / "scorer" / "train_log.json", scorer),
        Step.of(out / "sampled" / "pairs", f"{sampled} --out {job.path('sampled')}"),
        *job.pairs(out, seed=seed),
    ]
    # Each is measured before the next one is trained: a stopped run has numbers.
    shared = f"{SHARED} --learning-rate {RATE}"
    arms = [job.preference(scored, out / key, seed=seed, words=f"{shared} {arm.words}") for key, arm in PREFERENCE_ARMS.items()]
    for training in [*arms, continued(job, out / "sft_more", seed=seed)]:
        steps += [training, *job.evaluations(training.done.parent, training.done.parent)]
    for folder, kind in (("eval", "chair"), ("eval_instances", "chair_instances")):
        line = f"mmalign evaluate chair --data {data}/{kind} --answers {data}/human/{kind}.jsonl --out {job.path('human', folder)}"
        steps.append(Step.of(out / "human" / folder / "chair.json", line))
    return steps + [Step.of(out / done, line) for done, line in _pages(job).items()]


def continued(job: Job, out: Path, *, seed: int) -> Step:
    """Train the start for as many steps as preference training has."""
    return job.sft(job.out / "sft", out, seed=seed, steps=job.sizes.preference_steps, learning_rate="2e-5")


def _pages(job: Job) -> dict[str, str]:
    """The pages, of which the main one comes last and links to the others."""
    run, data = job.path(), job.path("data")
    trained = list(PREFERENCE_ARMS)
    names = shlex.join(name for name, _ in PREFERENCE_ARMS.values())
    pages = {
        "report/difficulty.html": f"mmalign report difficulty {run}/difficulty --image-root {data}/images --group-by truth_kind"
        f" --out {run}/report/difficulty.html",
        "report/training.html": f"mmalign report training {' '.join(f'{run}/{arm}' for arm in trained)} --names {names}"
        f" --out {run}/report/training.html",
    }
    titles = {"repope": "POPE's questions with RePOPE's labels", "instances": "True instances", "": "Photographs and pretrained weights"}
    for kind, title in titles.items():
        folder, out = f"eval_{kind}".rstrip("_"), f"report/{kind}".rstrip("/")
        # Nobody answered POPE's questions by hand.
        shown = {model: name for model, name in {**MODELS, **BASELINES}.items() if (model, kind) != ("human", "repope")}
        links = "" if kind else f" --links {' '.join(f'{run}/{page}' for page in pages)}"
        pages[f"{out}/report.html"] = (
            f"mmalign report eval {' '.join(f'{run}/{model}/{folder}' for model in shown)} --names {shlex.join(shown.values())}"
            f" --images {data}/images --title {shlex.quote(title)} --out {run}/{out}{links}"
        )
    return pages


def write_table(out: Path) -> str:
    """Write ``table.md``: all models, and what was measured of each in percent."""
    rows = []
    for model, name in {**MODELS, **BASELINES}.items():
        values = measured(out / model)
        rows.append([name, *(f"{values[key]:.1f}" if key in values else "" for key in COLUMNS)])
    table = markdown_table(["model", *(column.heading for column in COLUMNS.values())], rows)
    write_whole(out / "table.md", table + "\n")
    return table


def choose_steps(steps: Sequence[Step], out: Path, names: Sequence[str]) -> list[Step]:
    """The steps that make these folders.

    Raises:
        SystemExit: If no step makes one of them.
    """
    made = {step.done.relative_to(out).parts[0] for step in steps}
    if unknown := sorted({*names} - made):
        raise SystemExit(f"--only {' '.join(unknown)}: nothing makes it; there are {', '.join(sorted(made))}")
    return [step for step in steps if step.done.relative_to(out).parts[0] in names]


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="COCO's own folder, or train*.parquet and val*.parquet (photos.py)")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of chair/, pope/ and perhaps repope/ (data.py)")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder of everything that is made")
    parser.add_argument("--steps", choices=list(SIZES), default="full", help="small: a few steps on a few photographs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of forward passes and answers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these folders of OUT alone, such as parts data scorer")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args()
    job = Job(out=options.out, sizes=SIZES[options.steps], dtype=options.dtype)
    steps = list_steps(job, photos=options.photos, benchmarks=options.benchmarks, seed=options.seed)
    steps = choose_steps(steps, options.out, options.only) if options.only else steps
    if options.list:
        print("\n".join(show(step.words) for step in steps))
        return
    try:
        # CHAIR's scorer needs NLTK's data: better to know it now than after hours.
        tokenize("A cat.")
    except UserError as error:
        parser.error(str(error))
    missing = sum(not step.done.exists() for step in steps)
    print(f"{missing} of {len(steps)} steps are to be done; the whole run takes {job.sizes.hours}")
    torch.set_num_threads(options.threads)
    # Each of its models is loaded and saved in a moment.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    start = time.perf_counter()
    run_steps(steps)
    took = f"done in {time.perf_counter() - start:.0f} s"
    if options.only:
        print(took)
    else:
        print(f"\n{write_table(options.out)}\n")
        print(f"{took}; the page to look at: {options.out}/report/report.html")


if __name__ == "__main__":
    main()
