"""The main job on the embedded world, in about ten minutes on two CPU cores.

Builds a world of drawn shapes; trains a CLIP scorer and a small LLaVA whose training captions name objects that are not there;
scores preference pairs for difficulty; trains DPO and DA-DPO from the same start with the same budget; measures hallucination of
all three, and ends with the pages of ``mmalign report``. Each step is one ``mmalign`` command, printed before it runs; finished steps
are kept when the demo is run again.
"""

import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

from mmalign.cli import main as mmalign
from mmalign.options.demo import DemoOptions
from mmalign.recipes import find_folder

MODELS = {"SFT": "sft", "DPO": "dpo", "DA-DPO": "da_dpo"}


def commands(out: Path, *, seed: int, smoke: bool, caption_noise: float = 0.8, sft_steps: int = 1700) -> dict[str, list[str]]:
    """List the demo's commands by the file that each leaves when it is done."""

    def size(full: int, small: int) -> str:
        return str(small if smoke else full)

    run, configs = str(out), os.path.relpath(find_folder() / "demo")
    world = f"{run}/world"
    preference = (
        f"train preference --model {run}/sft --data {run}/difficulty/scored.parquet --reference cached --batch-size 16 --seed {seed}"
        f" --max-steps {size(300, 3)} --learning-rate 1e-4 --warmup-ratio 0.1 --beta 0.3 --sft-weight 4 --logging-steps {size(10, 1)}"
    )
    steps = {
        "world/world.json": f"world build --out {world} --seed {seed} --num-scenes {size(12_000, 64)} --num-pairs {size(4_800, 48)}"
        f" --num-eval-scenes {size(200, 12)} --caption-noise {caption_noise}",
        "clip/train_log.json": f"train contrastive --model {configs}/clip.json --tokenizer {world}/tokenizer --data {world}/captions"
        f" --out {run}/clip --license apache-2.0 --batch-size {size(96, 8)}"
        f" --max-steps {size(300, 3)} --learning-rate 1.5e-3 --warmup-ratio 0.1 --num-workers 1 --seed {seed}",
        "mllm/config.json": f"compose --vision {run}/clip --llm {configs}/llm.json --tokenizer {world}/tokenizer"
        f" --vision-feature-layer -2 --seed {seed} --out {run}/mllm",
        "sft/train_log.json": f"train sft --model {run}/mllm --data {world}/sft --out {run}/sft --license apache-2.0"
        f" --batch-size {size(16, 8)} --max-steps {size(sft_steps, 3)} --optimizer muon --learning-rate 2e-3 --adam-beta2 0.95"
        f" --warmup-ratio 0.1 --logging-steps {size(25, 1)} --num-workers 1 --seed {seed}",
        "difficulty/scored.parquet": f"score-difficulty {world}/pairs --clip {run}/clip --mllm {run}/sft --out {run}/difficulty"
        " --batch-size 64",
        "dpo/train_log.json": f"{preference} --difficulty-mode off --out {run}/dpo",
        "da_dpo/train_log.json": f"{preference} --difficulty-mode paper --out {run}/da_dpo",
    }
    for folder in MODELS.values():
        for benchmark, longest in (("pope", 4), ("chair", 64)):
            steps[f"{folder}/eval/{benchmark}.json"] = (
                f"evaluate {benchmark} --model {run}/{folder} --data {world}/eval --out {run}/{folder}/eval"
                f" --max-new-tokens {longest} --batch-size 100"
            )
    return {done: shlex.split(step) for done, step in steps.items()}


def run_commands(out: Path, steps: Mapping[str, list[str]], *, again: bool = False) -> None:
    """Run and time what is not done yet, or all of it again.

    Raises:
        SystemExit: If a command fails.
    """
    for done, words in steps.items():
        if (out / done).is_file() and not again:
            continue
        print(f"\n$ mmalign {shlex.join(words)}", flush=True)
        start = time.perf_counter()
        if mmalign(words) != 0:
            raise SystemExit(f"the demo stopped at: mmalign {shlex.join(words)}")
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)


def reports(out: Path) -> dict[str, list[str]]:
    """List the commands that make the pages, by the file that each leaves; ``report.html`` links to the others."""
    evaluated = " ".join(f"{out}/{folder}/eval" for folder in MODELS.values())
    trained = " ".join(f"{out}/{folder}" for folder in MODELS.values())
    names = f"--names {' '.join(MODELS)}"
    # What the pairs were made to be stands beside the scores, which never saw it.
    steps = {
        "difficulty.html": f"report difficulty {out}/difficulty --group-by truth_kind --out {out}/difficulty.html",
        "training.html": f"report training {trained} {names} --out {out}/training.html",
        "report.html": f"report eval {evaluated} {names} --out {out} --images {out}/world/eval/images"
        f" --links {out}/difficulty.html {out}/training.html --title 'mmalign demo: does difficulty-aware DPO hallucinate less?'",
    }
    return {done: shlex.split(step) for done, step in steps.items()}


def run(options: DemoOptions) -> None:
    """Run what is not done yet, and make the pages."""
    # Each of its models is loaded and saved in a moment.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    start = time.perf_counter()
    run_commands(options.out, commands(options.out, seed=options.seed, smoke=options.smoke))
    run_commands(options.out, reports(options.out), again=True)
    print(f"\ndone in {time.perf_counter() - start:.0f} s; the page to look at: {options.out / 'report.html'}")
