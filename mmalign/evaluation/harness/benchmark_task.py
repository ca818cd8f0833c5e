"""A yes-or-no benchmark as a task of lmms-eval: its own questions, readings and metrics.

lmms-eval's ``pope`` asks for exactly "yes" or "no"; RePOPE, DASH-B and AMBER's questions it has not. The methods are called by lmms-eval;
the task's YAML names them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.images import load_image
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.evaluation.registry import find_benchmark
from mmalign.options.evaluate import EvaluateOptions
from mmalign.options.harness import Task

# Of each benchmark, the metrics that lmms-eval shows; behind the benchmark's name in the keys of a result.
METRICS: Mapping[Task, Sequence[str]] = {
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio"),
    "repope": ("accuracy", "precision", "recall", "f1", "yes_ratio", "pope/accuracy", "pope/f1"),
    "dash-b": ("accuracy", "tnr", "tpr", "harmonic_mean", "yes_ratio"),
    "amber": ("accuracy", "precision", "recall", "f1", "yes_ratio", "existence/f1", "attribute/f1", "relation/f1"),
}


class BenchmarkTask:
    """What lmms-eval asks a task for."""

    def __init__(self, benchmark: Task, data: str) -> None:
        """Name the benchmark and its files, which are read when there are answers to score."""
        self._benchmark, self._data = benchmark, data

    def doc_to_visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """The image that the question is about."""
        path = Path(doc["image"])
        return [load_image(path.name, root=path.parent)]

    def doc_to_text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
        """The question, with what the task's file puts behind it."""
        return doc["text"] + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the metrics need of an answer, the same for each."""
        answer = {"id": doc["id"], "response": strip_reasoning(results[0]).text}
        return {metric_name(key): answer for key in METRICS[self._benchmark]}

    def aggregate(self, key: str) -> Callable[[Sequence[Mapping[str, Any]]], float]:
        """Return the function that computes a metric of all answers, as ``mmalign evaluate`` does in its official mode."""

        def aggregate(rows: Sequence[Mapping[str, Any]]) -> float:
            benchmark = _load(self._benchmark, self._data)
            scores = benchmark.score({row["id"]: row["response"] for row in rows}, mode="official")
            # RePOPE has no number of answers that are neither yes nor no; a task must have one.
            return scores.get(f"{benchmark.prefix()}/{key}", float("nan"))

        return aggregate


def task_options(benchmark: Task, data: Path) -> EvaluateOptions:
    """How a task's data are read: no description is scored, for which AMBER would need word vectors."""
    return EvaluateOptions(benchmark=benchmark, data=data, similarity="exact")


def metric_name(key: str) -> str:
    """What lmms-eval calls a metric: "pope/f1" is pope_f1, since it makes columns of names."""
    return key.replace("/", "_")


@cache
def _load(benchmark: Task, data: str) -> Benchmark:
    """Read the data once for all metrics."""
    return find_benchmark(benchmark).load(task_options(benchmark, Path(data)))
