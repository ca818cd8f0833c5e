"""Studies whose arms train one start in other ways: the same budget for all, costs by hand, and from the start to the page."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from scripts.studies import beams, on_policy, own_answers
from scripts.studies.arms import SEARCH_SEED, SEEDS, Cell, Study, Training, find_rate, list_cells, list_searches, write_page
from scripts.studies.study import StartCell

REPOSITORY = Path(__file__).parents[2]
STUDIES = (own_answers.STUDY, on_policy.STUDY)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_all_search_alike_and_no_two_runs_share_a_file(study: Study, tmp_path: Path) -> None:
    searches = list_searches(study)
    cells: list[Any] = [cell for seed in SEEDS for cell in (StartCell(seed), *list_cells(study, seed))]
    assert set(Counter(cell.arm for cell in searches).values()) == ({2} if len(study.rates) > 1 else set())
    paths = [cell.path(tmp_path) for cell in [*searches, *cells]]
    assert len(set(paths)) == len(paths)
    assert SEARCH_SEED not in SEEDS
    names = [arm.name for arm in study.arms]
    assert all(other in names for arm in study.arms for other in arm.others)


def test_objectives_and_options_are_there() -> None:
    for arm in own_answers.ARMS:
        name = arm.words[1]
        assert name in (*LIST_OBJECTIVES.names(), *PAIR_OBJECTIVES.names())
    assert set(own_answers.SCORERS) == {arm.name for arm in own_answers.ARMS if "offline" in arm.name}
    assert [float(arm.words[1]) for arm in on_policy.ARMS] == [0, 1, 0.5, 0, 1]


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_costs_by_hand(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """Eight prompts with eight answers in each of two steps; offline two questions, and a word is a token of the tiny tokenizer."""
    steps = [{"online/length": 10.0, "online/alike": 0.25}, {"online/length": 12.0, "online/alike": 0.5}, {"train_runtime": 3.0}]
    write(tmp_path / "online" / "train_log.json", steps)
    counted = own_answers.read_online(tmp_path / "online", pairs=False)
    assert list(counted.values()) == [22 * 64, 128, 37.5]
    assert own_answers.read_online(tmp_path / "online", pairs=True)[own_answers.ANSWERS] == 32
    said = [[" dog", " dog cat red"], [" dog", " dog"]]
    lines = [*({"index": index, "responses": texts} for index, texts in enumerate(said)), {"index": 2, "reason": "broken"}]
    chunks = tmp_path / "sampled" / "chunks"
    chunks.mkdir(parents=True)
    (chunks / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "sampled" / "pairs").mkdir()
    Dataset.from_list([{"id": "0"}]).to_parquet(tmp_path / "sampled" / "pairs" / "pairs-00000.parquet")
    assert list(own_answers.read_offline(tmp_path / "sampled", tiny_llava_dir, steps=3).values()) == [10, 48, 50.0]
    write(tmp_path / "mimic" / "train_log.json", [{"on_policy/length": 10.0}, {"on_policy/length": 14.0}, {"train_runtime": 3.0}])
    assert on_policy.count_sampled(tmp_path / "mimic", 0.5) == 0.5 * 16 * 24


def test_the_best_of_the_search_and_the_page(tmp_path: Path) -> None:
    study = own_answers.STUDY
    grpo, offline = study.arms[0], study.arms[4]
    with pytest.raises(ValueError, match="GRPO has no finished run"):
        find_rate(study, grpo, tmp_path)
    for cell in list_searches(study):
        if cell.arm == grpo:
            write(cell.path(tmp_path), {"CHAIR_i": 20.0, "coverage": 80.0 if cell.rate == "3e-4" else 60.0})
    assert find_rate(study, grpo, tmp_path) == "3e-4"
    assert find_rate(on_policy.STUDY, on_policy.ARMS[0], tmp_path) == "1e-4"
    said = {"hallucinated": 30.0, "CHAIR_i": 20.0, "coverage": 80.0, "POPE F1": 90.0, "words": 9.0}
    costs = {own_answers.TOKENS: 100.0, own_answers.ANSWERS: 64.0, own_answers.ALIKE: 25.0, own_answers.SECONDS: 7.0}
    for seed in (1, 2):
        write(StartCell(seed).path(tmp_path), {**said, "hallucinated": 40.0})
        write(Cell(grpo, seed).path(tmp_path), {**said, **costs, "words": 11.0 + seed})
        write(Cell(offline, seed).path(tmp_path), {**said, **costs})
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False), study).read_text()
    assert "| SFT (the starts) | 2 | 80.0 ± 0.0 | 40.0 ± 0.0 |" in page
    assert "| GRPO - offline DPO | +0.0 ± 0.0 (p = 1.000) |" in page
    assert " | +3.5 ± 6.4 (p = 0.090) |" in page
    assert "| offline DPO | 2 | 100.0 ± 0.0 | 64.0 ± 0.0 | 25.0 ± 0.0 | 7.0 ± 0.0 |" in page
    assert "| GRPO | 68.6 | 80.0 |" in page
    assert "40 steps of 8 questions" in page


def test_a_search_starts_from_the_first_seed(tmp_path: Path) -> None:
    arm = own_answers.ARMS[0]
    starts = [Training(arm, seed, "1e-4", 3, False, tmp_path).start for seed in (SEARCH_SEED, 1, 2)]
    assert starts == [tmp_path / "starts" / name for name in ("1", "1", "2")]


def test_beams_are_compared_with_greedy(tmp_path: Path) -> None:
    cells = beams.list_cells(1)
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == 14
    said = {"hallucinated": 40.0, "CHAIR_i": 20.0, "coverage": 80.0, "words": 9.0, beams.SECONDS: 5.0}
    for cell in cells[:4]:
        write(cell.path(tmp_path), {**said, "hallucinated": 40.0 - 10 * (cell.model == "DPO") - 5 * (cell.beams > 1)})
    page = beams.write_page(argparse.Namespace(out=tmp_path, report=tmp_path)).read_text()
    assert "| SFT, greedy | 1 | 80.0 | 40.0 | 20.0 | 80.0 | 9.0 | 5.0 |" in page
    assert "| DPO, 5 beams, P 0 - SFT, greedy | +0.0 | -15.0 | +0.0 | +0.0 |" in page
    assert "| DPO, 5 beams, P 0 - DPO, greedy | +0.0 | -5.0 | +0.0 | +0.0 |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_answers", "on_policy", "beams"])
def test_smoke(name: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", f"scripts.studies.{name}", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / f"{name}.md").read_text()
    if name == "beams":
        assert page.count("| DPO, 5 beams, P 1 |") == 1
        return
    study = {one.name: one for one in STUDIES}[name]
    for arm in study.list_arms(smoke=True):
        assert page.count(f"| {arm.name} |") == 2 + (len(study.rates) > 1), "what it says, its costs, its search"
