"""``mmalign score-difficulty`` at scale: pairs per second by processes and shards, bytes per pair, and what reading alone costs.

    python scripts/benchmarks/scoring_scale.py --write

The models are so small that what is measured is everything around them: reading, decoding a 640 x 480 JPEG, both processors,
tokenising, writing. It bounds the pairs per second of a process whatever the GPU is. All ways of splitting the work must leave the
same bytes.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import torch
from bench import ENVIRONMENT, IMAGE_SIZE, PATCH, PROMPT_WORDS, RESPONSE_WORDS, build_model, report, words
from PIL import Image
from transformers import AutoProcessor

from mmalign.data.datasets import load_rows
from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.files import hash_file
from mmalign.models.contrastive import build_clip
from mmalign.tables import markdown_table
from mmalign.worlds.tokenizer import train_tokenizer

PART = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 16,
    "text_config": {**PART, "max_position_embeddings": 77},
    "vision_config": {**PART, "image_size": IMAGE_SIZE, "patch_size": PATCH},
}
NUM_PHOTOS = 64


def build_rows(num_pairs: int, names: list[str]) -> list[dict[str, Any]]:
    """Make pairs of random words, no two alike, about the images in turn."""
    rng, vocabulary = random.Random(0), words()

    def say(role: str, count: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choices(vocabulary, k=count))}]

    rows = []
    for i in range(num_pairs):
        chosen, rejected = (say("assistant", round(RESPONSE_WORDS * rng.uniform(0.75, 1.25))) for _ in range(2))
        rows.append({"images": [names[i % len(names)]], "prompt": say("user", PROMPT_WORDS), "chosen": chosen, "rejected": rejected})
    return rows


def prepare(work: Path, num_pairs: int) -> None:
    """Save models, and pairs with paths of JPEG files."""
    build_model("tiny", work / "tiny")
    (work / "photos").mkdir(exist_ok=True)
    names = [f"{i}.jpg" for i in range(NUM_PHOTOS)]
    for i, name in enumerate(names):
        coarse = Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8))
        coarse.resize((640, 480)).save(work / "photos" / name, quality=90)
    rows = build_rows(num_pairs, names)
    datasets.Dataset.from_list(rows).to_parquet(str(work / "paths.parquet"))
    datasets.Dataset.from_list(rows[:8]).to_parquet(str(work / "start.parquet"))
    if not (work / "clip").is_dir():
        train_tokenizer([row["chosen"][0]["content"] for row in rows[:200]]).save_pretrained(work / "words")
        for part in build_clip(CLIP, tokenizer=str(work / "words"), seed=0):
            part.save_pretrained(work / "clip")


def embed(work: Path, source: Path, target: Path) -> None:
    """Put the images into a copy of the pairs."""
    pairs = datasets.Dataset.from_parquet(str(source))
    images = [[{"bytes": (work / "photos" / name).read_bytes(), "path": None} for name in row] for row in pairs["images"]]
    pairs = pairs.remove_columns("images").add_column("images", images)
    pairs.cast_column("images", datasets.List(datasets.Image())).to_parquet(str(target))


def run(commands: list[list[str]]) -> tuple[float, float, float]:
    """Run commands side by side; return seconds of wall clock, CPU seconds, and the largest process in MiB."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    processes = [subprocess.Popen(words, env={**os.environ, **ENVIRONMENT}, stdout=-3, stderr=subprocess.PIPE) for words in commands]
    for process in processes:
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors.decode()[-3000:])
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1024


def measure(work: Path) -> dict[str, tuple[float, float]]:
    """Score in each way; return wall clock and CPU seconds."""
    python = [sys.executable, "-m"]
    launcher = [*python, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]

    def command(out: str, data: str, launch: list[str] = python, *more: str) -> list[str]:
        job = ["mmalign", "score-difficulty", str(work / data), "--mllm", str(work / "tiny"), "--clip", str(work / "clip")]
        return [*launch, *job, "--image-root", str(work / "photos"), "--out", str(work / out), *more]

    for name in ("one", "two", "shards", "start"):
        shutil.rmtree(work / name, ignore_errors=True)
    results = {
        "start": run([command("start", "start.parquet")]),
        "one process": run([command("one", "paths.parquet")]),
        "`torchrun`, 2 processes": run([command("two", "paths.parquet", launcher)]),
        "`--shard 1/2` and `2/2`": run([command("shards", "paths.parquet", python, "--shard", f"{i}/2") for i in (1, 2)]),
        "joining them": run([command("shards", "paths.parquet")]),
    }
    names = ("scored.parquet", "difficulty.json")
    for other in ("two", "shards"):
        assert all(hash_file(work / "one" / name) == hash_file(work / other / name) for name in names), other
    return {name: (wall, cpu) for name, (wall, cpu, _) in results.items()}


def read_only(work: Path, num_pairs: int = 128) -> float:
    """Return CPU seconds per pair of what no GPU does: reading and decoding, both image processors, tokenising."""
    torch.set_num_threads(1)
    processor, clip_processor = (AutoProcessor.from_pretrained(work / name) for name in ("tiny", "clip"))
    rows = load_rows(work / "paths.parquet")
    start = 0.0
    for index in range(-8, num_pairs):
        if index == 0:  # the first eight warm up
            start = time.process_time()
        row = read_pair(rows[abs(index)], index=index, image_root=work / "photos")
        encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected])
        clip_processor.image_processor(images=row.images, return_tensors="pt")
    return (time.process_time() - start) / num_pairs


def sizes(work: Path, num_pairs: int) -> list[tuple[str, str]]:
    """List bytes per pair."""
    found: dict[str, float] = {}
    for label, path in (("pairs", work / "paths.parquet"), ("scored.parquet", work / "one" / "scored.parquet")):
        embed(work, path, work / "embedded.parquet")
        found[f"{label}, images as paths"] = path.stat().st_size
        found[f"{label}, images embedded"] = (work / "embedded.parquet").stat().st_size
    found["shards/*.jsonl"] = sum(path.stat().st_size for path in (work / "one" / "shards").glob("*.jsonl"))
    file = pyarrow.parquet.ParquetFile(work / "one" / "scored.parquet").metadata
    by_column: dict[str, int] = {}
    for group in range(file.num_row_groups):
        for column in range(file.num_columns):
            chunk = file.row_group(group).column(column)
            name = chunk.path_in_schema.split(".")[0]
            by_column[name] = by_column.get(name, 0) + chunk.total_compressed_size
    added = {name: size for name, size in by_column.items() if name not in ("images", "prompt", "chosen", "rejected", "id", "source")}
    tokens = sum(size for name, size in added.items() if "token_logps" in name)
    found |= {"of it: token log-probabilities": tokens, "of it: all other added columns": sum(added.values()) - tokens}
    return [(label, f"{size / num_pairs:,.0f}") for label, size in found.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024, help="two shards and more")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/scale"), help="folder of models, photographs and results")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()
    prepare(options.work, options.pairs)
    results = measure(options.work)
    start = results["start"]
    rows = []
    for name, (wall, cpu) in results.items():
        scored = name not in ("start", "joining them")
        processes = 2 if "2" in name else 1
        rate = f"{options.pairs / (wall - start[0]):.1f}" if scored else ""
        each = f"{1000 * (cpu - processes * start[1]) / options.pairs:.1f}" if scored else ""
        rows.append([name if name != "start" else "start: imports, models, 8 pairs", f"{wall:.1f}", f"{cpu:.1f}", rate, each])
    rows.append(["reading alone, no model", "", "", "", f"{1000 * read_only(options.work):.1f}"])
    table = markdown_table(["way", "wall s", "CPU s", "pairs per second", "CPU ms per pair, start taken off"], rows)
    about = f"{os.cpu_count()} cores, {options.pairs} pairs, models of width 32 to 64; torch {torch.__version__}."
    body = f"{table}\n\n{markdown_table(['bytes per pair', ''], sizes(options.work, options.pairs))}"
    report("Scoring in parts", about, body, write=options.write)


if __name__ == "__main__":
    main()
