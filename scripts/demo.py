"""The main job on the embedded world, in about ten minutes on two CPU cores.

Builds a world of drawn shapes; trains a CLIP scorer and a small LLaVA whose training captions name objects that are not there;
scores preference pairs for difficulty; trains DPO and DA-DPO from the same start with the same budget; measures hallucination of
all three. Each step is one ``mmalign`` command, printed before it runs; finished steps are kept when the demo is run again.
"""

import argparse
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers.utils import logging

from mmalign.cli import main as mmalign
from mmalign.evaluation.answers import read_answers
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.object_words import find_mentions
from mmalign.reports.demo_page import write_demo_page
from mmalign.reports.difficulty_summary import DifficultySummary, Grade, ProxySummary
from mmalign.reports.gallery import Caption, GalleryItem
from mmalign.reports.results_table import ModelRun, text_table

CONFIGS = Path(os.path.relpath(Path(__file__).resolve().parent / "demo"))
MODELS = {"SFT": "sft", "DPO": "dpo", "DA-DPO": "da_dpo"}
GALLERY_SIZE = 12


def commands(out: Path, *, seed: int, smoke: bool, caption_noise: float = 0.8, sft_steps: int = 1700) -> dict[str, list[str]]:
    """List the demo's commands by the file that each leaves when it is done."""

    def size(full: int, small: int) -> str:
        return str(small if smoke else full)

    run = str(out)
    world = f"{run}/world"
    preference = (
        f"train preference --model {run}/sft --data {run}/difficulty/scored.parquet --reference cached --batch-size 16 --seed {seed}"
        f" --max-steps {size(300, 3)} --learning-rate 1e-4 --warmup-ratio 0.1 --beta 0.3 --sft-weight 4 --logging-steps {size(10, 1)}"
    )
    steps = {
        "world/world.json": f"world build --out {world} --seed {seed} --num-scenes {size(12_000, 64)} --num-pairs {size(4_800, 48)}"
        f" --num-eval-scenes {size(200, 12)} --caption-noise {caption_noise}",
        "clip/train_log.json": f"train contrastive --model {CONFIGS}/clip.json --tokenizer {world}/tokenizer --data {world}/captions"
        f" --out {run}/clip --license apache-2.0 --batch-size {size(96, 8)}"
        f" --max-steps {size(300, 3)} --learning-rate 1.5e-3 --warmup-ratio 0.1 --num-workers 1 --seed {seed}",
        "mllm/config.json": f"compose --vision {run}/clip --llm {CONFIGS}/llm.json --tokenizer {world}/tokenizer"
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


def run_commands(out: Path, steps: Mapping[str, list[str]]) -> dict[str, float]:
    """Run what is not done yet, and time each command in seconds."""
    seconds = {}
    for done, words in steps.items():
        if (out / done).is_file():
            continue
        print(f"\n$ mmalign {shlex.join(words)}", flush=True)
        start = time.perf_counter()
        if mmalign(words) != 0:
            raise SystemExit(f"the demo stopped at: mmalign {shlex.join(words)}")
        seconds[done] = time.perf_counter() - start
        print(f"  ({seconds[done]:.0f} s)", flush=True)
    return seconds


def read_model(out: Path, name: str) -> ModelRun:
    """Read a model's scores and training log."""
    folder = out / MODELS[name]
    results = [json.loads((folder / "eval" / f"{benchmark}.json").read_text()) for benchmark in ("pope", "chair")]
    return ModelRun(
        name=name,
        metrics={key: value for result in results for key, value in result["metrics"].items()},
        num_answers={result["benchmark"]: result["num_answers"] for result in results},
        log_history=json.loads((folder / "train_log.json").read_text()),
    )


def read_difficulty(out: Path) -> DifficultySummary:
    """Read the scores, and beside them the true grades that no training saw."""
    scored = Dataset.from_parquet(str(out / "difficulty" / "scored.parquet"))
    statistics = json.loads((out / "difficulty" / "difficulty.json").read_text())["statistics"]["all"]
    grades: list[Grade] = ["hard" if value >= 0.5 else "easy" for value in scored["truth_difficulty"]]
    proxies = [ProxySummary(name, values["accuracy"], values["weight"]) for name, values in statistics.items()]
    return DifficultySummary(scored["difficulty"], grades, proxies)


def _read_captions(path: Path) -> dict[str, str]:
    return {answer.id: answer.response for answer in read_answers(path)}


def build_gallery(out: Path) -> list[GalleryItem]:
    """Show the first held-out scenes with each model's caption, right and wrong object words marked."""
    data = out / "world" / "eval"
    chair = load_chair(data)
    answers = {name: _read_captions(out / folder / "eval" / "chair_answers.jsonl") for name, folder in MODELS.items()}
    items = []
    for image in chair.questions()[:GALLERY_SIZE]:
        truth = chair.truths[image.id]
        captions = {}
        for name in MODELS:
            text = answers[name][image.id]
            mentions = find_mentions(text, chair.words)
            wrong = [(m.start, m.end) for m in mentions if m.name not in truth]
            right = [(m.start, m.end) for m in mentions if m.name in truth]
            captions[name] = Caption(text, hallucinated=wrong, correct=right)
        png = (data / "images" / str(image.image)).read_bytes()
        items.append(GalleryItem(image=png, captions=captions, truth=sorted(truth), question=image.prompt))
    return items


def write_page(out: Path, models: list[ModelRun], *, seed: int) -> Path:
    """Write the demo's page."""
    record: dict[str, Any] = json.loads((out / "sft" / "mmalign_run.json").read_text())
    world = json.loads((out / "world" / "world.json").read_text())
    facts = {
        "Model": f"LLaVA of {record['parameters']['total']:,} parameters (CLIP tower, Qwen3 text model), trained here from scratch",
        "World": f"{world['counts']['sft']:,} drawn scenes; {world['config']['caption_noise']:.0%} of the captions of scenes that lack"
        " a usual companion name it all the same",
        "Pairs": f"{world['counts']['pairs']:,}, {world['config']['easy_share']:.0%} of them easy",
        "Preference training": "300 steps of 16 pairs, beta 0.3, SFT term of weight 4, full weights, from the SFT model; reference cached",
        "Seed": str(seed),
        "mmalign": record["mmalign"],
    }
    return write_demo_page(
        out / "report.html",
        title="mmalign demo: does difficulty-aware DPO hallucinate less?",
        models=models,
        difficulty=read_difficulty(out),
        gallery=build_gallery(out),
        facts=facts,
        gallery_note=f"The first {GALLERY_SIZE} held-out scenes, not chosen.",
    )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything that is made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps on a tiny world: checks the path, shows no effect")
    options = parser.parse_args()
    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    start = time.perf_counter()
    run_commands(options.out, commands(options.out, seed=options.seed, smoke=options.smoke))
    models = [read_model(options.out, name) for name in MODELS]
    page = write_page(options.out, models, seed=options.seed)
    print(f"\n{text_table(models)}\n")
    print(f"done in {time.perf_counter() - start:.0f} s; the page to look at: {page}")


if __name__ == "__main__":
    main()
