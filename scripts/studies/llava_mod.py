"""Does mimicking beat SFT, a sparse student a dense one, and a student its teacher on hallucination? LLaVA-MoD on the embedded world.

    python -m scripts.studies.llava_mod --processes 2           # five seeds, all arms
    python -m scripts.studies.llava_mod --processes 2 --quick   # two seeds, about 15 minutes on two cores

The teacher is trained on captions of which some name a usual companion that is absent, so that it sees well and hallucinates a little.
Its students share its vision tower, frozen as in the paper, and begin with random language models. A seed draws the students' first
weights, the order of the data and the preference pairs; all arms of a seed see the same rows in the same order for as many steps.
``--report docs/studies`` writes the published page.
"""

import argparse
import contextlib
import io
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.study import ArmCell, main, read_sizes, run_missing, slug, write_json, write_run
from scripts.studies.world import BATCH, Condition, headings, make_pairs, make_start, measure, read_metrics, run

CAPTION_NOISE = 0.58
SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5), (1, 2)
BETA, TOP_K = 0.1, 64
LAYERS, WIDTH, FFN = 4, 64, 128
# A token passes through 2 of 4 experts in two of the four layers: as many feed-forward weights as in a dense student this wide.
WIDE_FFN = FFN + FFN // 2


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


BY_NAME = {arm.name: arm for arm in ARMS}


Cell = ArmCell[Arm]


def teacher_folder(out: Path) -> Path:
    """Folder of the teacher."""
    return out / "start" / "sft"


def model_folder(out: Path, name: str, seed: int) -> Path:
    """Folder of a model of a seed."""
    return teacher_folder(out) if name == "teacher" else out / "models" / str(seed) / slug(name)


def test_world(options: argparse.Namespace) -> Path:
    """Folder of the held-out world: a smaller one in the quick form."""
    return options.out / "start" / ("validation" if options.quick else "test")


def steps_of(options: argparse.Namespace) -> Steps:
    """Lengths of the trainings."""
    return SMOKE if options.smoke else QUICK if options.quick else FULL


def list_cells(seeds: Sequence[int], *, quick: bool) -> list[Cell]:
    """List the models that are measured, each behind its parent."""
    return [Cell(arm, seed) for seed in seeds for arm in ARMS if arm.measured and (arm.quick or not quick)]


def prepare(options: argparse.Namespace) -> None:
    """Make the teacher, what it would say to every row of the students, the students' configs, and measure the teacher."""
    out: Path = options.out
    teacher = make_start(out / "start", smoke=options.smoke, caption_noise=CAPTION_NOISE, sft_steps=steps_of(options).teacher)
    # What is done of this is left alone.
    run(["cache-teacher", out / "start" / "world" / "sft", "--model", teacher, "--top-k", TOP_K, "--out", out / "taught"])
    for name, ffn in (("dense", FFN), ("wide", WIDE_FFN)):
        sizes = {"vocab_size": 512, "hidden_size": WIDTH, "intermediate_size": ffn, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 4, "head_dim": WIDTH // 4, "max_position_embeddings": 512}
        write_json(out / f"{name}.json", {"model_type": "qwen3", **sizes, "initializer_range": 0.06, "tie_word_embeddings": True})
    path = out / "cells" / "teacher.json"
    if not path.is_file():
        write_json(path, measure(teacher, test_world(options)) | read_sizes(teacher))
    print(f"teacher: {read_json(path)['hallucinated']:.1f}% hallucinated captions", flush=True)


def make_model(arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Make an arm's model, and before it those that it begins with, where they are missing.

    Returns:
        What the command said of its start: rewards against another model are not 0.
    """
    out: Path = options.out
    folder, words = model_folder(out, arm.name, seed), list(arm.words)
    if (folder / ("train_log.json" if words[0] == "train" else "config.json")).is_file():
        return {}
    if words[0] == "compose":
        run(["compose", "--vision", teacher_folder(out), "--llm", out / f"{words[1]}.json", "--vision-feature-layer", -2,
             "--tokenizer", out / "start" / "world" / "tokenizer", "--seed", seed, "--out", folder])  # fmt: skip
        return {}
    if arm.parent in BY_NAME:
        make_model(BY_NAME[arm.parent], seed, options)
    words += ["--model", str(model_folder(out, arm.parent, seed)), "--out", str(folder), "--seed", str(seed)]
    if words[0] == "upcycle":
        run(words)
        return {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run([*words, *_training_words(arm, seed, options)])
    sys.stdout.write(said.getvalue())
    found = re.search(r"margin (-?[\d.]+); in (\d+)% of them", said.getvalue())
    return {"first margin": float(found[1]), "saturated": float(found[2])} if found else {}


def _training_words(arm: Arm, seed: int, options: argparse.Namespace) -> list[object]:
    """Options that an arm's training shares with others of its kind."""
    out, first, preference = options.out, arm.name.endswith(" 1"), arm.words[1] == "preference"
    steps = steps_of(options).first if first else steps_of(options).preference if preference else steps_of(options).second
    words: list[object] = ["--batch-size", BATCH, "--max-steps", steps, "--warmup-ratio", 0.1, "--logging-steps", max(1, steps // 15)]
    if "--stage" not in arm.words and arm.parent != "teacher":
        words += ["--freeze", "vision_tower"]
    if preference:
        pairs = make_pairs(out / "pairs" / str(seed), Condition("pairs"), seed, smoke=options.smoke)
        words += ["--data", pairs, "--learning-rate", 1e-4]
        words += ["--reference-model", teacher_folder(out)] if "--reference" in arm.words else ["--reference", "copy"]
        return words if any("beta=" in word for word in arm.words) else [*words, "--beta", BETA]
    # From random weights Muon learns faster; it has no way with stacked experts, so all of the second half is AdamW's.
    words += ["--optimizer", "muon", "--learning-rate", 2e-3] if first else ["--learning-rate", 5e-4]
    words += ["--adam-beta2", 0.95, "--data"]
    return [*words, out / "start" / "world" / "sft"] if arm.words[1] == "sft" else [*words, out / "taught" / "data", "--teacher", "cached"]


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Make and measure a model, and keep the numbers and the log. Weights stay for the arms that begin with them."""
    first = make_model(cell.arm, cell.seed, options)
    folder = model_folder(options.out, cell.arm.name, cell.seed)
    metrics = measure(folder, test_world(options)) | read_sizes(folder) | first
    write_run(cell.path(options.out), metrics, model=folder)
    return f"{metrics['hallucinated']:.1f}% hallucinated, {metrics['coverage']:.1f}% coverage"


def run_study(options: argparse.Namespace) -> None:
    """Make the teacher, run what is missing, a process per seed, and delete all weights but the teacher's."""
    prepare(options)
    seeds = options.seeds or (SEEDS[:1] if options.smoke else QUICK_SEEDS if options.quick else SEEDS)
    run_missing(list_cells(seeds, quick=options.quick), partial(run_cell, options=options), options, together=lambda cell: cell.seed)
    if time.time() < options.end:
        shutil.rmtree(options.out / "models", ignore_errors=True)


COLUMNS = headings("hallucinated", "CHAIR_i", "coverage", "object F1", "POPE F1", "general", "words")
COMPARED = ("hallucinated", "object F1", "POPE F1", "general")
NAMES = {slug(arm.name): arm.name for arm in ARMS if arm.measured}
# The claims, as pairs of arms.
MIMIC_BEATS_SFT = (("dense mimic", "dense SFT"), ("wide mimic", "wide SFT"), ("sparse mimic", "sparse SFT"))
SPARSE_BEATS_DENSE = (
    ("sparse SFT", "dense SFT"),
    ("sparse SFT", "wide SFT"),
    ("sparse mimic", "dense mimic"),
    ("sparse mimic", "wide mimic"),
    ("sparse mimic, attention frozen", "sparse mimic"),
)
REFERENCES = (
    ("KTO, teacher as reference", "DPO, teacher as reference"),
    ("KTO, self as reference", "DPO, self as reference"),
    ("DPO, teacher as reference", "DPO, self as reference"),
    ("KTO, teacher as reference", "KTO, self as reference"),
    ("KTO, teacher, centred", "KTO, teacher as reference"),
    ("KTO, teacher, by token", "KTO, teacher as reference"),
    ("DPO, teacher, by token", "DPO, teacher as reference"),
    ("DPO, teacher as reference", "DPO of the dense mimic, teacher as reference"),
)
# By the training that an arm ends with, and by what it began as.
COLOURS = {"dpo": "#1a9e77", "kto": "#8a5cd1", "sft": "#3a86d4", "mimic": "#d9730d"}
MARKERS = {"dense": "o", "wide": "s", "sparse": "D", "dpo": "^", "kto": "v"}


def arms_table(runs: page.Runs, teacher: page.Metrics) -> str:
    """Lay out arms by metrics, beside their weights."""
    rows = {"": page.start_row("teacher", teacher, COLUMNS)} | page.arm_rows(runs, NAMES, COLUMNS)
    for arm, row in rows.items():
        one = next(iter(runs[arm].values())) if arm else teacher
        row[2:2] = [f"{one[key] / 1000:.0f}" for key in ("weights", "activated")]
    return markdown_table(["arm", "seeds", "weights, k", "activated, k", *COLUMNS.values()], rows.values())


def differences_table(runs: page.Runs, pairs: Sequence[tuple[str, str]]) -> str:
    """Lay out differences of two arms over the seeds that both have."""
    arms = [(f"{arm} - {base}", slug(arm), slug(base)) for arm, base in pairs]
    rows = [[name, *(page.compare_metric(runs[a], runs[b], key) for key in COMPARED)] for name, a, b in arms if a in runs and b in runs]
    return markdown_table(["", *COMPARED], rows)


def against_teacher_table(runs: page.Runs, teacher: page.Metrics) -> str:
    """Lay out each arm's difference from the one teacher, and where its rewards stood before the first step."""
    rows: list[list[object]] = []
    for arm, name in NAMES.items():
        if arm in runs and "preference" in BY_NAME[name].words:
            against = dict.fromkeys(runs[arm], teacher)
            first = [one for one in runs[arm].values() if "saturated" in one]
            begin = [page.estimate([one[key] for one in first]) if first else "0" for key in ("first margin", "saturated")]
            rows.append([name, *(page.compare_metric(runs[arm], against, key) for key in COMPARED), *begin])
    return markdown_table(["arm minus teacher", *COMPARED, "first margin", "saturated pairs %"], rows)


def make_marks() -> dict[str, page.Mark]:
    """Mark every arm: colour by training, marker by model, hollow where it is a variant; the note is its number in the legend."""
    marks = {}
    for number, (arm, name) in enumerate(NAMES.items(), 1):
        colour = next(colour for kind, colour in COLOURS.items() if arm.startswith(kind) or kind in arm)
        marker = next(shape for kind, shape in MARKERS.items() if arm.startswith(kind))
        face = "none" if any(word in arm for word in ("self", "frozen", "of-the")) else colour
        style = {"edgecolors": colour, "facecolors": face, "marker": marker, "linewidths": 1.5}
        marks[arm] = page.Mark(colour, f"{number} {name}", str(number), style)
    return marks


def draw_experts(out: Path, path: Path) -> None:
    """Draw each expert's share of the tokens over the steps of the sparse arms, a panel per layer, the mean over seeds."""
    logs = {arm: [read_json(log) for log in sorted((out / "cells").glob(f"*/{arm}.log.json"))] for arm in ("sparse-sft", "sparse-mimic")}
    rows = [row for those in logs.values() for log in those for row in log]
    keys = sorted({key for row in rows for key in row if key.startswith("router_load/")})
    layers = sorted({key.split("_e")[0] for key in keys})
    if not layers:
        return
    with page.drawing(path, (4.2 * len(layers), 5.2)) as figure:
        panels = figure.subplots(len(logs), len(layers), sharex=True, sharey=True, squeeze=False)
        for line, (arm, those) in zip(panels, logs.items(), strict=True):
            for axes, layer in zip(line, layers, strict=True):
                for key in (key for key in keys if key.startswith(layer)):
                    axes.plot(*page.mean_curve(those, key), label=key.rpartition("_")[2])
                axes.set_title(f"{arm}, sparse layer {layer.rpartition('/l')[2]}", fontsize=10)
        panels[-1][0].set_xlabel("step")
        panels[0][0].set_ylabel("share of the choices")
        panels[0][-1].legend(fontsize=8)


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of llava_mod.md and its pictures.

    Raises:
        SystemExit: If no run is finished.
    """
    out, folder = options.out, options.report
    runs = page.read_runs(out / "cells", read=read_metrics)
    if not runs:
        raise SystemExit(f"no finished run in {out / 'cells'}: nothing to report")
    teacher = read_metrics(out / "cells" / "teacher.json")
    star = {"s": 130, "marker": "*", "label": "teacher"}
    page.draw_tradeoff(
        folder / "llava_mod_tradeoff.png", runs, make_marks(), start=(teacher, star), size=(8.6, 4.6), points={"s": 10, "alpha": 0.3},
        legend={"fontsize": 7, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)},
    )  # fmt: skip
    draw_experts(out, folder / "llava_mod_experts.png")
    parts = [
        "## All arms",
        arms_table(runs, teacher),
        "![hallucination against coverage](llava_mod_tradeoff.png)",
        "## Does mimicking beat SFT?",
        differences_table(runs, MIMIC_BEATS_SFT),
        "## Does sparse beat dense?",
        differences_table(runs, SPARSE_BEATS_DENSE),
        "## Does the student hallucinate less than its teacher?",
        against_teacher_table(runs, teacher),
        "## Which reference, which form?",
        differences_table(runs, REFERENCES),
        "## Experts",
        "![share of each expert](llava_mod_experts.png)",
    ]
    return page.write_measured(folder / "llava_mod.md", "LLaVA-MoD on the embedded world", parts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of seeds."""
    parser.add_argument("--seeds", type=int, nargs="*", help="these alone")


if __name__ == "__main__":
    quick = "two seeds, fewer steps, the most important arms, 100 test scenes"
    main(__doc__, name="llava_mod", quick=quick, run=run_study, write_page=write_page, add_options=add_options)
