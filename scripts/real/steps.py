"""Steps of the study on photographs: commands, the files that they leave, how much of everything, and what is measured of a model.

A step whose file is there is not done again, so that a stopped study resumes where it stopped.
"""

import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data_tools.sample_pairs import main as sample_pairs
from mmalign.cli import main as mmalign
from mmalign.files import read_json_object
from scripts.real.data import main as write_data
from scripts.real.pairs import main as write_pairs
from scripts.real.parts import main as make_parts
from scripts.real.similar import main as write_similar

PROGRAMS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "mmalign": mmalign,
    "data_tools/sample_pairs.py": sample_pairs,
    "scripts.real.parts": make_parts,
    "scripts.real.data": write_data,
    "scripts.real.pairs": write_pairs,
    "scripts.real.similar": write_similar,
}
BETA = 0.1
RATE = "3e-5"
"""Of preference training on full weights: the most balanced of three that were tried with DPO (docs/studies/real.md)."""
FREEZE = "--freeze vision_tower"
"""Of all trainings of full weights."""
PACKED = "--row-tokens 256"
"""Of all trainings of a multimodal LLM: captions are a third as long as rows of questions, and 40% of a plain batch is padding."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; ``taught`` is the part of the chats that students of LLaVA-MoD train on."""

    data: str
    sft_steps: int
    scorer_steps: int
    scorer_batch: int
    samples: int
    preference_steps: int
    image_term_steps: int
    batch: int
    caption_tokens: int
    classifier_steps: int
    taught: str
    hours: str


_MEDIUM = Sizes(
    data="--num-pair-photos 1200 --num-existence 300",
    sft_steps=600,
    scorer_steps=300,
    scorer_batch=64,
    samples=4,
    preference_steps=120,
    image_term_steps=40,
    batch=16,
    caption_tokens=32,
    classifier_steps=200,
    taught="1/2",
    hours="about 2 and a half hours on two CPU cores, by estimate, and 6 GB",
)
SIZES = {
    "full": Sizes(
        data="",
        sft_steps=1000,
        scorer_steps=600,
        scorer_batch=96,
        samples=4,
        preference_steps=400,
        image_term_steps=200,
        batch=16,
        caption_tokens=48,
        classifier_steps=400,
        taught="1/1",
        hours="about 6 hours on two CPU cores, by estimate, and 6 GB",
    ),
    "medium": _MEDIUM,
    "short": replace(
        _MEDIUM, sft_steps=300, preference_steps=60, taught="1/4", hours="about an hour and a half on two CPU cores, by estimate, and 6 GB"
    ),
    "small": Sizes(
        data="--num-train 160 --num-val 20 --num-pair-photos 24 --num-chair 20 --num-existence 24",
        sft_steps=4,
        scorer_steps=4,
        scorer_batch=16,
        samples=2,
        preference_steps=2,
        image_term_steps=2,
        batch=8,
        caption_tokens=24,
        classifier_steps=2,
        taught="1/1",
        hours="less than 20 minutes on two CPU cores, and 5 GB",
    ),
}


class Column(NamedTuple):
    """A measured value: its heading, and where evaluation leaves it."""

    heading: str
    folder: str
    benchmark: str
    metric: str


COLUMNS = {
    "hallucinated": Column("hallucinated captions % ↓", "eval", "chair", "chair/sentence"),
    "CHAIR_i": Column("CHAIR_i % ↓", "eval", "chair", "chair/instance"),
    "coverage": Column("coverage % ↑", "eval", "chair", "chair/recall"),
    "hallucinated of 18": Column("of 18 classes: hallucinated % ↓", "eval_instances", "chair", "chair/sentence"),
    "coverage of 18": Column("coverage % ↑ ", "eval_instances", "chair", "chair/recall"),
    "POPE F1": Column("POPE F1 ↑", "eval", "pope", "pope/f1"),
    "RePOPE F1": Column("RePOPE F1 ↑", "eval_repope", "pope", "pope/f1"),
    "existence F1": Column("existence F1 ↑", "eval_instances", "pope", "pope/f1"),
    "yes": Column("share of yes", "eval_instances", "pope", "pope/yes_ratio"),
}


def measured(model: Path) -> dict[str, float]:
    """What evaluation left in a model's folder, in percent by the name of the column."""
    files = {key: model / column.folder / f"{column.benchmark}.json" for key, column in COLUMNS.items()}
    return {key: 100 * read_json_object(path)["metrics"][COLUMNS[key].metric] for key, path in files.items() if path.is_file()}


class Step(NamedTuple):
    """A command, and the file that it leaves when it is done."""

    done: Path
    words: list[str]

    @classmethod
    def of(cls, done: Path, line: str) -> "Step":
        """A step from a command as it is typed."""
        return cls(done, shlex.split(line))


@dataclass(frozen=True, kw_only=True)
class Job:
    """The main run: its folder, and what all commands share that train and measure its models."""

    out: Path
    sizes: Sizes
    dtype: str

    def path(self, *names: str) -> str:
        """A place in the folder, as it is typed."""
        return shlex.quote(str(self.out.joinpath(*names)))

    def training(self, seed: int) -> str:
        """Options that all trainings of a multimodal LLM share."""
        words = f"--image-root {self.path('data', 'images')} --precision {self.dtype} --batch-size {self.sizes.batch} {PACKED}"
        logged = f"--logging-steps {max(self.sizes.sft_steps // 100, 1)} --save-steps 100 --save-total-limit 1"
        return f"{words} --warmup-ratio 0.05 {logged} --seed {seed}"

    def sft(self, model: Path, out: Path, *, seed: int, steps: int, learning_rate: str, data: Path | None = None) -> Step:
        """Train on the chats, all of them if no others are named."""
        chats = quoted(data or self.out / "data" / "sft")
        line = f"mmalign train sft --data {chats} {self.training(seed)} --model {quoted(model)} --out {quoted(out)}"
        return Step.of(out / "train_log.json", f"{line} {FREEZE} --max-steps {steps} --learning-rate {learning_rate}")

    def pairs(self, out: Path, *, seed: int) -> list[Step]:
        """Make pairs of the model's own answers and of errors that a seed draws, and score their difficulty."""
        sampled, scorer, model, images = (self.path(*names) for names in (("sampled",), ("scorer",), ("sft",), ("data", "images")))
        pairs = f"scripts.real.pairs --data {self.path('data')} --sampled {sampled} --out {quoted(out / 'pairs')} --seed {seed}"
        score = f"mmalign score-difficulty {quoted(out / 'pairs')} --image-root {images} --clip {scorer} --mllm {model}"
        score += f" --dtype {self.dtype} --out {quoted(out / 'difficulty')}"
        return [Step.of(out / "pairs" / "pairs.jsonl", pairs), Step.of(out / "difficulty" / "scored.parquet", score)]

    def preference(self, data: Path, out: Path, *, seed: int, words: str, model: Path | None = None, steps: int | None = None) -> Step:
        """Train on pairs, from the start and for the size's steps if no others are named; the words of an arm come last."""
        line = f"mmalign train preference --model {quoted(model or self.out / 'sft')} --data {quoted(data)} {self.training(seed)}"
        line += f" --max-steps {steps or self.sizes.preference_steps} {words} --out {quoted(out)}"
        return Step.of(out / "train_log.json", line)

    def evaluations(self, model: Path, out: Path, *, images: str = "images", instances: bool = True) -> list[Step]:
        """What is asked of a model: captions against CHAIR's sets, POPE, RePOPE's labels; captions and questions after true instances."""
        answer = f"--model {quoted(model)} --images {self.path('data', images)} --dtype {self.dtype}"
        described = f"{answer} --max-new-tokens {self.sizes.caption_tokens}"
        lines = {}
        asked = (("eval", "chair", "pope"), ("eval_instances", "chair_instances", "existence"))
        for folder, captions, questions in asked if instances else asked[:1]:
            place = quoted(out / folder)
            lines[f"{folder}/chair.json"] = f"mmalign evaluate chair --data {self.path('data', captions)} {described} --out {place}"
            lines[f"{folder}/pope.json"] = (
                f"mmalign evaluate pope --data {self.path('data', questions)} {answer} --max-new-tokens 4 --out {place}"
            )
        lines["eval_repope/pope.json"] = (
            f"mmalign evaluate pope --data {self.path('data', 'repope')} --answers {quoted(out / 'eval' / 'pope_answers.jsonl')}"
            f" --allow-partial --out {quoted(out / 'eval_repope')}"
        )
        return [Step.of(out / done, line) for done, line in lines.items()]


def quoted(path: Path) -> str:
    """A path as it is typed."""
    return shlex.quote(str(path))


def show(words: Sequence[str]) -> str:
    """A command as it is typed."""
    start = "" if words[0] == "mmalign" else "python " if words[0].endswith(".py") else "python -m "
    return start + shlex.join(words)


def run_steps(steps: Sequence[Step], *, run: Callable[[Step], int] | None = None) -> None:
    """Run what is not done yet.

    Args:
        steps: In their order.
        run: Runs one and returns its exit code; in this process if not given.

    Raises:
        SystemExit: If a command fails.
    """
    for number, step in enumerate(steps, start=1):
        if step.done.exists():
            continue
        print(f"\n[{number}/{len(steps)}] $ {show(step.words)}", flush=True)
        start = time.perf_counter()
        if (run_step if run is None else run)(step) != 0:
            raise SystemExit(f"stopped at: {show(step.words)}")
        # Of what leaves many files, none of which is the last.
        step.done.touch()
        # Needed to resume a training, and three times as large as what it leaves.
        shutil.rmtree(step.done.parent / "checkpoints", ignore_errors=True)
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)


def run_step(step: Step) -> int:
    """Run a step in this process."""
    return PROGRAMS[step.words[0]](step.words[1:])


def delete_weights(folders: Iterable[Path]) -> None:
    """Delete models' weights; their answers, logs and cards stay."""
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            path.unlink()
