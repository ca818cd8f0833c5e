"""Does mimicking beat SFT, a sparse student a dense one, and a student its teacher on hallucination? LLaVA-MoD on the embedded world.

    python -m scripts.studies.llava_mod --out runs/studies/llava_mod --processes 2           # five seeds, all arms
    python -m scripts.studies.llava_mod --out runs/studies/llava_mod --processes 2 --quick   # two seeds, about 15 minutes on two cores

The teacher is trained on captions of which some name a usual companion that is absent, so that it sees well and hallucinates a little.
Its students share its vision tower, frozen as in the paper, and begin with random language models. A seed draws the students' first
weights, the order of the data and the preference pairs; all arms of a seed see the same rows in the same order for as many steps.
Each finished run is a file under ``cells/``: a stopped study goes on where it stopped, and ``--report`` writes docs/studies/llava_mod.md
from what is there.
"""

import argparse
import contextlib
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmalign.models.load import load_mllm
from mmalign.models.parameters import count_parameters
from scripts.studies.llava_mod_report import write_report
from scripts.studies.processes import run_over_processes
from scripts.studies.world_start import make_pairs, make_start, measure, quiet, read_json, run, slug, write_json

CAPTION_NOISE = 0.58
SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5), (1, 2)
NUM_PAIRS, BATCH, TOP_K = 2400, 16, 64
LAYERS, WIDTH, FFN = 4, 64, 128
# A token passes through 2 of 4 experts in two of the four layers: as many feed-forward weights as in a dense student this wide.
WIDE_FFN = FFN + FFN // 2
BETA = 0.1


@dataclass(frozen=True)
class Steps:
    """Of each training: the teacher's, a student's two halves, and preference training."""

    teacher: int
    first: int
    second: int
    preference: int


FULL, QUICK, SMOKE = Steps(1700, 600, 600, 150), Steps(1000, 200, 200, 50), Steps(3, 3, 3, 3)


@dataclass(frozen=True)
class Arm:
    """One model that is made from another.

    Attributes:
        name: In tables, and of its folder.
        parent: Name of the arm whose weights it begins with; empty for new weights.
        words: Of the command that makes it, but for what all of its kind share.
        measured: Whether it is a row of the tables, and not only the start of others.
        quick: Whether the quick form has it.
    """

    name: str
    parent: str
    words: tuple[str, ...]
    measured: bool = True
    quick: bool = True


def _train(name: str, parent: str, *words: str, measured: bool = True, quick: bool = True) -> Arm:
    return Arm(name, parent, ("train", *words), measured, quick)


_MIMIC_FIRST, _MIMIC_SECOND = ("mimic", "--kl-weight", "1"), ("mimic", "--ce-weight", "1")
_SPARSE = ("upcycle", "--num-experts", "4", "--top-k", "2", "--layers", "alternate")
_TO_TEACHER = ("--reference", "model")
PREFERRED = "sparse mimic"
# In the order in which they are made. "1" is the first half of a training, dense in all arms.
ARMS = (
    Arm("dense 0", "", ("compose", "dense"), measured=False),
    Arm("wide 0", "", ("compose", "wide"), measured=False, quick=False),
    _train("dense SFT 1", "dense 0", "sft", measured=False),
    _train("dense mimic 1", "dense 0", *_MIMIC_FIRST, measured=False),
    _train("wide SFT 1", "wide 0", "sft", measured=False, quick=False),
    _train("wide mimic 1", "wide 0", *_MIMIC_FIRST, measured=False, quick=False),
    Arm("sparse SFT 0", "dense SFT 1", _SPARSE, measured=False),
    Arm("sparse mimic 0", "dense mimic 1", _SPARSE, measured=False),
    _train("dense SFT", "dense SFT 1", "sft"),
    _train("wide SFT", "wide SFT 1", "sft", quick=False),
    _train("sparse SFT", "sparse SFT 0", "sft"),
    _train("dense mimic", "dense mimic 1", *_MIMIC_SECOND),
    _train("wide mimic", "wide mimic 1", *_MIMIC_SECOND, quick=False),
    _train(PREFERRED, "sparse mimic 0", *_MIMIC_SECOND),
    _train("sparse mimic, attention frozen", "sparse mimic 0", *_MIMIC_SECOND, "--stage", "dense-to-sparse", quick=False),
    _train("DPO, teacher as reference", PREFERRED, "preference", "--objective", "dpo", *_TO_TEACHER),
    _train("DPO, self as reference", PREFERRED, "preference", "--objective", "dpo"),
    _train("KTO, teacher as reference", PREFERRED, "preference", "--objective", "kto_pair", *_TO_TEACHER),
    _train("KTO, self as reference", PREFERRED, "preference", "--objective", "kto_pair"),
    _train("KTO, teacher, centred", PREFERRED, "preference", "--objective", "kto_pair", *_TO_TEACHER, "--center-rewards", quick=False),
    # A caption has about twenty tokens, so that this beta of a mean weighs as much as 0.1 of a sum.
    _train("KTO, teacher, by token", PREFERRED, "preference", "--objective", "kto_pair:score=mean,beta=2", *_TO_TEACHER, quick=False),
    _train("DPO, teacher, by token", PREFERRED, "preference", "--objective", "dpo:score=mean,beta=2", *_TO_TEACHER, quick=False),
    _train("DPO of the dense mimic, teacher as reference", "dense mimic", "preference", "--objective", "dpo", *_TO_TEACHER, quick=False),
    _train("DPO of the teacher", "teacher", "preference", "--objective", "dpo", quick=False),
)


@dataclass(frozen=True)
class Study:
    """Where it lies and how long its trainings are."""

    out: Path
    steps: Steps
    quick: bool
    smoke: bool

    @property
    def test(self) -> Path:
        """Folder of the held-out world: a smaller one in the quick form."""
        return self.out / "start" / ("validation" if self.quick else "test")

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        return self.out / "start" / "sft"

    def arms(self) -> Iterator[Arm]:
        """List the arms of this form."""
        return (arm for arm in ARMS if arm.quick or not self.quick)

    def model(self, name: str, seed: int) -> Path:
        """Folder of a model of a seed."""
        return self.teacher if name == "teacher" else self.out / "models" / str(seed) / slug(name)

    def cell(self, arm: Arm, seed: int) -> Path:
        """File of a finished run."""
        return self.out / "cells" / str(seed) / f"{slug(arm.name)}.json"


def prepare(study: Study) -> None:
    """Make the teacher, what it would say to every row of the students, the students' configs, and measure the teacher."""
    make_start(study.out / "start", smoke=study.smoke, caption_noise=CAPTION_NOISE, sft_steps=study.steps.teacher)
    # What is done of this is left alone.
    run(["cache-teacher", study.out / "start" / "world" / "sft", "--model", study.teacher, "--top-k", TOP_K, "--out", study.out / "taught"])
    for name, ffn in (("dense", FFN), ("wide", WIDE_FFN)):
        sizes = {"vocab_size": 512, "hidden_size": WIDTH, "intermediate_size": ffn, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 4, "head_dim": WIDTH // 4, "max_position_embeddings": 512}
        values = {"model_type": "qwen3", **sizes, "initializer_range": 0.06, "tie_word_embeddings": True}
        (study.out / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    path = study.out / "cells" / "teacher.json"
    if not path.is_file():
        write_json(path, measure(study.teacher, study.test) | _sizes(study.teacher))
    print(f"teacher: {read_json(path)['hallucinated']:.1f}% hallucinated captions", flush=True)


def _sizes(model: Path) -> dict[str, float]:
    counts = count_parameters(load_mllm(str(model))[0])
    return {"weights": counts.total, "activated": counts.activated}


def make_model(study: Study, arm: Arm, seed: int, pairs: Path) -> dict[str, float]:
    """Run the command that makes an arm's model. Returns what it said of its start: rewards against another model are not 0."""
    folder, words = study.model(arm.name, seed), list(arm.words)
    start = study.out / "start"
    if words[0] == "compose":
        run(["compose", "--vision", study.teacher, "--llm", study.out / f"{words[1]}.json", "--tokenizer", start / "world" / "tokenizer",
             "--vision-feature-layer", -2, "--seed", seed, "--out", folder])  # fmt: skip
        return {}
    parent = study.model(arm.parent, seed)
    if words[0] == "upcycle":
        run([*words, "--model", parent, "--seed", seed, "--out", folder])
        return {}
    first = arm.name.endswith(" 1")
    steps = study.steps.first if first else study.steps.preference if words[1] == "preference" else study.steps.second
    words += ["--model", str(parent), "--out", str(folder), "--batch-size", str(BATCH), "--max-steps", str(steps), "--seed", f"{seed}"]
    words += ["--warmup-ratio", "0.1", "--logging-steps", str(max(1, steps // 15))]
    if "--stage" not in words and arm.parent != "teacher":
        words += ["--freeze", "vision_tower"]
    if words[1] == "preference":
        words += ["--data", str(pairs), "--learning-rate", "1e-4"]
        words += ["--reference-model", str(study.teacher)] if "--reference" in words else ["--reference", "copy"]
        words += [] if any("beta=" in word for word in words) else ["--beta", str(BETA)]
    else:
        # From random weights Muon learns faster; it has no way with stacked experts, so all of the second half is AdamW's.
        words += ["--optimizer", "muon", "--learning-rate", "2e-3"] if first else ["--learning-rate", "5e-4"]
        words += ["--adam-beta2", "0.95", "--data"]
        words += [str(start / "world" / "sft")] if words[1] == "sft" else [str(study.out / "taught" / "data"), "--teacher", "cached"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run(words)
    sys.stdout.write(said.getvalue())
    found = re.search(r"margin (-?[\d.]+); in (\d+)% of them", said.getvalue())
    return {"first margin": float(found[1]), "saturated": float(found[2])} if found else {}


def run_seed(study: Study, seed: int) -> None:
    """Make and measure all models of a seed that are not yet measured; then delete their weights."""
    quiet()
    arms = list(study.arms())
    needed = {arm.name for arm in arms if arm.measured and not study.cell(arm, seed).is_file()}
    for arm in reversed(arms):
        needed |= {arm.parent} if arm.name in needed else set()
    pairs = make_pairs(study.out / "pairs" / str(seed), seed=seed, num_pairs=48 if study.smoke else NUM_PAIRS)
    for arm in arms:
        folder = study.model(arm.name, seed)
        if arm.name not in needed:
            continue
        began = time.perf_counter()
        trained = arm.words[0] == "train"
        begin = {} if (folder / ("train_log.json" if trained else "config.json")).is_file() else make_model(study, arm, seed, pairs)
        if not arm.measured:
            continue
        cell = study.cell(arm, seed)
        if not cell.is_file():
            metrics = measure(folder, study.test) | _sizes(folder) | begin
            cell.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "train_log.json", cell.with_suffix(".log.json"))
            write_json(cell, metrics | {"seconds": time.perf_counter() - began})
            print(f"seed {seed} | {arm.name}: {metrics['hallucinated']:.1f}% hallucinated, {metrics['coverage']:.1f}% coverage", flush=True)
    shutil.rmtree(study.out / "models" / str(seed), ignore_errors=True)


def main() -> None:
    """Run what is not finished, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/llava_mod"))
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer steps, the most important arms, 100 test scenes")
    parser.add_argument("--smoke", action="store_true", help="a few steps of one seed: checks the path, shows no effect")
    parser.add_argument("--processes", type=int, default=1, help="seeds at once, one thread each")
    parser.add_argument("--seeds", type=int, nargs="*", help="these alone")
    parser.add_argument("--report", type=Path, help="folder that llava_mod.md and its pictures are written to, such as docs/studies")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    quiet()
    steps = SMOKE if options.smoke else QUICK if options.quick else FULL
    study = Study(options.out, steps, options.quick, options.smoke)
    if not options.report_only:
        began = time.perf_counter()
        prepare(study)
        seeds = options.seeds or (SEEDS[:1] if options.smoke else QUICK_SEEDS if options.quick else SEEDS)
        run_over_processes(run_seed, [(study, seed) for seed in seeds], processes=options.processes)
        print(f"done in {time.perf_counter() - began:.0f} s")
    names = {slug(arm.name): arm.name for arm in ARMS if arm.measured}
    print(write_report(options.out, options.report or options.out, names=names))


if __name__ == "__main__":
    main()
