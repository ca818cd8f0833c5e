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
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from data_tools.sample_pairs import main as sample_pairs
from mmalign.cli import main as mmalign
from mmalign.errors import UserError
from mmalign.evaluation.nltk_words import tokenize
from mmalign.files import read_json_object, write_whole
from mmalign.tables import markdown_table
from scripts.real.data import main as write_data
from scripts.real.pairs import main as write_pairs
from scripts.real.parts import main as make_parts

PROGRAMS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "mmalign": mmalign,
    "data_tools/sample_pairs.py": sample_pairs,
    "scripts.real.parts": make_parts,
    "scripts.real.data": write_data,
    "scripts.real.pairs": write_pairs,
}
PREFERENCE_ARMS = {
    "dpo": ("DPO", "--difficulty-mode off"),
    "da_dpo_paper": ("DA-DPO, paper", "--difficulty-mode paper"),
    "da_dpo_loss_weight": ("DA-DPO, loss-weight", "--difficulty-mode loss-weight"),
}
MODELS = {"sft": "SFT (the start)", "sft_more": "SFT continued", **{arm: name for arm, (name, _) in PREFERENCE_ARMS.items()}}
BASELINES = {"human": "human captions", "blind": "SFT, blind"}
"""A blind model is the start on grey pictures."""
COLUMNS = {
    "hallucinated captions % ↓": ("eval", "chair", "chair/sentence"),
    "CHAIR_i % ↓": ("eval", "chair", "chair/instance"),
    "coverage % ↑": ("eval", "chair", "chair/recall"),
    "of 18 classes: hallucinated % ↓": ("eval_instances", "chair", "chair/sentence"),
    "coverage % ↑ ": ("eval_instances", "chair", "chair/recall"),
    "POPE F1 ↑": ("eval", "pope", "pope/f1"),
    "RePOPE F1 ↑": ("eval_repope", "pope", "pope/f1"),
    "existence F1 ↑": ("eval_instances", "pope", "pope/f1"),
    "share of yes": ("eval_instances", "pope", "pope/yes_ratio"),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    data: str
    sft_steps: int
    scorer_steps: int
    scorer_batch: int
    samples: int
    preference_steps: int
    batch: int
    caption_tokens: int
    hours: str


SIZES = {
    "full": Sizes(
        data="",
        sft_steps=1000,
        scorer_steps=600,
        scorer_batch=96,
        samples=4,
        preference_steps=400,
        batch=16,
        caption_tokens=48,
        hours="about 6 hours on two CPU cores, by estimate, and 6 GB",
    ),
    "small": Sizes(
        data="--num-train 160 --num-val 20 --num-pair-photos 24 --num-chair 20 --num-existence 24",
        sft_steps=4,
        scorer_steps=4,
        scorer_batch=16,
        samples=2,
        preference_steps=2,
        batch=8,
        caption_tokens=24,
        hours="less than 20 minutes on two CPU cores, and 5 GB",
    ),
}


class Step(NamedTuple):
    """A command, and the file that it leaves when it is done."""

    done: Path
    words: list[str]


def list_steps(out: Path, sizes: Sizes, *, photos: Path, benchmarks: Path, seed: int, dtype: str) -> list[Step]:
    """List all commands in their order."""
    run, data = shlex.quote(str(out)), shlex.quote(str(out / "data"))
    images = f"--image-root {data}/images"
    train = f"{images} --precision {dtype} --batch-size {sizes.batch} --warmup-ratio 0.05 --logging-steps {max(sizes.sft_steps // 100, 1)}"
    train += f" --save-steps 100 --save-total-limit 1 --seed {seed} --freeze vision_tower"
    preference = (
        f"mmalign train preference --model {run}/sft --data {run}/difficulty/scored.parquet --reference copy {train}"
        f" --max-steps {sizes.preference_steps} --learning-rate 5e-6 --beta 0.1"
    )
    sft = f"mmalign train sft --data {data}/sft {train}"
    steps = {
        "parts/parts.json": f"scripts.real.parts --out {run}/parts",
        "data/data.json": f"scripts.real.data --photos {shlex.quote(str(photos))} --benchmarks {shlex.quote(str(benchmarks))} --out {data}"
        f" --seed {seed} {sizes.data}",
        "mllm/processor_config.json": f"mmalign compose --vision {run}/parts/tower --llm {run}/parts/llm --chat-template chatml"
        f" --image-size 192 --seed {seed} --out {run}/mllm",
        "sft/train_log.json": f"{sft} --model {run}/mllm --out {run}/sft --max-steps {sizes.sft_steps} --learning-rate 2e-4",
        "scorer/train_log.json": f"mmalign train contrastive --model {run}/parts/scorer --data {data}/captions {images} --out {run}/scorer"
        f" --batch-size {sizes.scorer_batch} --max-steps {sizes.scorer_steps} --learning-rate 1e-4 --warmup-ratio 0.1 --seed {seed}",
        "sampled/pairs": f"data_tools/sample_pairs.py {data}/pair_photos --image-root {data}/images --model {run}/sft --scorer truth"
        f" --no-embed-images --samples {sizes.samples} --max-new-tokens {sizes.caption_tokens} --batch-size 16 --dtype {dtype}"
        f" --seed {seed} --out {run}/sampled",
        "pairs/pairs.jsonl": f"scripts.real.pairs --data {data} --sampled {run}/sampled --out {run}/pairs --seed {seed}",
        "difficulty/scored.parquet": f"mmalign score-difficulty {run}/pairs {images} --clip {run}/scorer --mllm {run}/sft --dtype {dtype}"
        f" --out {run}/difficulty",
        "sft_more/train_log.json": f"{sft} --model {run}/sft --out {run}/sft_more --max-steps {sizes.preference_steps}"
        " --learning-rate 2e-5",
    }
    steps |= {f"{arm}/train_log.json": f"{preference} {words} --out {run}/{arm}" for arm, (_, words) in PREFERENCE_ARMS.items()}
    for model in MODELS:
        steps |= _evaluations(run, data, model, f"--images {data}/images", sizes=sizes, dtype=dtype)
    blind = _evaluations(run, data, "sft", f"--images {data}/blank", sizes=sizes, dtype=dtype)
    steps |= {done.replace("sft/", "blind/"): words.replace(f"--out {run}/sft/", f"--out {run}/blind/") for done, words in blind.items()}
    for folder, kind in (("eval", "chair"), ("eval_instances", "chair_instances")):
        steps[f"human/{folder}/chair.json"] = (
            f"mmalign evaluate chair --data {data}/{kind} --answers {data}/human/{kind}.jsonl --out {run}/human/{folder}"
        )
    steps |= _pages(run, data)
    return [Step(out / done, shlex.split(words)) for done, words in steps.items()]


def _pages(run: str, data: str) -> dict[str, str]:
    """The pages, of which the main one comes last and links to the others."""
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


def _evaluations(run: str, data: str, model: str, images: str, *, sizes: Sizes, dtype: str) -> dict[str, str]:
    """What is asked of a model: captions against CHAIR's sets and against true instances, POPE, RePOPE's labels, existence."""
    answer = f"--model {run}/{model} {images} --dtype {dtype}"
    described = f"{answer} --max-new-tokens {sizes.caption_tokens}"
    steps = {}
    for folder, captions, questions in (("eval", "chair", "pope"), ("eval_instances", "chair_instances", "existence")):
        out = f"{run}/{model}/{folder}"
        steps[f"{model}/{folder}/chair.json"] = f"mmalign evaluate chair --data {data}/{captions} {described} --out {out}"
        steps[f"{model}/{folder}/pope.json"] = f"mmalign evaluate pope --data {data}/{questions} {answer} --max-new-tokens 4 --out {out}"
    steps[f"{model}/eval_repope/pope.json"] = (
        f"mmalign evaluate pope --data {data}/repope --answers {run}/{model}/eval/pope_answers.jsonl --allow-partial"
        f" --out {run}/{model}/eval_repope"
    )
    return steps


def show(words: Sequence[str]) -> str:
    """A command as it is typed."""
    start = "" if words[0] == "mmalign" else "python " if words[0].endswith(".py") else "python -m "
    return start + shlex.join(words)


def run_steps(steps: Sequence[Step]) -> None:
    """Run what is not done yet.

    Raises:
        SystemExit: If a command fails.
    """
    for number, (done, words) in enumerate(steps, start=1):
        if done.exists():
            continue
        print(f"\n[{number}/{len(steps)}] $ {show(words)}", flush=True)
        start = time.perf_counter()
        if PROGRAMS[words[0]](words[1:]) != 0:
            raise SystemExit(f"stopped at: {show(words)}")
        # Needed to resume a training, and three times as large as what it leaves.
        shutil.rmtree(done.parent / "checkpoints", ignore_errors=True)
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)


def write_table(out: Path) -> str:
    """Write ``table.md``: all models, and what was measured of each in percent."""
    rows = []
    for model, name in {**MODELS, **BASELINES}.items():
        values = [_read_metric(out / model / folder / f"{benchmark}.json", key) for folder, benchmark, key in COLUMNS.values()]
        rows.append([name, *values])
    table = markdown_table(["model", *COLUMNS], rows)
    write_whole(out / "table.md", table + "\n")
    return table


def _read_metric(path: Path, key: str) -> str:
    return f"{100 * read_json_object(path)['metrics'][key]:.1f}" if path.is_file() else ""


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
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args()
    sizes = SIZES[options.steps]
    steps = list_steps(options.out, sizes, photos=options.photos, benchmarks=options.benchmarks, seed=options.seed, dtype=options.dtype)
    if options.list:
        print("\n".join(show(step.words) for step in steps))
        return
    try:
        # CHAIR's scorer needs NLTK's data: better to know it now than after hours.
        tokenize("A cat.")
    except UserError as error:
        parser.error(str(error))
    missing = sum(not step.done.exists() for step in steps)
    print(f"{missing} of {len(steps)} steps are to be done; all together take {sizes.hours}")
    torch.set_num_threads(options.threads)
    # Each of its models is loaded and saved in a moment.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    start = time.perf_counter()
    run_steps(steps)
    print(f"\n{write_table(options.out)}\n")
    print(f"done in {time.perf_counter() - start:.0f} s; the page to look at: {options.out}/report/report.html")


if __name__ == "__main__":
    main()
