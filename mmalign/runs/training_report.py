"""What ``mmalign report training`` shows, gathered from the folders that ``mmalign train`` wrote."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import UserError
from mmalign.files import RUN_FILE, read_json
from mmalign.reports.training_plots import TrainingRun
from mmalign.runs.eval_report import name_folders
from mmalign.runs.run_record import read_record


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
