"""``mmalign report``: pages of results, of training logs, and of difficulty scores."""

from mmalign.errors import UserError
from mmalign.files import write_whole
from mmalign.options.report import ReportDifficultyOptions, ReportEvalOptions, ReportTrainingOptions
from mmalign.reports.comparison import build_comparison, csv_comparison, markdown_comparison, terminal_comparison
from mmalign.reports.difficulty_page import write_difficulty_page
from mmalign.reports.eval_page import write_eval_page
from mmalign.reports.training_page import write_training_page
from mmalign.reports.training_plots import save_quartile_figure
from mmalign.runs.difficulty_report import describe_scoring, load_scores, pick_pairs
from mmalign.runs.eval_report import collect_results, collect_runs, collect_wrong, describe, find_notes
from mmalign.runs.training_report import collect_logs


def run_training(options: ReportTrainingOptions) -> None:
    """Draw what runs have logged: all of it as a page, or reward margin and accuracy by quartile of difficulty as a figure.

    Raises:
        ValueError: If a folder holds no finished run, or a run has not logged what the figure shows.
    """
    if options.out.suffix not in (".html", ".png", ".svg"):
        raise UserError(f"--out is {options.out.name}; expected a name that ends in .html, .png or .svg")
    runs, facts = collect_logs(options.runs, names=options.names)
    if options.out.suffix == ".html":
        write_training_page(options.out, title=options.title, runs=runs, smooth=options.smooth, facts=facts)
    else:
        save_quartile_figure(options.out, runs, smooth=options.smooth)
    print(f"saved in {options.out}")


def run_difficulty(options: ReportDifficultyOptions) -> None:
    """Write the page of a data set's difficulty scores.

    Raises:
        ValueError: If the folder has no scores, or they don't belong together.
    """
    dataset, scores = load_scores(options.scores, group_by=options.group_by)
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
    names, notes = [run.name for run in runs], find_notes(models)
    listed = "".join(f"- {note}\n" for note in notes)
    write_whole(options.out / "report.md", f"{listed}\n{markdown_comparison(groups, names)}\n".lstrip())
    write_whole(options.out / "report.csv", csv_comparison(groups, runs))
    page = write_eval_page(
        options.out / "report.html",
        title=options.title,
        runs=runs,
        wrong=wrong,
        facts=describe(models, resamples=options.resamples, seed=options.seed),
        notes=notes,
        links=options.links,
    )
    print(f"{terminal_comparison(groups, names)}\n{listed}\nevery row in {page.with_suffix('.md')}, saved in {page}")
