"""The axes of the objectives study: the runs, the claims by hand, and from the start to the page."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.files import RUN_FILE
from scripts.studies.objectives_axes import NAMES, STARTS, add_options, list_axes, list_axis_searches
from scripts.studies.objectives_axes_page import judge_claims, write_axes_page
from scripts.studies.page import Metrics, Runs

REPOSITORY = Path(__file__).parents[2]


def read(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser)
    return parser.parse_args(words)


def test_the_runs_of_both_axes(tmp_path: Path) -> None:
    options = read("--starts", "sft,none,instruct", "--num-pairs", "300,1000,3000")
    cells = list_axes(options.starts, options.num_pairs, quick=False, smoke=False)
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == 5 * 3 * 3 * 3, "objectives, starts, sizes, seeds"
    assert {cell.objective.name for cell in cells} == {one.objective.name for one in list_axis_searches(smoke=False)} == set(NAMES)
    assert cells[0].path(tmp_path) == tmp_path / "axes" / "sft" / "300" / "1" / "dpo.json"


def test_an_axis_alone_and_none() -> None:
    by_size = list_axes((), (300, 1000), quick=True, smoke=False)
    assert {(cell.start, cell.num_pairs, cell.seed) for cell in by_size} == {("sft", 300, 1), ("sft", 1000, 1)}
    assert {cell.num_pairs for cell in list_axes(STARTS, (), quick=True, smoke=False)} == {3000}
    assert list_axes((), (), quick=False, smoke=False) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--starts", "sft,base"], "there is no start 'base'; expected sft, none, instruct"),
        (["--num-pairs", "300,many"], "'300,many' are no numbers of pairs; expected 16 to 3000 with commas"),
        (["--num-pairs", "9000"], "'9000' are no numbers of pairs"),
    ],
)
def test_what_is_no_axis(words: list[str], message: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=message):
        read(*words)


def arm(*values: float, pope: float = 80.0) -> dict[int, Metrics]:
    return {seed: {"object F1": value, "POPE F1": pope + value / 100} for seed, value in enumerate(values)}


def test_claims_by_hand() -> None:
    few: Runs = {"dpo": arm(90.0, 91.0, 92.0), "kto_pair": arm(93.0, 94.0, 95.0)}
    many: Runs = {"dpo": arm(90.5, 90.5, 92.0), "kto_pair": arm(93.1, 93.9, 95.1)}
    instruct: Runs = {"dpo": arm(94.0, 95.0, 96.0, pope=70.0), "kto_pair": arm(80.0, 80.0, 80.0, pope=70.0)}
    found = {("sft", 1000): few, ("sft", 3000): many, ("instruct", 3000): instruct}
    verdicts = [claim.verdict for claim in judge_claims(found)]
    assert verdicts == ["seen: 0 of 2 gain", "seen: first in 2 of 3", "seen: 2 of 2 differ"]
    gained: Runs = {"dpo": arm(92.0, 93.1, 94.0), "kto_pair": many["kto_pair"]}
    assert judge_claims({**found, ("sft", 3000): gained})[0].verdict == "not seen: 1 of 2 gain"
    assert judge_claims({("sft", 1000): {"dpo": few["dpo"]}})[1].verdict == "not measured"
    one_seed = {key: {name: {0: seeds[0]} for name, seeds in runs.items()} for key, runs in found.items()}
    assert [claim.verdict for claim in judge_claims(one_seed)] == ["not measured", "seen: first in 2 of 3", "not measured"]


def test_the_page_without_a_run(tmp_path: Path) -> None:
    page = write_axes_page(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False)).read_text()
    assert page.count("| not measured |") == 3


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.objectives", "--smoke", "--out", str(tmp_path)]
    words += ["--starts", "none,instruct", "--num-pairs", "300,3000"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "objectives_axes.md").read_text()
    for heading in ("From `none`, 300 pairs", "From `instruct`, 3,000 pairs"):
        assert f"## {heading}\n" in page
    cell = json.loads((tmp_path / "axes" / "instruct" / "300" / "1" / "simpo.json").read_text())
    assert cell["KL"] >= 0
    assert {"attribute", "count", "relation"} <= cell.keys()
    record = json.loads((tmp_path / "starts" / "instruct" / RUN_FILE).read_text())
    assert record["options"]["model"] == str(tmp_path / "start" / "sft")
    assert list(record["data"]) == ["chats.parquet"]
    assert record["num_rows"] < 64, "a chat is not every row of the start's"
