"""Seconds of ``mmalign train sft`` before its first step, on photographs with captions: what the check of the rows costs.

    git worktree add runs/before fbf286a
    python scripts/benchmarks/before_step_one.py --photos coco/ --model runs/real/parts/mllm --before runs/before --write

``--photos`` holds ``train-*.parquet`` with the columns ``image`` and ``captions``. ``--before`` is a checkout in which each process checks
all rows, each time. Every arm is the whole command, from its start to the line that says that training begins; then it is ended.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import psutil
from bench import ENVIRONMENT, report

from mmalign.data.workers import count_cores
from mmalign.tables import markdown_table

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPT = "Describe the image in one sentence."


def write_rows(photos: Path, path: Path, num_rows: int) -> int:
    """Write chats with embedded photographs; return their number."""
    table = datasets.Dataset.from_parquet([str(file) for file in sorted(photos.glob("train-*.parquet"))], columns=["image", "captions"])
    table = table.cast_column("image", datasets.Image(decode=False)).select(range(min(num_rows, len(table))))

    def chat(row: dict[str, object]) -> dict[str, object]:
        captions = row["captions"]
        assert isinstance(captions, list)
        asked = {"role": "user", "content": PROMPT}
        return {"images": [row["image"]], "messages": [asked, {"role": "assistant", "content": captions[0]}]}

    table.map(chat, remove_columns=table.column_names).to_parquet(str(path))
    return len(table)


def measure(checkout: Path, words: list[str], *, processes: int, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command until training begins; return wall and CPU seconds, those of all its processes."""
    start = [sys.executable, "-m", "mmalign"]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "mmalign"]
    environment = {**os.environ, **environment, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    command = [*start, *words]
    with subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        found = any(line.startswith("training ") for line in process.stdout)
        wall = time.monotonic() - begin
        tree = [] if not found else [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        # The times of those that have ended are their parent's.
        cpu = sum(sum(one.cpu_times()[:4]) for one in tree)
        for one in reversed(tree):
            one.send_signal(signal.SIGKILL)
    assert found, f"{checkout}: the command ended before training began"
    return wall, cpu


def main() -> None:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/before_step_one"))
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    count = write_rows(options.photos.resolve(), work / "chats.parquet", options.rows)
    environment = {**ENVIRONMENT, "HF_DATASETS_CACHE": str(work / "cache")}
    words = ["train", "sft", "--model", str(options.model.resolve()), "--data", str(work / "chats.parquet"), "--max-steps", "1"]
    header = ("way", "processes", "wall s", "CPU s", "wall / before", "CPU / before")
    table: list[tuple[str, ...]] = []
    # The first run of all converts the rows for datasets, and is not counted.
    measure(REPOSITORY, [*words, "--out", str(work / "first")], processes=1, environment=environment)
    arms = {"before": options.before.resolve(), "first run": REPOSITORY, "second run": REPOSITORY}
    for processes in options.processes:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for turn in range(options.rounds):
            shutil.rmtree(work / "cache" / "mmalign_checked")
            for name, checkout in arms.items():
                out = work / f"{name}-{processes}-{turn}".replace(" ", "-")
                found[name].append(measure(checkout, [*words, "--out", str(out)], processes=processes, environment=environment))
                print(name, processes, *found[name][-1], flush=True)
        # On busy cores the least that a round took says most.
        least = {name: [min(values) for values in zip(*times, strict=True)] for name, times in found.items()}
        for name, times in least.items():
            ratios = [f"{mine / theirs:.2f}" for mine, theirs in zip(times, least["before"], strict=True)]
            table.append((name, str(processes), *(f"{seconds:.1f}" for seconds in times), *ratios))
    about = f"{count:,} rows, {count_cores()} cores, the least of {options.rounds} rounds; load at the end {os.getloadavg()[0]:.1f}."
    report("Seconds before the first step", about, markdown_table(header, table), write=options.write)


if __name__ == "__main__":
    main()
