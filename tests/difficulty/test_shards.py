"""Scoring in parts: whatever their number, and whatever is killed, the merged files hold the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from mmalign.cli import main
from mmalign.data.caches import LOGPS, REFERENCE_IMAGES, REFERENCE_TEXT, TOKEN_LOGPS
from mmalign.data.shards import SHARD_SIZE, write_lines
from mmalign.difficulty.fuse import write_cached
from tests.data_files import save_rows
from tests.difficulty.scored import hashes, score
from tests.tiny_models import pair_rows

NUM_ROWS = 1100
"""Three shards, the last one short."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = pair_rows(NUM_ROWS)
    for broken in (3, 700, 1099):
        rows[broken]["rejected"] = rows[broken]["chosen"]
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", rows)


@pytest.fixture(scope="module")
def whole(pairs: Path, clip_dir: Path, tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert score(pairs, clip_dir, tiny_llava_dir, folder) == 0
    return folder


def test_parts_are_joined_to_the_same_bytes(
    pairs: Path, whole: Path, clip_dir: Path, tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("3/3", "1/3"):
        assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out", "--shard", part) == 0
    assert not (tmp_path / "out" / "scored.parquet").exists()
    assert main(["fuse-difficulty", str(pairs), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 shards are missing" in error
    assert "000000512.jsonl; run the parts" in error
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out", "--shard", "2/3") == 0
    assert main(["fuse-difficulty", str(pairs), "--out", str(tmp_path / "out")]) == 0
    assert hashes(tmp_path / "out") == hashes(whole)


def test_killed_part_goes_on_and_ends_with_the_same_bytes(
    pairs: Path, whole: Path, clip_dir: Path, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    """Part 1/2 has shards 0 and 2: killed in the second while part 2/2 is whole."""
    out = tmp_path / "out"
    words = ["score-difficulty", str(pairs), "--clip", str(clip_dir), "--mllm", str(tiny_llava_dir), "--out", str(out), "--shard", "1/2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "mmalign", *words], env=environment, stderr=subprocess.DEVNULL)
    while not list(out.glob("shards/*.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in (out / "shards").glob("*.jsonl")] == ["000000000.jsonl"]
    assert score(pairs, clip_dir, tiny_llava_dir, out, "--shard", "2/2") == 0
    # The same command without --shard scores what is missing and joins all.
    assert score(pairs, clip_dir, tiny_llava_dir, out) == 0
    assert hashes(out) == hashes(whole)


def kept(folder: Path) -> dict[str, str]:
    """Hashes of what is read again; a killed process leaves the file that it was writing under a name of its own."""
    return {name: digest for name, digest in hashes(folder).items() if not name.endswith(".partial")}


DIE_BEFORE_SECOND_RENAME = """
import os, pathlib, signal, sys
from mmalign.cli import main
rename, done = pathlib.Path.rename, []
def rename_once(self, target):
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(target)
    return rename(self, target)
pathlib.Path.rename = rename_once
sys.exit(main(sys.argv[1:]))
"""
"""Each run puts one file in its place, and is killed when the next one is written and not yet there."""


@pytest.mark.slow
def test_killed_between_writing_and_renaming(pairs: Path, whole: Path, clip_dir: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["score-difficulty", str(pairs), "--clip", str(clip_dir), "--mllm", str(tiny_llava_dir), "--out", str(out)]
    command = [sys.executable, "-c", DIE_BEFORE_SECOND_RENAME, *words]
    ends = []
    shards = [f"shards/{start:09d}.jsonl" for start in (0, 512, 1024)]
    for expected in ("scoring.json", *shards, "scored.parquet"):
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300, check=False)
        ends.append(done.returncode)
        assert (out / expected).is_file()
    assert ends == [-signal.SIGKILL] * 5
    assert score(pairs, clip_dir, tiny_llava_dir, out) == 0
    # The files that were not in place are left, and none of them was taken for a shard.
    assert len(list(out.rglob("*.partial"))) == 5
    assert kept(out) == hashes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_killed_at_random_moments(seed: int, pairs: Path, whole: Path, clip_dir: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Two parts write into one folder at the same time; each is killed three times, whatever it is doing, and then let finish."""
    rng, out = random.Random(seed), tmp_path / "out"
    words = ["score-difficulty", str(pairs), "--clip", str(clip_dir), "--mllm", str(tiny_llava_dir)]

    def start(part: str, folder: Path = out) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mmalign", *words, "--out", str(folder), "--shard", part]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    # How long a part takes from its start to its end, on this machine and now.
    began = time.monotonic()
    undisturbed = [start(part, tmp_path / "timed") for part in ("1/2", "2/2")]
    assert [process.wait(timeout=300) for process in undisturbed] == [0, 0]
    longest = time.monotonic() - began
    killed = 0
    for _ in range(3):
        running = {part: start(part) for part in ("1/2", "2/2")}
        moments = sorted((rng.uniform(0.3, 1.0) * longest, part) for part in running)
        began = time.monotonic()
        for moment, part in moments:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            running[part].send_signal(signal.SIGKILL)
        killed += sum(process.wait(timeout=60) == -signal.SIGKILL for process in running.values())
    assert killed
    assert [start(part).wait(timeout=300) for part in ("1/2", "2/2")] == [0, 0]
    assert main(["fuse-difficulty", str(pairs), "--out", str(out)]) == 0
    assert kept(out) == hashes(whole)


def test_what_is_whole_is_joined_without_loading_models(
    pairs: Path, whole: Path, clip_dir: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmalign.models.load.load_mllm", refuse)
    before = hashes(whole)
    (whole / "scored.parquet").unlink()
    assert score(pairs, clip_dir, tiny_llava_dir, whole) == 0
    assert hashes(whole) == before


@pytest.mark.slow
def test_launched_processes_end_with_the_same_bytes(pairs: Path, whole: Path, clip_dir: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    words = ["score-difficulty", str(pairs), "--clip", str(clip_dir), "--mllm", str(tiny_llava_dir), "--out", str(tmp_path / "out")]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "mmalign", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("pairs scored") == 1
    assert hashes(tmp_path / "out") == hashes(whole)


def test_joining_holds_the_numbers_of_one_shard(tmp_path: Path) -> None:
    """As Python's numbers, those of half a million pairs would take tens of gigabytes."""

    def peak(num_shards: int) -> int:
        folder, number = tmp_path / str(num_shards), num_shards * SHARD_SIZE
        folder.mkdir()
        paths = [folder / f"{shard}.jsonl" for shard in range(num_shards)]
        for shard, path in enumerate(paths):
            write_lines(path, [line(shard * SHARD_SIZE + i) for i in range(SHARD_SIZE)])
        (folder / "scoring.json").write_text('{"reference": "a model"}')
        dataset = Dataset.from_dict({"id": list(map(str, range(number)))})
        tracemalloc.start()
        assert write_cached(dataset, paths, out=folder) == number
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    def line(index: int) -> dict[str, Any]:
        tokens = {name: [-float(index + i) / 7 for i in range(100)] for name in TOKEN_LOGPS}
        named = {"index": index, "id": str(index), "source": "", REFERENCE_TEXT: f"{index:016d}", REFERENCE_IMAGES: ""}
        return {**named, **tokens, **{name: sum(tokens[TOKEN_LOGPS[0]]) for name in LOGPS}}

    assert peak(5) < 1.8 * peak(1)
