"""Memory, time and progress of the optimisers on one model.

    python -m scripts.benchmarks.optimizers --model runs/demo/mllm --data runs/demo/world/sft --steps 300

State is what the optimiser holds for every weight after a step; its time is that of ``step()`` alone, the median of ten, on gradients
of the model; the loss is the mean over the last tenth of a run of ``mmalign train sft``. Prints a Markdown table.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import Tensor, nn
from transformers.utils import logging

from mmalign.cli import main as mmalign
from mmalign.models.load import load_mllm
from mmalign.training.config import TrainConfig
from mmalign.training.optimizers import build_optimizer

REPEATS = 10


def arms(ranks: list[int]) -> dict[str, list[str]]:
    """Options of each optimiser, by its name in the table."""
    dct = {f"dct-adamw, rank {rank}": ["--optimizer", "dct-adamw", "--dct-rank", str(rank)] for rank in ranks}
    feedback = {f"dct-adamw, rank {ranks[0]}, error feedback": [*dct[f"dct-adamw, rank {ranks[0]}"], "--dct-error-feedback"]}
    return {"adamw": ["--optimizer", "adamw"], **dct, **feedback, "muon": ["--optimizer", "muon"]}


def measure_step(model: nn.Module, words: list[str]) -> tuple[int, float]:
    """Bytes of state, and seconds of a step, on fixed gradients."""
    rank = int(words[words.index("--dct-rank") + 1]) if "--dct-rank" in words else 128
    config = TrainConfig(learning_rate=0.0, optimizer=words[1], dct_rank=rank, dct_error_feedback="--dct-error-feedback" in words)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config) or torch.optim.AdamW(model.parameters(), lr=0.0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    values = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in values), statistics.median(seconds[2:])


def final_loss(words: list[str], *, model: str, data: Path, steps: int, learning_rate: str, folder: Path) -> float:
    """Train, and average the logged loss of the last tenth."""
    shutil.rmtree(folder, ignore_errors=True)
    run = f"train sft --model {model} --data {data} --out {folder} --batch-size 16 --max-steps {steps} --learning-rate {learning_rate}"
    if mmalign([*run.split(), "--adam-beta2", "0.95", "--warmup-ratio", "0.1", "--logging-steps", str(max(1, steps // 10)), *words]) != 0:
        raise SystemExit(f"training failed with {' '.join(words)}")
    log = [entry["loss"] for entry in json.loads((folder / "train_log.json").read_text()) if "loss" in entry]
    return log[-1]


def main() -> None:
    """Measure every optimiser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="multimodal LLM to train: folder or hub id")
    parser.add_argument("--data", type=Path, required=True, help="chats to fine-tune on")
    parser.add_argument("--steps", type=int, default=300, help="of each run; 0 leaves the loss out")
    parser.add_argument("--learning-rate", default="2e-3", help="of every run")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 16, 64], help="of dct-adamw; the first also with error feedback")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    logging.disable_progress_bar()
    lines, first = [], 0.0
    for name, words in arms(options.ranks).items():
        model, _ = load_mllm(options.model)
        size, seconds = measure_step(model.requires_grad_(True), words)
        first = first or seconds
        del model
        loss = "–"  # noqa: RUF001
        if options.steps:
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                rate = options.learning_rate
                loss = (
                    f"{final_loss(words, model=options.model, data=options.data, steps=options.steps, learning_rate=rate, folder=run):.3f}"
                )
        lines.append(f"| {name} | {size / 2**20:.2f} MiB | {1e3 * seconds:.1f} ms ({seconds / first:.1f}x) | {loss} |")
        print(lines[-1], flush=True)
    print("\n| optimiser | state | `step()` | loss at the end |\n|---|---|---|---|\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
