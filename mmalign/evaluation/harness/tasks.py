"""Write a folder that ``lmms-eval --include_path`` reads: the questions with their images' places, and the task's YAML."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmalign.data.images import resolve_image_path
from mmalign.errors import UserError
from mmalign.evaluation.answers import SHORT_ANSWER, Question
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.harness.benchmark_task import METRICS, metric_name
from mmalign.files import write_whole
from mmalign.options.harness import Task

# A task named as a built-in one would be passed over without a word. Without "until" an answer would end at a blank line.
_TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function {module}.doc_to_visual
doc_to_text: !function {module}.doc_to_text
doc_to_target: label
process_results: !function {module}.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  do_sample: false
  until: []
lmms_eval_specific_kwargs:
  default:
    post_prompt: {post_prompt}
metric_list:
{metrics}
metadata:
  - version: 1
"""
_METRIC = """\
  - metric: {name}
    aggregation: !function {module}.aggregate_{name}{better}"""
_BETTER = """
    higher_is_better: true"""
_FUNCTIONS = """\
from mmalign.evaluation.harness.benchmark_task import BenchmarkTask

task = BenchmarkTask({benchmark!r}, {data!r})
doc_to_text, doc_to_visual, process_results = task.doc_to_text, task.doc_to_visual, task.process_results
{aggregates}
"""


def task_name(benchmark: Task) -> str:
    """What lmms-eval knows a benchmark's task by; of AMBER it is the discriminative part."""
    return "mmalign_amber_d" if benchmark == "amber" else f"mmalign_{benchmark.replace('-', '_')}"


def write_task(
    out: Path, benchmark: Benchmark, *, name: Task, data: Path, images: Path, max_new_tokens: int = SHORT_ANSWER, prompt_suffix: str = ""
) -> int:
    """Write a benchmark's yes-or-no questions as a task; several tasks may stand in one folder.

    Args:
        out: Folder; made if it is not there.
        benchmark: Its data.
        name: Its name.
        data: Where the data are read again when answers are scored.
        images: Folder of the images. The folder written names them and the data in full, so it holds on this machine only.
        max_new_tokens: Longest answer.
        prompt_suffix: Text behind every question.

    Returns:
        The number of questions.

    Raises:
        ValueError: If an image is missing or lies outside ``images``.
    """
    asked = set(benchmark.yes_no_ids())
    questions = [question for question in benchmark.questions() if question.id in asked]
    labels = {item.id: item.label for item in benchmark.items({question.id: "" for question in questions}, mode="official")}
    rows = [
        {"id": question.id, "image": str(_find_image(question, images)), "text": question.prompt, "label": labels[question.id]}
        for question in questions
    ]
    task = task_name(name)
    out.mkdir(parents=True, exist_ok=True)
    path = out.resolve() / f"{task}.jsonl"
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    keys = METRICS[name]
    aggregates = "\n".join(f"aggregate_{metric_name(key)} = task.aggregate({key!r})" for key in keys)
    functions = _FUNCTIONS.format(benchmark=name, data=str(data.resolve()), aggregates=aggregates)
    write_whole(out / f"{task}_functions.py", functions)
    text = _TASK.format(
        task=task,
        module=f"{task}_functions",
        # JSON's strings are YAML's too, whatever is in them.
        questions=json.dumps(str(path)),
        post_prompt=json.dumps(prompt_suffix),
        max_new_tokens=max_new_tokens,
        metrics=_metric_lines(benchmark, keys, module=f"{task}_functions"),
    )
    write_whole(out / f"{task}.yaml", text)
    return len(rows)


def _metric_lines(benchmark: Benchmark, keys: Sequence[str], *, module: str) -> str:
    better = {key: _BETTER if benchmark.metrics[key.split("/")[-1]].better == "higher" else "" for key in keys}
    return "\n".join(_METRIC.format(name=metric_name(key), module=module, better=better[key]) for key in keys)


def _find_image(question: Question, images: Path) -> Path:
    path = resolve_image_path(str(question.image), root=images)
    if not path.is_file():
        raise UserError(f"image not found: {path}; name the folder of the benchmark's images")
    return path
