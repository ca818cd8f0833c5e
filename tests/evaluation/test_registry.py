"""The registry of benchmarks: all of them are whole, and a new one is its own module and one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmalign
from mmalign.evaluation.registry import find_benchmark
from mmalign.options.evaluate import BENCHMARKS

# Answers are numbers; "official" wants the digits alone, "strict" finds them among words.
MODULE = '''"""How many? Answers are numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmalign.evaluation.answers import Question
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.items import Item
from mmalign.evaluation.metrics import Formula, Metric, ratio, within
from mmalign.evaluation.rows import read_jsonl
from mmalign.options.evaluate import EvaluateOptions, Mode


@dataclass(frozen=True)
class Counting(Benchmark):
    """Images with a number each."""

    name: ClassVar[str] = "count-it"
    title: ClassVar[str] = "Counting"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "right": Metric("Counted rightly", "higher", "share", drawn=True, formula=ratio("right", "answers")),
        "error": Metric("Mean error", "lower", formula=ratio("error", "read"))
    }
    numbers: Mapping[str, int]

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Counting":
        rows = read_jsonl(options.data)
        return cls([options.data], {row["id"]: row["number"] for row in rows})

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        return super().formulas(groups) | {f"{group}/right": within([group], cls.metrics["right"].formula) for group in groups}

    def questions(self) -> list[Question]:
        return [Question(name, f"{name}.png", "How many?") for name in self.numbers]

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        items = []
        for question in self.questions():
            if question.id in answers:
                said, number = answers[question.id], self.numbers[question.id]
                found = re.fullmatch(r"\\\\d+", said) if mode == "official" else re.search(r"\\\\d+", said)
                right = found is not None and int(found.group()) == number
                values = {"answers": 1, "right": int(right)}
                values |= {} if found is None else {"read": 1, "error": abs(int(found.group()) - number)}
                group = "many" if number > 4 else "few"
                items.append(Item(id=question.id, image=question.image, question=question.prompt, response=said, label=str(number),
                                  correct=right, group=group, values=values))
        return items
'''


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_whole(name: str) -> None:
    benchmark = find_benchmark(name)
    assert benchmark.name == name
    assert benchmark.title
    assert {key.split("/")[-1] for key in benchmark.formulas(["a"])} == set(benchmark.metrics)
    assert any(metric.drawn for metric in benchmark.metrics.values())
    # Which average a number is stands in its result.
    assert benchmark.averages
    assert {key.split("/", 1)[1] for key in benchmark.averages} <= set(benchmark.formulas(["a"]))
    assert {key.split("/")[0] for key in benchmark.averages} == {benchmark.prefix()}


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match=r"there is no benchmark 'pop'; expected one of pope, repope, chair"):
        find_benchmark("pop")


@pytest.mark.slow
def test_a_new_benchmark_is_one_module_and_one_line(tmp_path: Path) -> None:
    """In a copy of the package: scored in both modes, with intervals, wrong answers and its own labels in the report."""
    copy = tmp_path / "code" / "mmalign"
    shutil.copytree(Path(mmalign.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "evaluation" / "counting.py").write_text(MODULE.replace("\\\\", "\\"))
    table = copy / "options" / "evaluate.py"
    text = table.read_text()
    table.write_text(text.replace("BENCHMARKS = {\n", 'BENCHMARKS = {\n    "count-it": "counting:Counting",\n'))
    assert table.read_text() != text
    rows = [{"id": str(i), "number": i} for i in range(8)]
    answers = [{"id": str(i), "response": f"There are {i}." if i % 2 else str(max(i, 2))} for i in range(8)]
    for name, lines in (("data.jsonl", rows), ("answers.jsonl", answers)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = "from mmalign.cli import main; import sys; assert main(sys.argv[1].split()) == main(sys.argv[2].split()) == 0"
    commands = ["evaluate count-it --data data.jsonl --answers answers.jsonl --out run", "report eval run --out report --resamples 200"]
    environment = {**os.environ, "PYTHONPATH": str(copy.parent)}
    subprocess.run([sys.executable, "-c", code, *commands], cwd=tmp_path, env=environment, check=True)
    result = json.loads((tmp_path / "run" / "count-it.json").read_text())
    assert result["metrics"] == {
        "count_it/right": 3 / 8, "count_it/error": 0.5, "count_it/few/right": 2 / 5, "count_it/many/right": 1 / 3
    }  # fmt: skip
    assert result["other_mode"]["count_it/right"] == 7 / 8
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| **Counting**, answers | 8 |" in report
    assert "Counted rightly ↑ | 37.5 (" in report
    assert "Few: Counted rightly ↑ | 40.0 (" in report
    assert "There are 5." in (tmp_path / "report" / "report.html").read_text()
