"""``mmalign report``: results side by side, training curves by difficulty, and a page of difficulty scores."""

import json

from mmalign.errors import UserError
from mmalign.options.report import ReportDifficultyOptions, ReportEvalOptions, ReportTrainingOptions
from mmalign.reports.comparison import build_comparison, csv_table, markdown_table
from mmalign.reports.difficulty_page import write_difficulty_page
from mmalign.reports.eval_page import write_eval_page
from mmalign.reports.results_table import ModelRun
from mmalign.reports.training_plots import save_quartile_figure
from mmalign.runs.difficulty_report import describe_scoring, load_scores, pick_pairs
from mmalign.runs.eval_report import collect_results, collect_runs, collect_wrong, describe, find_notes


def run_training(options: ReportTrainingOptions) -> None:
    """Draw reward margin and accuracy over training, by quartile of difficulty.

    Raises:
        ValueError: If a folder holds no finished run, or one without scores.
    """
    names = options.names or [folder.resolve().name for folder in options.runs]
    if len(names) != len(options.runs) or len(set(names)) != len(names) or not names:
        raise UserError(f"{len(options.runs)} runs and the names {', '.join(names)}; give each its own name with --names")
    models = []
    for name, folder in zip(names, options.runs, strict=True):
        log = folder / "train_log.json"
        if not log.is_file():
            raise UserError(f"no train_log.json in {folder}; expected the folder of a finished run of mmalign train preference")
        models.append(ModelRun(name=name, metrics={}, num_answers={}, log_history=json.loads(log.read_text(encoding="utf-8"))))
    save_quartile_figure(options.out, models, smooth=options.smooth)
    print(f"saved in {options.out}")


def run_difficulty(options: ReportDifficultyOptions) -> None:
    """Write the page of a data set's difficulty scores.

    Raises:
        ValueError: If the folder has no scores, or they don't belong together.
    """
    dataset, scores = load_scores(options.scores)
    pairs = pick_pairs(dataset, scores, number=options.num_pairs, image_root=options.image_root)
    facts = describe_scoring(options.scores, scores)
    print(f"saved in {write_difficulty_page(options.out, title=options.title, scores=scores, pairs=pairs, facts=facts)}")


def run_eval(options: ReportEvalOptions) -> None:
    """Write the report and print the table.

    Raises:
        ValueError: If results are missing, damaged, or can't be compared.
    """
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
