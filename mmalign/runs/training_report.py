"""``mmalign report training``: what it shows is gathered from the folders that ``mmalign train`` wrote."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import UserError
from mmalign.files import RUN_FILE, read_json
from mmalign.options.report import ReportTrainingOptions
from mmalign.reports.training_page import write_training_page
from mmalign.reports.training_plots import TrainingRun, save_quartile_figure
from mmalign.runs.eval_report import name_folders
from mmalign.runs.run_record import read_record


def run(options: ReportTrainingOptions) -> None:
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


def collect_logs(folders: Sequence[Path], *, names: Sequence[str]) -> tuple[list[TrainingRun], dict[str, str]]:
    """Read the logs of runs, and how each run was made.

    Raises:
        ValueError: If a folder holds no finished run, or names don't fit.
    """
    runs, facts = [], {}
    for name, folder in name_folders(folders, names=names).items():
        log = folder / "train_log.json"
        if not log.is_file():
            raise UserError(f"no train_log.json in {folder}; expected the folder of a finished run of mmalign train")
        record = read_record(folder) if (folder / RUN_FILE).is_file() else {}
        method = str(record.get("method", "training"))
        runs.append(TrainingRun(name, read_json(log), method))
        rows = f"{record['steps']:,} steps of {record['batch']:,} rows" if record.keys() >= {"steps", "batch"} else "unknown steps"
        facts[name] = f"{folder}: {method}, {rows}"
    return runs, facts
