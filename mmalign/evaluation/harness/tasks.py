"""Write a folder that ``lmms-eval --include_path`` reads: the questions with their images' places, and the task's YAML."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmalign.data.images import resolve_image_path
from mmalign.errors import UserError
from mmalign.evaluation.harness.pope_task import METRICS
from mmalign.evaluation.pope import PopeQuestion

# A task named as a built-in one would be passed over without a word. Without "until" an answer would end at a blank line.
_TASK = """\
task: mmalign_pope
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.doc_to_visual
doc_to_text: !function functions.doc_to_text
doc_to_target: label
process_results: !function functions.process_results
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
    aggregation: !function functions.aggregate_{name}{better}"""
_BETTER = """
    higher_is_better: true"""


def write_pope_task(
    out: Path, questions: Sequence[PopeQuestion], *, images: Path, max_new_tokens: int = 64, prompt_suffix: str = ""
) -> Path:
    """Write the task ``mmalign_pope``.

    Args:
        out: Folder; made if it is not there.
        questions: POPE's.
        images: Folder of their images. The folder written names it in full, so it holds on this machine only.
        max_new_tokens: Longest answer.
        prompt_suffix: Text behind every question.

    Returns:
        ``out``.

    Raises:
        ValueError: If an image is missing or lies outside ``images``.
    """
    rows = []
    for question in questions:
        path = resolve_image_path(question.image, root=images)
        if not path.is_file():
            raise UserError(f"image not found: {path}; name the folder of POPE's images")
        label = "yes" if question.is_yes else "no"
        rows.append({"id": question.id, "split": question.split, "image": str(path), "text": question.text, "label": label})
    out.mkdir(parents=True, exist_ok=True)
    data = out.resolve() / "mmalign_pope.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names = ", ".join(["doc_to_text", "doc_to_visual", "process_results", *(f"aggregate_{name}" for name in METRICS)])
    (out / "functions.py").write_text(f"from mmalign.evaluation.harness.pope_task import {names}  # noqa: F401\n", encoding="utf-8")
    text = _TASK.format(
        # JSON's strings are YAML's too, whatever is in them.
        questions=json.dumps(str(data)),
        post_prompt=json.dumps(prompt_suffix),
        max_new_tokens=max_new_tokens,
        metrics="\n".join(_METRIC.format(name=name, better=_BETTER if higher else "") for name, higher in METRICS.items()),
    )
    (out / "mmalign_pope.yaml").write_text(text, encoding="utf-8")
    return out
