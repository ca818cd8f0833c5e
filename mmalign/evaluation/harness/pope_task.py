"""POPE as a task of lmms-eval, with the original's parser and metrics: its own ``pope`` asks for exactly "yes" or "no".

The functions are called by lmms-eval; the task's YAML names them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.images import load_image
from mmalign.evaluation.pope import Pope, PopeQuestion
from mmalign.evaluation.reasoning import strip_reasoning

# Whether higher is better; of the share of yes neither is.
METRICS = {"accuracy": True, "precision": True, "recall": True, "f1": True, "yes_ratio": False}


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The image that the question is about."""
    path = Path(doc["image"])
    return [load_image(path.name, root=path.parent)]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question, with what the task's file puts behind it."""
    return doc["text"] + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the metrics need of an answer, the same for each."""
    return {name: {**doc, "response": strip_reasoning(results[0]).text} for name in METRICS}


def build_aggregate(name: str) -> Callable[[Sequence[Mapping[str, Any]]], float]:
    """Return the function that computes ``pope/<name>`` of all answers."""

    def aggregate(rows: Sequence[Mapping[str, Any]]) -> float:
        questions = [PopeQuestion(row["id"], row["split"], row["image"], row["text"], row["label"] == "yes") for row in rows]
        return Pope([], questions).score({row["id"]: row["response"] for row in rows}, mode="official")[f"pope/{name}"]

    return aggregate


aggregate_accuracy = build_aggregate("accuracy")
aggregate_precision = build_aggregate("precision")
aggregate_recall = build_aggregate("recall")
aggregate_f1 = build_aggregate("f1")
aggregate_yes_ratio = build_aggregate("yes_ratio")
