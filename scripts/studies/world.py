"""What the studies on the embedded world share: the start that every arm trains from, and how a model is measured.

The start is the demo's: a world, a CLIP scorer and a small LLaVA whose training captions name objects that are not there. With 65% of
those captions false, the model names an absent object in 20 to 40% of its own.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from mmalign.cli import main as mmalign
from mmalign.data.rejects import Rejects
from mmalign.demo import commands, run_commands
from mmalign.engine.beams import Beams
from mmalign.evaluation.amber import Amber, AmberQuestion
from mmalign.evaluation.answers import Question
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.mmvp import load_mmvp
from mmalign.evaluation.object_words import find_mentions
from mmalign.evaluation.pope import load_pope
from mmalign.evaluation.rows import read_jsonl
from mmalign.evaluation.runner import generate_answers
from mmalign.files import read_json
from mmalign.models.load import best_device, load_mllm
from scripts.studies.study import slug, write_json

CAPTION_NOISE = 0.65
# Held-out worlds: their seeds are those of no training data.
TEST_SEED, VALIDATION_SEED = 9_000, 9_001
LONGEST = {"pope": 4, "chair": 64, "general": 12, "mmvp": 12}
PARTS = ("chair", "pope", "general")
NUM_PAIRS, BATCH, DPO_STEPS = 2400, 16, 150


@dataclass(frozen=True)
class Condition:
    """How the pairs of a data set are made."""

    name: str
    easy_share: float = 0.8
    label_noise: float = 0.0


def run(words: Sequence[object]) -> None:
    """Run one mmalign command.

    Raises:
        SystemExit: If it fails.
    """
    text = [str(word) for word in words]
    if mmalign(text) != 0:
        raise SystemExit(f"the study stopped at: mmalign {' '.join(text)}")


def make_start(out: Path, *, smoke: bool, caption_noise: float = CAPTION_NOISE, sft_steps: int = 1700) -> Path:
    """Make what is not there yet: world, scorer, model, held-out worlds. Returns the folder of the model."""
    model = make_sft(out, smoke=smoke, caption_noise=caption_noise, sft_steps=sft_steps)
    make_held_out(out, smoke=smoke)
    return model


def make_sft(out: Path, *, smoke: bool, seed: int = 0, caption_noise: float = CAPTION_NOISE, sft_steps: int = 1700) -> Path:
    """Make what is not there yet: world, scorer, model. Returns the folder of the model."""
    steps = commands(out, seed=seed, smoke=smoke, caption_noise=caption_noise, sft_steps=sft_steps)
    run_commands(out, {done: steps[done] for done in ("world/world.json", "clip/train_log.json", "mllm/config.json", "sft/train_log.json")})
    return out / "sft"


def make_held_out(out: Path, *, smoke: bool, contrast: bool = False) -> None:
    """Make the worlds ``test`` and ``validation`` where they are missing, with contrast images if these are asked for."""
    for name, seed, size in (("test", TEST_SEED, 300), ("validation", VALIDATION_SEED, 100)):
        if not (out / name / "world.json").is_file():
            # The scenes are only counted, for POPE's popular and adversarial objects.
            run(["world", "build", "--out", out / name, "--seed", seed, "--num-scenes", 64 if smoke else 2000, "--num-pairs", 1,
                 "--num-eval-scenes", 12 if smoke else size, "--num-contrast", int(contrast)])  # fmt: skip


def make_pairs(folder: Path, condition: Condition, seed: int, *, smoke: bool, num_pairs: int = NUM_PAIRS) -> Path:
    """Make a set of pairs that the start has not seen, where it is missing. Returns the folder of the pairs."""
    if not (folder / "world" / "world.json").is_file():
        run(["world", "build", "--out", folder / "world", "--seed", seed, "--num-scenes", 1, "--num-eval-scenes", 1, "--num-workers", 1,
             "--num-pairs", 48 if smoke else num_pairs, "--easy-share", condition.easy_share,
             "--label-noise", condition.label_noise])  # fmt: skip
    return folder / "world" / "pairs"


def make_dpo(folder: Path, start: Path, seed: int, *, smoke: bool) -> Path:
    """Train a start by DPO on pairs that it has not seen, where that is missing. Beta and rate are those that the objectives study found.

    Returns:
        The folder of the model, inside ``folder``.
    """
    model = folder / "dpo"
    if not (model / "train_log.json").is_file():
        pairs = make_pairs(folder, Condition("easy"), 2000 + seed, smoke=smoke)
        run(["train", "preference", "--model", start, "--data", pairs, "--out", model, "--beta", 1, "--reference", "copy", "--batch-size",
             BATCH, "--max-steps", 2 if smoke else DPO_STEPS, "--learning-rate", "3e-4", "--warmup-ratio", 0.1, "--logging-steps", 10,
             "--seed", seed])  # fmt: skip
    return model


def make_scored_pairs(out: Path, condition: Condition, seed: int, *, smoke: bool) -> Path:
    """Make such pairs in the study's folder and score their difficulty. Returns the file with difficulty and reference."""
    folder, start = out / "pairs" / f"{slug(condition.name)}-{seed}", out / "start"
    pairs = make_pairs(folder, condition, seed, smoke=smoke)
    scored = folder / "difficulty" / "scored.parquet"
    if not scored.is_file():
        run(["score-difficulty", pairs, "--clip", start / "clip", "--mllm", start / "sft", "--out", scored.parent, "--batch-size", 64])
    return scored


def load_copy(scored: Path) -> Dataset:
    """Load a file of pairs that another process may be loading too."""
    return Dataset.from_parquet(str(scored), cache_dir=str(scored.parent / f"cache-{os.getpid()}"))


def object_f1(metrics: Mapping[str, float]) -> float:
    """Harmonic mean of a caption's precision (100 - CHAIR_i) and coverage, in percent; 0 where nothing right is said."""
    precision, coverage = 100 - metrics["CHAIR_i"], metrics["coverage"]
    return 2 * precision * coverage / (precision + coverage) if precision + coverage > 0 else 0.0


def read_metrics(path: Path) -> dict[str, float]:
    """Read a finished run, with its object F1."""
    metrics = dict(read_json(path))
    return metrics | {"object F1": object_f1(metrics)}


def measure_start(model: Path, out: Path, *, parts: Sequence[str] = PARTS) -> None:
    """Measure the start once, and keep it as the cell ``sft``."""
    path = out / "cells" / "sft.json"
    if not path.is_file():
        write_json(path, measure(model, out / "start" / "test", parts=parts))
    print(f"SFT: {read_json(path)['hallucinated']:.1f}% hallucinated captions", flush=True)


def measure(model: Path, world: Path, *, parts: Sequence[str] = PARTS, beams: Beams | None = None) -> dict[str, float]:
    """Answer a held-out world's questions and score them.

    Args:
        model: Folder of the model.
        world: Folder of ``world build``.
        parts: Which questions: captions, yes-or-no questions about objects, questions about colour, number and place, and questions on
            both images of contrast scenes.
        beams: How answers are searched for; None: greedily.

    Returns:
        Shares and F1 in percent by name.
    """
    answers = {}
    loaded, processor = load_mllm(str(model), dtype="auto")
    loaded.to(best_device()).eval()
    for part in parts:
        folder, out = _folder(world, part), model / f"{part}_answers.jsonl"
        rejects = Rejects(model / "rejects.jsonl", max_share=0.0)
        rows = generate_answers(
            loaded, processor, _questions(folder, part), image_root=folder / "images", out=out, rejects=rejects,
            max_new_tokens=LONGEST[part], batch_size=100, beams=beams,
        )  # fmt: skip
        answers[part] = {row.id: row.response for row in rows}
    folder, metrics = world / "eval", dict[str, float]()
    if "chair" in answers:
        metrics |= _score_captions(folder, answers["chair"])
    if "pope" in answers:
        metrics |= _score_objects(folder, answers["pope"])
    if "general" in answers:
        metrics |= _score_general(folder, answers["general"])
    if "mmvp" in answers:
        metrics |= _score_both_images(_folder(world, "mmvp"), answers["mmvp"])
    if {"chair", "pope"} <= set(answers):
        metrics["AMBER"] = (100 - metrics["CHAIR_i"] + metrics["AMBER F1"]) / 2
    return metrics


def _folder(world: Path, part: str) -> Path:
    return world / "eval" / "contrast" if part == "mmvp" else world / "eval"


def _questions(folder: Path, part: str) -> list[Question]:
    if part == "chair":
        return load_chair(folder).questions()
    if part == "pope":
        return load_pope(folder).questions()
    if part == "mmvp":
        return load_mmvp(folder).questions()
    return [Question(row["id"], row["image"], row["question"]) for row in read_jsonl(folder / "questions.jsonl")]


HEADINGS = {
    "object F1": "object F1 ↑",
    "hallucinated": "hallucinated captions % ↓",
    "CHAIR_i": "CHAIR_i % ↓",
    "coverage": "coverage % ↑",
    "POPE F1": "POPE F1 ↑",
    "general": "general % ↑",
    "yes": "yes % (true 50)",
    "words": "words",
}
"""Of what ``measure`` measures, in the studies' tables."""


def headings(*metrics: str) -> dict[str, str]:
    """The headings of some metrics, in this order."""
    return {name: HEADINGS[name] for name in metrics}


def _score_captions(folder: Path, answers: Mapping[str, str]) -> dict[str, float]:
    chair = load_chair(folder)
    scores = chair.score(answers, mode="official")
    rows = read_jsonl(folder / "chair.jsonl")
    said = {row["id"]: {mention.name for mention in find_mentions(answers[row["id"]], chair.words)} for row in rows}
    imagined = sum(len(said[row["id"]] & set(row["hallu"])) for row in rows)
    lengths = [len(answer.split()) for answer in answers.values()]
    return {
        "hallucinated": 100 * scores["chair/sentence"],
        "CHAIR_i": 100 * scores["chair/instance"],
        "coverage": 100 * scores["chair/recall"],
        "Cog": 100 * imagined / max(1, sum(len(row["hallu"]) for row in rows)),
        "words": sum(lengths) / len(lengths),
    }


def _score_objects(folder: Path, answers: Mapping[str, str]) -> dict[str, float]:
    pope = load_pope(folder)
    scores = pope.score(answers, mode="official")
    existence = [AmberQuestion(item.id, "discriminative-hallucination", item.is_yes) for item in pope.records]
    metrics = {"POPE F1": 100 * scores["pope/f1"], "yes": 100 * scores["pope/yes_ratio"]}
    metrics |= {f"POPE F1 {split}": 100 * scores[f"pope/{split}/f1"] for split in ("random", "popular", "adversarial")}
    return metrics | {"AMBER F1": Amber([], {}, existence, [], None).score(answers, mode="strict")["amber/f1"]}


def _score_general(folder: Path, answers: Mapping[str, str]) -> dict[str, float]:
    rows = read_jsonl(folder / "questions.jsonl")
    right = {row["id"]: answers[row["id"]] == row["answer"] for row in rows}
    metrics = {"general": 100 * sum(right.values()) / len(right)}
    for kind in sorted({row["kind"] for row in rows}):
        those = [right[row["id"]] for row in rows if row["kind"] == kind]
        metrics[kind] = 100 * sum(those) / len(those)
    return metrics


def _score_both_images(folder: Path, answers: Mapping[str, str]) -> dict[str, float]:
    scores = load_mmvp(folder).score(answers, mode="strict")
    return {"pairs right": 100 * scores["mmvp/pair"], "answered alike": 100 * scores["mmvp/alike"]}
