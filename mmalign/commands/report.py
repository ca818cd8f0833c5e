"""``mmalign report eval``: results of several models side by side."""

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
