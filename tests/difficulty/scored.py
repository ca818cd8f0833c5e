"""The scoring command, and what it leaves."""

from pathlib import Path

from mmalign.cli import main
from mmalign.files import hash_file


def score(pairs: Path, clip_dir: Path, mllm: Path, out: Path, *more: str) -> int:
    return main(["score-difficulty", str(pairs), "--clip", str(clip_dir), "--mllm", str(mllm), "--out", str(out), *more])


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
