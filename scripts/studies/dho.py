"""When do two heads pay? DHO (arXiv:2505.07675) against one head, label shares by teacher accuracies, on CIFAR-10's photographs.

    python scripts/studies/dho.py --data cifar10 --quick                       # within 15 minutes on two cores
    python scripts/studies/dho.py --data cifar10 --processes 2                 # five seeds, hours
    python scripts/studies/dho.py --data cifar10 --minutes 30                  # what fits; again to go on
    python scripts/studies/dho.py --data cifar10 --report-only

--data is a folder with train and test parquet files (columns image, label). The training images are halved: one half, with all its
labels, is the teacher's; the other the student's, of which 1,000 tune the mixing. Each cell is one `mmalign train dual-head`; finished
ones are kept in --out and never run again. Cells run in order of importance, so that a stop leaves the widest picture.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open

from mmalign.cli import main as mmalign
from mmalign.data.labeled_images import load_labeled_images
from mmalign.data.splits import LabelSplit, draw_split, save_split
from mmalign.data.teacher_logits import load_teacher_logits, save_teacher_logits
from mmalign.data.whole_files import write_whole
from mmalign.evaluation.classification import CE_HEAD_WEIGHTS, KD_HEAD_TEMPERATURES
from mmalign.reports.heat_map import save_heat_map

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies"
# Two sizes of student; the teacher has a network of its own.
NETWORKS = {
    "small": "{channels: [16, 32, 64, 128], stem_width: 8}",
    "medium": "{channels: [24, 48, 96, 192], stem_width: 12}",
    "teacher": "{channels: [24, 48, 96, 192], stem_width: 12}",
}
LABELS = {"1 shot": 10, "4 shots": 40, "0.5%": 58, "1%": 115, "16 shots": 160, "5%": 575, "10%": 1150, "20%": 2300}
MAP_LABELS = ("0.5%", "1%", "5%", "10%", "20%")
TABLE_LABELS = ("1 shot", "4 shots", "16 shots", "1%", "10%")
# Steps of real teachers; corrected ones are the strongest with a share of its errors mended.
REAL_TEACHERS = {"weak": 120, "real": 900}
CORRECTED = (0.7, 0.8, 0.9)
STEPS, LONG_STEPS, BATCH = 400, 1600, 32
# Single heads' weights between KD only (0) and CE only (1).
SWEEP = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Cell:
    """One training run."""

    labels: str
    teacher: str
    form: str
    seed: int
    student: str = "small"
    label_weight: float = 0.5
    steps: int = STEPS
    views: Literal["centre", "fixed", "live"] = "centre"
    """What the teacher sees: the stored image, once; four fixed views of it, once; the student's own view, each time."""

    @property
    def name(self) -> str:
        """File name."""
        words = [self.labels, self.teacher, self.form, f"w{self.label_weight:g}", self.student, f"s{self.seed}"]
        words += [] if self.steps == STEPS else [f"{self.steps}-steps"]
        words += [] if self.views == "centre" else [self.views]
        return "_".join(words).replace(" ", "-").replace("%", "pc")


TABLE_FORMS = [
    ("ce-only", 0.5),
    ("dual-head", 0.5),
    ("kd-only", 0.5),
    ("single-head", 0.5),
    ("feature-kd", 0.5),
    ("fixmatch", 0.5),
    ("single-head", 0.2),
    ("single-head", 0.8),
]
TEACHERS = [*REAL_TEACHERS, *(f"corrected {accuracy:.0%}" for accuracy in CORRECTED)]


def list_cells(*, quick: bool) -> list[Cell]:
    """List the cells from the most important: a coarse map and all forms, longer training, the map, more seeds, the larger student."""
    cells = []
    for labels, teacher in [("1%", "real"), ("1%", "weak"), ("20%", "weak"), ("20%", "real"), ("1%", "corrected 90%"), ("20%", "corrected 90%")]:
        forms = [("dual-head", 0.5), ("single-head", 0.5), ("ce-only", 0.5), ("kd-only", 0.5)] + [("single-head", 0.8)] * (labels == "20%")
        cells += [Cell(labels, teacher, form, 0, label_weight=w) for form, w in forms]
    cells += _table(("10%", "1%"), [0])
    if quick:
        return _without_teachers(cells)
    cells += _long([("20%", "weak"), ("20%", "real")], [0])
    cells += _map(MAP_LABELS, [t for t in TEACHERS if t != "corrected 70%"], [0])
    cells += _table(("1%", "10%"), [1, 2])
    cells += _long([("5%", "real"), ("1%", "weak")], [0])
    views: tuple[Literal["fixed", "live"], ...] = ("fixed", "live")
    cells += [Cell(labels, "real", "dual-head", seed, views=v) for labels in ("1%", "10%") for v in views for seed in range(3)]
    cells += _table(("1 shot", "4 shots", "16 shots"), [0])
    cells += _long([("20%", "real"), ("20%", "weak")], [1])
    cells += [Cell(labels, "real", form, 0, "medium", w) for labels in ("1%", "10%") for form, w in TABLE_FORMS[:4]]
    cells += _map(("20%", "1%", "5%"), ("weak", "real"), [1, 2])
    cells += _table(("1%", "10%"), [3, 4])
    cells += _long([("20%", "real"), ("20%", "weak"), ("5%", "real"), ("1%", "weak")], [1, 2])
    cells += _map(MAP_LABELS, TEACHERS, [0, 1, 2])
    cells += _table(("1 shot", "4 shots", "16 shots"), range(1, 5))
    cells += [Cell(labels, "real", form, seed, "medium", w) for seed in range(5) for labels in TABLE_LABELS for form, w in TABLE_FORMS]
    cells += _map(MAP_LABELS, TEACHERS, [3, 4])
    return _without_teachers(cells)


def _table(labels: Sequence[str], seeds: Iterable[int]) -> list[Cell]:
    """Every form under the real teacher."""
    return [Cell(one, "real", form, seed, label_weight=w) for seed in seeds for one in labels for form, w in TABLE_FORMS]


def _forms_of_map(labels: str) -> list[tuple[str, float]]:
    """DHO and what a single head can be: few labels want a small weight, many a large one."""
    return [("dual-head", 0.5), ("kd-only", 0.5), ("single-head", 0.5), ("single-head", 0.2 if LABELS[labels] < 200 else 0.8), ("ce-only", 0.5)]


def _map(labels: Sequence[str], teachers: Sequence[str], seeds: Iterable[int]) -> list[Cell]:
    """The map: DHO against single heads of every weight, by label share and teacher."""
    return [Cell(one, t, form, s, label_weight=w) for s in seeds for one in labels for t in teachers for form, w in _forms_of_map(one)]


def _long(corners: Sequence[tuple[str, str]], seeds: Iterable[int]) -> list[Cell]:
    """The same with four times the steps."""
    return [
        Cell(labels, teacher, form, seed, label_weight=w, steps=LONG_STEPS)
        for seed in seeds
        for labels, teacher in corners
        for form, w in _forms_of_map(labels)
    ]


def _without_teachers(cells: Sequence[Cell]) -> list[Cell]:
    """FixMatch and CE only know no teacher: one cell serves all of them."""
    known = [replace(c, teacher="none") if c.form in ("ce-only", "fixmatch") else c for c in cells]
    return list(dict.fromkeys(known))


def run_mmalign(words: Sequence[str], log: Path) -> None:
    """Run a command of mmalign in this process, its output in a file."""
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = mmalign(list(words))
    if code != 0:
        raise SystemExit(f"the study stopped at: mmalign {' '.join(words)}\n{log.read_text()[-2000:]}")


def training_words(options: argparse.Namespace, network: str, *, steps: int, batch: int) -> list[str]:
    """What all runs share."""
    words = ["train", "dual-head", "--data", str(options.data), "--cache", str(options.out / "cache"), "--no-pretrained"]
    words += ["--backbone", "resnet10t", "--backbone-options", NETWORKS[network], "--image-size", "32", "--augmentation", "pad-crop"]
    words += ["--max-steps", str(steps), "--batch-size", str(batch), "--learning-rate", "2e-3", "--warmup-ratio", "0.05"]
    return [*words, "--logging-steps", "50", "--trainer", "{disable_tqdm: true, save_strategy: 'no'}"]


def prepare(options: argparse.Namespace) -> None:
    """Draw the halves, train the real teachers, mend the errors of the corrected ones."""
    data = load_labeled_images(options.data, split="train")
    halves = draw_split(data.labels, num_classes=len(data.classes), seed=0, share=0.5)
    if options.smoke:
        halves = LabelSplit(halves.labeled[:400], halves.unlabeled[:2600], halves.validation)
    own = halves.unlabeled
    splits = options.out / "splits"
    nothing = np.zeros(0, dtype=np.int64)
    save_split(splits / "teacher.json", LabelSplit(halves.labeled, nothing, nothing), data.ids)
    rng = np.random.default_rng(0)
    validation = np.sort(rng.permutation(own)[: 100 if options.smoke else 1000])
    pool = np.setdiff1d(own, validation)
    labels = data.labels[pool]
    for name, number in LABELS.items():
        for seed in range(5):
            drawn = draw_split(labels, num_classes=len(data.classes), seed=100 + seed, share=min(1.0, number / len(pool)))
            save_split(
                splits / f"{number}-{seed}.json",
                LabelSplit(pool[drawn.labeled], pool[drawn.unlabeled], validation),
                data.ids,
                labels=name,
            )
    logs = options.out / "log.txt"
    for name, steps in REAL_TEACHERS.items():
        folder = options.out / f"teacher-{name}"
        if (folder / "classifier.json").is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        words = training_words(options, "teacher", steps=4 if options.smoke else steps, batch=64)
        words += ["--form", "ce-only", "--split-file", str(splits / "teacher.json"), "--test-data", str(options.data), "--out", str(folder)]
        run_mmalign(words, logs)
        print(f"teacher {name}: {read(folder / 'classifier.json')['test']['ce_head']['accuracy']:.1%} on test images", flush=True)
    base = options.out / "cache" / "real.safetensors"
    if not base.is_file():
        score_real_teacher(options, base)
    truth = torch.from_numpy(data.labels)
    real = load_teacher_logits(base, ids=data.ids, classes=data.classes).logits[:, 0]
    guess = real.argmax(-1)
    for accuracy in CORRECTED:
        path = options.out / "cache" / f"corrected {accuracy:.0%}.safetensors"
        now = (guess == truth)[own].double().mean().item()
        share = max(0.0, (accuracy - now) / (1 - now))
        mended = torch.from_numpy(np.random.default_rng(1).random(len(truth)) < share) & (guess != truth)
        logits = real.clone()
        rows = mended.nonzero()[:, 0]
        logits[rows, truth[rows]], logits[rows, guess[rows]] = real[rows, guess[rows]], real[rows, truth[rows]]
        save_teacher_logits(
            path, ids=data.ids, classes=data.classes, logits=logits, source=f"real teacher, {share:.0%} of its errors mended"
        )


def score_real_teacher(options: argparse.Namespace, path: Path) -> None:
    """Run the strongest teacher over all images, by one step of a run that caches it."""
    folder = options.out / "scoring"
    shutil.rmtree(folder, ignore_errors=True)
    words = training_words(options, "small", steps=1, batch=8)
    words += ["--teacher", str(options.out / "teacher-real"), "--teacher-kind", "classifier"]
    words += ["--split-file", str(options.out / "splits" / "115-0.json"), "--out", str(folder)]
    run_mmalign(words, options.out / "log.txt")
    for found in (options.out / "cache").glob("teacher-*.safetensors"):
        with safe_open(found, framework="pt") as file:
            if file.metadata()["source"].endswith("teacher-real"):
                shutil.copy(found, path)
    shutil.rmtree(folder)


def run_cell(options: argparse.Namespace, cell: Cell) -> float:
    """Train one student and keep its numbers; seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    folder = options.out / "runs" / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    words = training_words(options, cell.student, steps=4 if options.smoke else cell.steps, batch=BATCH)
    words += ["--split-file", str(options.out / "splits" / f"{LABELS[cell.labels]}-{cell.seed}.json"), "--seed", str(cell.seed)]
    words += ["--form", cell.form, "--label-weight", str(cell.label_weight), "--test-data", str(options.data), "--out", str(folder)]
    if cell.teacher in REAL_TEACHERS:
        words += ["--teacher", str(options.out / f"teacher-{cell.teacher}"), "--teacher-kind", "classifier"]
    elif cell.teacher != "none":
        words += ["--teacher", str(options.out / "cache" / f"{cell.teacher}.safetensors"), "--teacher-kind", "logits"]
    words += {"centre": [], "fixed": ["--teacher-views", "4"], "live": ["--teacher-mode", "live"]}[cell.views]
    if cell.form in ("dual-head", "single-head"):
        words += ["--gradient-cosine-every", "50"]
    log = options.out / "logs" / f"{cell.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    run_mmalign(words, log)
    log.unlink()
    result = read(folder / "classifier.json")
    cosines = [entry["dual_head/gradient_cosine"] for entry in read(folder / "train_log.json") if "dual_head/gradient_cosine" in entry]
    result |= {"cell": asdict(cell), "gradient_cosine": cosines}
    result |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    done = options.out / "cells" / f"{cell.name}.json"
    done.parent.mkdir(parents=True, exist_ok=True)
    write_whole(done, json.dumps(result))
    shutil.rmtree(folder)
    return result["seconds"]


def read(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def work(options: argparse.Namespace, part: int, end: float) -> None:
    """Run every N-th unfinished cell until the time is over."""
    torch.set_num_threads(1)
    cells = list_cells(quick=options.quick)
    if options.smoke:
        cells = cells[:2] + [cell for cell in cells if cell.labels == "10%"][:8]
    for number, cell in enumerate(cells):
        if number % options.processes != part or (options.out / "cells" / f"{cell.name}.json").is_file():
            continue
        if time.time() > end:
            return
        print(f"{number + 1}/{len(cells)} {cell.name}: {run_cell(options, cell):.0f} s", flush=True)


# --- the page ---


def load_cells(out: Path) -> dict[Cell, dict[str, Any]]:
    """Read finished cells."""
    return {Cell(**result["cell"]): result for result in map(read, sorted((out / "cells").glob("*.json")))}


def accuracy(result: dict[str, Any], head: str | None = None) -> float:
    """Test accuracy in percent: of a head, or of what the form is used by."""
    return 100 * result["test"][head or ("mixed" if "mixed" in result["test"] else "ce_head")]["accuracy"]


def interval(values: Sequence[float]) -> str:
    """Mean and the half-width of Student's 95% interval over seeds."""
    if not values:
        return ""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f} (1 seed)"
    return f"{mean:.1f} ± {T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.1f} ({len(values)})"


def table(cells: dict[Cell, dict[str, Any]], student: str) -> list[str]:
    """Every form by labels, under the real teacher."""
    forms = [("ce-only", 0.5), ("fixmatch", 0.5), ("kd-only", 0.5), ("feature-kd", 0.5), *(("single-head", w) for w in (0.2, 0.5, 0.8))]
    present = [labels for labels in TABLE_LABELS if any(c.labels == labels and c.student == student for c in cells)]
    lines = [f"| form | {' | '.join(f'{labels} ({LABELS[labels]} labels)' for labels in present)} |", "|---|" + "---:|" * len(present)]

    def add(name: str, form: str, weight: float, head: str | None = None) -> None:
        line = []
        for labels in present:
            chosen = [
                accuracy(result, head)
                for c, result in cells.items()
                if (c.labels, c.form, c.label_weight, c.student) == (labels, form, weight, student) and c.teacher in ("real", "none")
            ]
            line.append(interval(chosen))
        if any(line):
            lines.append(f"| {name} | {' | '.join(line)} |")

    for form, weight in forms:
        add(f"{form}, w = {weight}" if form == "single-head" else form, form, weight)
    for head in ("ce_head", "kd_head", "published", "mixed"):
        names = {"mixed": "**DHO, tuned mixing**", "published": "DHO, mixing 0.5 / 0.5 (published)"}
        add(names.get(head, f"DHO, {head} alone"), "dual-head", 0.5, head)
    return lines


def gains(cells: dict[Cell, dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """DHO minus the best single head that ran (CE only, KD only, both with any weight), by labels and teacher, a value a seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell, result in cells.items():
        if cell.form != "dual-head" or cell.student != "small":
            continue
        key = (cell.labels, cell.teacher, cell.seed, cell.student)
        rivals = [
            accuracy(other)
            for c, other in cells.items()
            if (c.labels, c.teacher, c.seed, c.student) == key and c.form in ("kd-only", "single-head")
        ]
        rivals += [
            accuracy(other)
            for c, other in cells.items()
            if (c.labels, c.seed, c.student, c.form) == (cell.labels, cell.seed, cell.student, "ce-only")
        ]
        if len(rivals) >= 2:
            found.setdefault((cell.labels, cell.teacher), []).append(accuracy(result) - max(rivals))
    return found


def write_page(options: argparse.Namespace) -> None:
    """Write docs/studies/dho.md and its pictures from the finished cells."""
    cells = load_cells(options.out)
    if not cells:
        raise SystemExit("no finished cell; nothing to write")
    page = options.page
    page.mkdir(parents=True, exist_ok=True)
    teachers = sorted(
        {(result["teacher_accuracy_unlabeled"], c.teacher) for c, result in cells.items() if result.get("teacher_accuracy_unlabeled")},
    )
    accuracies = {name: value for value, name in reversed(teachers)}
    names = sorted(accuracies, key=accuracies.__getitem__)
    found = gains(cells)
    rows = [labels for labels in MAP_LABELS if any(labels == key[0] for key in found)]
    values = [[statistics.mean(found[labels, t]) if (labels, t) in found else None for t in names] for labels in rows]
    pictures = []
    if rows:
        save_heat_map(
            page / "dho_map.png",
            values,
            rows=rows,
            columns=[f"{accuracies[t]:.0%}\n{'corrected' if 'corrected' in t else t}" for t in names],
            title="DHO minus best single head, points",
            row_label="labelled share",
            column_label="teacher's accuracy on the unlabelled images",
            centre=0.0,
        )
        pictures.append("![Gain of DHO over the best single head, by label share and teacher accuracy](dho_map.png)")
    grids = {}
    for labels in ("1%", "10%", "20%"):
        grid = [np.array(r["mixing_grid"]) for c, r in cells.items() if (c.labels, c.teacher, c.form) == (labels, "real", "dual-head")]
        if grid:
            grids[labels] = 100 * np.mean(grid, axis=0)
    for labels, grid in grids.items():
        name = f"dho_mixing_{LABELS[labels]}.png"
        save_heat_map(
            page / name,
            grid[::2].tolist(),
            rows=[f"{a:g}" for a in CE_HEAD_WEIGHTS[::2]],
            columns=[f"{b:g}" for b in KD_HEAD_TEMPERATURES],
            title=f"validation accuracy, {labels} of the labels",
            row_label="CE head weight",
            column_label="KD head temperature",
        )
        pictures.append(f"![Validation accuracy over the mixing grid, {labels} of the labels]({name})")
    counted = [[f"{statistics.mean(v):+.1f} ({len(v)})" if (v := found.get((labels, t))) else "" for t in names] for labels in rows]
    lines = ["### Accuracy on 5,000 test photographs, %, mean ± 95% interval (seeds)", "", *table(cells, "small"), ""]
    if any(c.student == "medium" for c in cells):
        lines += ["### The larger student", "", *table(cells, "medium"), ""]
    lines += ["### The map: DHO (tuned) minus the best single head of the cell, points (seeds)", ""]
    lines += [f"| labels | {' | '.join(f'{t}, {accuracies[t]:.0%}' for t in names)} |", "|---|" + "---:|" * len(names)]
    lines += [f"| {labels} | {' | '.join(line)} |" for labels, line in zip(rows, counted, strict=True)] + [""]
    lines += ["### Cosine of CE's and KD's gradients in the backbone", "", *cosine_table(cells), "", *pictures]
    seconds = [result["seconds"] for result in cells.values()]
    lines += [
        "",
        f"{len(cells)} cells of {len(list_cells(quick=False))} in the full form; a cell took {statistics.median(seconds):.0f} s (median).",
    ]
    path = page / "dho.md"
    mark = "<!-- written by scripts/studies/dho.py: below this line -->"
    head = path.read_text(encoding="utf-8").split(mark)[0] if path.is_file() else "# When do two heads pay?\n\n"
    path.write_text(f"{head}{mark}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {path}")


def cosine_table(cells: dict[Cell, dict[str, Any]]) -> list[str]:
    """Mean cosine over the training, and its last value, by form."""
    lines = ["| labels | teacher | form | first | mean | last |", "|---|---|---|---:|---:|---:|"]
    for labels in MAP_LABELS:
        for teacher in ("weak", "real", "corrected 90%"):
            for form in ("single-head", "dual-head"):
                chosen = [
                    r["gradient_cosine"]
                    for c, r in cells.items()
                    if (c.labels, c.teacher, c.form, c.label_weight, c.student) == (labels, teacher, form, 0.5, "small")
                ]
                if chosen:
                    series = np.mean(np.array(chosen), axis=0)
                    lines.append(f"| {labels} | {teacher} | {form} | {series[0]:.2f} | {series.mean():.2f} | {series[-1]:.2f} |")
    return lines


def main() -> None:
    """Prepare, run what fits, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/dho"), help="folder of cells, kept from run to run")
    parser.add_argument("--page", type=Path, default=PAGE, help="folder of dho.md and its pictures")
    parser.add_argument("--quick", action="store_true", help="one seed, a coarse map, two label shares")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no cell after this")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few steps of a few cells: checks the path")
    parser.add_argument("--report-only", action="store_true", help="write the page from finished cells")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.report_only:
        end = time.time() + 60 * options.minutes
        options.out.mkdir(parents=True, exist_ok=True)
        prepare(options)
        context = multiprocessing.get_context("spawn")
        others = [context.Process(target=work, args=(options, part, end)) for part in range(1, options.processes)]
        for process in others:
            process.start()
        work(options, 0, end)
        for process in others:
            process.join()
    write_page(options)


if __name__ == "__main__":
    main()
