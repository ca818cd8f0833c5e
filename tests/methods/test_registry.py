"""Adding things: a method is its module, its options and one line; an objective is a function, its test values and a row of docs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmalign
from mmalign.methods.registry import find_method
from mmalign.options.methods import METHODS
from tests.data_files import chat_rows, save_rows, scored_rows

REPOSITORY = Path(__file__).resolve().parents[2]
STEP = ["--max-steps", "2", "--batch-size", "4", "--logging-steps", "1"]

# Answers that the model is already sure of count less (after focal loss).
METHOD = '''"""Supervised fine-tuning that leaves easy tokens alone."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmalign.engine.logps import compute_response_logps
from mmalign.methods.sft import SupervisedMethod
from mmalign.options.methods import FocalOptions
from mmalign.training.method import MethodOutput, Sum


class FocalMethod(SupervisedMethod):
    """Mean of -(1 - p)^focus log p over the step's tokens."""

    name = "focal"
    summary = "a multimodal LLM, fine-tuned on what it does not know yet"
    options: FocalOptions

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        return f" with focus {options['focus']:g}"

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        logps = compute_response_logps(model, batch).token_logps
        loss = -((1 - logps.exp()) ** self.options.focus * logps).sum()
        return MethodOutput(loss, {"loss/focal": Sum(loss.detach(), len(logps))})
'''
OPTIONS = '''@dataclass(frozen=True, kw_only=True)
class FocalOptions(SftOptions):
    """Options of ``mmalign train focal``."""

    focus: float = 2.0
    """how much less a token counts that the model is sure of"""


'''
LINE = '    "focal": MethodEntry(FocalOptions, "focal:FocalMethod", "fine-tune on tokens that are not known yet"),\n'

OBJECTIVE = '''

@PAIR_OBJECTIVES.register("target")
def target(*, beta: float = 1.0, pull: float = 2.0) -> PairObjective:
    """pull * score * (Delta - 1)^2, with a column of the data as the pair's weight."""
    weight = lambda columns: pull * columns["score_chosen"]
    return PairObjective(beta=beta, offset=1.0, outer=squared, weight=weight, columns=("score_chosen",))
'''
CASE = '    Case("target", {}, 0.5, lambda p: 2 * p.columns["score_chosen"] * (p.h(0) - p.h(1) - 1) ** 2, {"score_chosen": 0.25}),\n'
TAGS = '    "target": Tags("pair-wise, distinguishability", "offline", "fixed", "none"),\n'
ROW = "| `target` | pull score_chosen (D - 1)^2 | `beta` (1), `pull` (2) | ours, R |\n"


def copy_package(folder: Path) -> Path:
    shutil.copytree(Path(mmalign.__file__).parent, folder / "mmalign", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "model_cards", folder / "model_cards")
    return folder / "mmalign"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def run(folder: Path, *words: str) -> None:
    """Run Python in a copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def read_losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_whole(name: str) -> None:
    method = find_method(name)
    assert method.name == name
    assert method.summary.startswith("a ")
    assert method.intended_use.endswith(".")


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match=r"there is no method 'dpo'; expected one of contrastive, sft, mimic"):
        find_method("dpo")


@pytest.mark.slow
def test_a_new_method_is_its_module_its_options_and_one_line(tiny_llava_dir: Path, tmp_path: Path) -> None:
    package = copy_package(tmp_path / "code")
    (package / "methods" / "focal.py").write_text(METHOD)
    edit(package / "options" / "methods.py", "class MethodEntry(", f"{OPTIONS}class MethodEntry(")
    edit(package / "options" / "methods.py", "METHODS = {\n", f"METHODS = {{\n{LINE}")
    data, out = save_rows(tmp_path / "chats.parquet", chat_rows(8)), tmp_path / "run"
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(out), "--focus", "1", *STEP]
    run(package.parent, "-m", "mmalign", "train", "focal", *words)
    log = json.loads((out / "train_log.json").read_text())
    assert log[0]["loss/focal"] == pytest.approx(log[0]["loss"], rel=1e-4)
    assert "fine-tuned on what it does not know yet with focus 1." in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_new_objective_is_a_function_its_values_and_a_row_of_docs(tiny_llava_dir: Path, tmp_path: Path) -> None:
    package = copy_package(tmp_path / "code")
    code = package.parent
    shutil.copytree(REPOSITORY / "tests" / "losses", code / "tests" / "losses")
    (code / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs" / "objectives.md", code / "docs")
    with (package / "losses" / "pair_objectives.py").open("a") as file:
        file.write(OBJECTIVE)
    edit(code / "tests" / "losses" / "objective_cases.py", "]\nIDS = [", f"{CASE}]\nIDS = [")
    edit(code / "tests" / "losses" / "survey.py", '    "mpo": Tags(', f'{TAGS}    "mpo": Tags(')
    page = (code / "docs" / "objectives.md").read_text()
    (code / "docs" / "objectives.md").write_text(re.sub(r"(?m)^(\| `ddo` .*\n)", lambda found: found[1] + ROW, page))
    (code / "tests" / "__init__.py").touch()
    shutil.copy(REPOSITORY / "tests" / "written_pages.py", code / "tests")
    run(code, "-m", "tests.losses.survey", "--write")
    run(
        code,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "tests/losses/test_pair_objectives.py",
        "tests/losses/test_registry.py",
        "tests/losses/test_survey.py",
    )
    rows = [{**row, "score_chosen": 0.5} for row in scored_rows(8)]
    data, out = save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "run"
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(out), "--objective", "target:pull=3", *STEP]
    run(code, "-m", "mmalign", "train", "preference", *words)
    # The policy is its own reference before the first step: 3 * 0.5 * (0 - 1)^2.
    assert read_losses(out)[0] == pytest.approx(1.5, abs=1e-4)
    assert "trained on preference pairs with target (beta 1), every pair alike." in (out / "README.md").read_text()
