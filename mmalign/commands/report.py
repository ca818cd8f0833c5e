"""``mmalign report``: results side by side, training curves by difficulty, and a page of difficulty scores."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReportEvalOptions:
    """Options of ``mmalign report eval``."""

    results: list[Path] = field(metadata={"help": "folders that mmalign evaluate --out wrote, one a model", "positional": True})
    out: Path = field(metadata={"help": "folder of report.html, report.md and report.csv"})
    names: list[str] = field(default_factory=list, metadata={"help": "the models' names in that order; the folders' names if not given"})
    images: list[Path] = field(default_factory=list, metadata={"help": "folders to look for the images of wrong answers in"})
    title: str = field(default="Evaluation", metadata={"help": "title of the page"})
    max_wrong: int = field(default=40, metadata={"help": "most wrong answers shown of a model and benchmark, drawn at random"})
    resamples: int = field(default=2000, metadata={"help": "resamples of the images for the intervals"})
    seed: int = field(default=0, metadata={"help": "of the resampling and of the wrong answers that are shown"})


@dataclass(frozen=True, kw_only=True)
class ReportTrainingOptions:
    """Options of ``mmalign report training``."""

    runs: list[Path] = field(metadata={"help": "folders of train preference on scored pairs, one a run", "positional": True})
    out: Path = field(metadata={"help": "the figure: a .png or .svg file"})
    names: list[str] = field(default_factory=list, metadata={"help": "the runs' names in that order; the folders' names if not given"})
    smooth: int = field(default=5, metadata={"help": "each point is the mean of this many logs; 1 shows the logs as they are"})


@dataclass(frozen=True, kw_only=True)
class ReportDifficultyOptions:
    """Options of ``mmalign report difficulty``."""

    scores: Path = field(metadata={"help": "folder that mmalign score-difficulty --out wrote", "positional": True})
    out: Path = field(metadata={"help": "the page: an .html file"})
    num_pairs: int = field(default=24, metadata={"help": "pairs shown, evenly spaced from the easiest to the hardest"})
    image_root: Path | None = field(default=None, metadata={"help": "folder that relative image paths in the data start from"})
    title: str = field(default="Difficulty of preference pairs", metadata={"help": "title of the page"})


def run_training(options: ReportTrainingOptions) -> None:
    """Draw reward margin and accuracy over training, by quartile of difficulty.

    Raises:
        ValueError: If a folder holds no finished run, or one without scores.
    """
    from mmalign.reports.results_table import ModelRun
    from mmalign.reports.training_plots import save_quartile_figure

    names = options.names or [folder.resolve().name for folder in options.runs]
    if len(names) != len(options.runs) or len(set(names)) != len(names) or not names:
        raise ValueError(f"{len(options.runs)} runs and the names {', '.join(names)}; give each its own name with --names")
    models = []
    for name, folder in zip(names, options.runs, strict=True):
        log = folder / "train_log.json"
        if not log.is_file():
            raise ValueError(f"no train_log.json in {folder}; expected the folder of a finished run of mmalign train preference")
        models.append(ModelRun(name=name, metrics={}, num_answers={}, log_history=json.loads(log.read_text(encoding="utf-8"))))
    save_quartile_figure(options.out, models, smooth=options.smooth)
    print(f"saved in {options.out}")


def run_difficulty(options: ReportDifficultyOptions) -> None:
    """Write the page of a data set's difficulty scores.

    Raises:
        ValueError: If the folder has no scores, or they don't belong together.
    """
    from mmalign.commands.difficulty_report import describe_scoring, load_scores, pick_pairs
    from mmalign.reports.difficulty_page import write_difficulty_page

    dataset, scores = load_scores(options.scores)
    pairs = pick_pairs(dataset, scores, number=options.num_pairs, image_root=options.image_root)
    facts = describe_scoring(options.scores, scores)
    print(f"saved in {write_difficulty_page(options.out, title=options.title, scores=scores, pairs=pairs, facts=facts)}")


def run_eval(options: ReportEvalOptions) -> None:
    """Write the report and print the table.

    Raises:
        ValueError: If results are missing, damaged, or can't be compared.
    """
    from mmalign.commands.eval_report import collect_results, collect_runs, collect_wrong, describe, find_notes
    from mmalign.reports.comparison import build_comparison, csv_table, markdown_table
    from mmalign.reports.eval_page import write_eval_page

    models = collect_results(options.results, names=options.names)
    runs = collect_runs(models, resamples=options.resamples, seed=options.seed)
    groups = build_comparison(runs)
    wrong = collect_wrong(models, images=options.images, max_wrong=options.max_wrong, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(groups, [run.name for run in runs])
    (options.out / "report.md").write_text(table + "\n", encoding="utf-8")
    (options.out / "report.csv").write_text(csv_table(groups, runs), encoding="utf-8")
    page = write_eval_page(
        options.out / "report.html",
        title=options.title,
        runs=runs,
        wrong=wrong,
        facts=describe(models, resamples=options.resamples, seed=options.seed),
        notes=find_notes(models),
    )
    print(f"{table}\n\nsaved in {page}")
