"""Results of three models, small and easy to change, for the tests of pages and tables."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from mmalign.reports.difficulty_summary import DifficultySummary, ProxySummary
from mmalign.reports.gallery import Caption, GalleryItem
from mmalign.reports.results_table import ModelRun

SPLITS = ("random", "popular", "adversarial")


def build_metrics(*, sentence: float, recall: float = 0.9, f1: float = 0.8, yes_ratio: float = 0.5) -> dict[str, float]:
    metrics = {"chair/sentence": sentence, "chair/instance": sentence / 2, "chair/recall": recall, "pope/f1": f1}
    for split in SPLITS:
        metrics |= {f"pope/{split}/accuracy": f1, f"pope/{split}/f1": f1, f"pope/{split}/yes_ratio": yes_ratio}
    return metrics


def build_run(name: str, *, log: list[dict[str, Any]] | None = None, num_chair: int = 300, **metrics: float) -> ModelRun:
    return ModelRun(
        name=name, metrics=build_metrics(**metrics), num_answers={"pope": 1800, "chair": num_chair}, log_history=log if log else []
    )


def build_runs(shares: Mapping[str, float], **metrics: float) -> list[ModelRun]:
    return [build_run(name, sentence=share, **metrics) for name, share in shares.items()]


def preference_log(steps: int = 3) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = []
    for i in range(1, steps + 1):
        quartiles = {f"rewards/margin_q{n}": i / n for n in range(1, 5)}
        log.append({"step": 10 * i, "loss": 0.7 / i, "rewards/margin": i / 2, "rewards/accuracy": 0.5, **quartiles})
    return [*log, {"step": 10 * steps, "train_loss": 0.4, "train_runtime": 3.0}]


def build_png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def build_difficulty() -> DifficultySummary:
    return DifficultySummary([0.1, 0.2, 0.6, 0.9], ["easy", "easy", "easy", "hard"], [ProxySummary("contrastive", 0.75, 0.4)])


def build_item(text: str = "a red dog and a cat", names: tuple[str, ...] = ("SFT", "DPO", "DA-DPO")) -> GalleryItem:
    start = text.find("dog")
    spans = [(start, start + 3)] if start >= 0 else []
    return GalleryItem(build_png(), {name: Caption(text, hallucinated=spans) for name in names}, ["red circle"])
