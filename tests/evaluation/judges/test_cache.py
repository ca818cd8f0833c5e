"""The cache of judgements: several judges and processes on one file, cut-off and broken lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.evaluation.judges.cache import JudgementCache

ODD = 'line\nbreak, "quotes", \u2028, émoji 🙂'


def test_judgements_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.jsonl"
    cache = JudgementCache(path, judge={"model": "a"})
    assert cache.missing(["p", ODD, "p"]) == ["p", ODD]
    cache.add(ODD, ODD, cut=False)
    again = JudgementCache(path, judge={"model": "a"})
    assert again[ODD] == ODD
    assert again.missing(["p", ODD]) == ["p"]
    assert JudgementCache(path, judge={"model": "b"}).missing([ODD]) == [ODD]
    row = json.loads(path.read_text())
    assert (row["judge"], row["prompt"], row["cut"]) == ({"model": "a"}, ODD, False)


def test_order_of_settings_is_no_matter(tmp_path: Path) -> None:
    JudgementCache(tmp_path / "c", judge={"model": "a", "n": 1}).add("p", "r", cut=False)
    assert JudgementCache(tmp_path / "c", judge={"n": 1, "model": "a"})["p"] == "r"


def test_every_place_of_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    cache = JudgementCache(path, judge={})
    cache.add("p", "first", cut=False)
    cache.add("q", "sécond", cut=False)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        resumed = JudgementCache(path, judge={})
        assert resumed["p"] == "first"
        assert resumed.missing(["p", "q"]) == ["q"]
        resumed.add("q", "anew", cut=False)
        assert JudgementCache(path, judge={})["q"] == "anew"


@pytest.mark.parametrize("line", ["{broken", "[]", '{"key": "k"}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "cache.jsonl"
    JudgementCache(path, judge={}).add("p", "r", cut=False)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="cache.jsonl, line 2 is no judgement"):
        JudgementCache(path, judge={})


def test_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    code = (
        "import sys; from pathlib import Path; from mmalign.evaluation.judges.cache import JudgementCache\n"
        "for i in range(40):\n"
        "    JudgementCache(Path(sys.argv[1]), judge={}).add(f'{sys.argv[2]}{i}', 'x' * 20000, cut=False)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert JudgementCache(path, judge={}).missing([f"{name}{i}" for name in "ab" for i in range(40)]) == []
