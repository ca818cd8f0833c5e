"""The record of a training run (``mmalign_run.json``): what it was made of, and whether a folder's run is this one."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmalign import __version__
from mmalign.config import plain_values
from mmalign.data.datasets import hash_data_files
from mmalign.data.rejects import REJECTS_FILE
from mmalign.errors import UserError
from mmalign.files import RUN_FILE, check_same, freed_if_refused, lock, locked, read_json_object, write_whole
from mmalign.models.fingerprint import hash_local_weights
from mmalign.options.base import Options
from mmalign.options.training import RunOptions

# Options that change nothing but the time, such as fewer processes where memory was short, who is told of the run, and where a judge is.
_WITHOUT_EFFECT = (
    *("num_workers", "check_workers", "log_to", "log_project"),
    *("judge_url", "judge_key_env", "judge_timeout", "judge_retries", "judge_concurrency"),
)
_SECRET = ("token", "api_key", "password", "secret")


def describe_run(options: RunOptions, *, method: str) -> dict[str, Any]:
    """Record what a run is made of: method, options, hashes of data and of models in folders, version and commit."""
    record = build_record(options, method=method, data=hash_data_files(options.data))
    # For the first process alone, which compares them.
    return record | {"weights": _hash_models(options)} if is_first_process() else record


def _hash_models(options: RunOptions) -> dict[str, str]:
    """Hash the models that options name, as far as they are in folders."""
    named = {name: getattr(options, name, None) for name in ("model", "reference_model", "teacher_model")}
    named |= {f"teacher {name}".strip(): model for name, model in getattr(options, "teachers", {}).items()}
    # Policy and reference are often one checkpoint.
    hashes = {source: hash_local_weights(source) for source in {*named.values()} if source}
    return {name: weights for name, source in named.items() if source and (weights := hashes[source]) is not None}


def build_record(options: Options, *, method: str, data: Mapping[str, str]) -> dict[str, Any]:
    """The same where the hashes of the data are known: by name."""
    return {
        "method": method,
        "options": _without_secrets(plain_values(options)),
        "data": dict(data),
        "processes": _num_processes(),
        "mmalign": __version__,
        "commit": _commit(),
    }


def is_first_process() -> bool:
    """Say whether this is the process that writes for all; a launcher numbers them before they find each other."""
    return _num_processes() == 1 or int(os.environ.get("RANK", "0")) == 0


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def claim_folder(out: Path, record: dict[str, Any]) -> None:
    """Write the run's record, or check that the folder's own is the same: only then can a stopped run resume.

    Of several processes the first does it; where it fails, the launcher ends the others. Until ``claiming`` ends, no other run gets the
    folder; where the process dies, the system frees it.

    Raises:
        ValueError: If the folder holds a run with another method, other options, other data or another number of processes, or something
            else; or if another process is at work in it.
    """
    if not is_first_process():
        return
    # A kill may have left the record half written, and a run that was refused its list of broken rows.
    if not (out / RUN_FILE).is_file() and out.exists() and any(map(_is_kept, out.iterdir())):
        raise UserError(f"{out} is not empty and holds no run of mmalign; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if (out / RUN_FILE).is_file():
            before = read_record(out)
            # Records of earlier versions name no weights.
            held, wanted = (_identity(each, processes=record["processes"], weights=before.get("weights", {})) for each in (before, record))
            check_same(out, held, wanted, what="another run", next_step="choose another --out, or remove the folder")
        else:
            write_record(out, record)
        _hold(out)


_held: dict[Path, int] = {}
"""Records, by folder, that this process keeps open and locked."""


def _hold(out: Path) -> None:
    if out.resolve() in _held:
        return
    # NFS locks what is open for writing.
    record = os.open(out / RUN_FILE, os.O_RDWR)
    if not lock(record, wait=False):
        os.close(record)
        raise UserError(f"another process is at work in {out}; wait until it has ended, or choose another --out")
    _held[out.resolve()] = record


def _let_go() -> None:
    while _held:
        os.close(_held.popitem()[1])


# A worker that outlives a killed run for a moment must not keep its folder.
os.register_at_fork(after_in_child=_let_go)


def _is_kept(path: Path) -> bool:
    # What a cache holds is found by its content, whatever run it is of.
    passing = path.suffix == ".partial" or path.name.endswith(REJECTS_FILE) or path.name == "cache"
    return not passing and not (path.name == "checkpoints" and not any(path.iterdir()))


@contextlib.contextmanager
def claiming(out: Path, *drawn: str) -> Iterator[None]:
    """Give the folder free at the end of a run that claims it.

    Where the run is refused before it has saved anything, its record goes, since mended options are other options, and so does what was
    ``drawn`` by the options.
    """
    begun = {RUN_FILE, *drawn}

    def is_kept() -> bool:
        others = (out / RUN_FILE).is_file() and out.resolve() not in _held
        return others or not is_first_process() or any(_is_kept(path) for path in out.glob("*") if path.name not in begun)

    try:
        with freed_if_refused(*(out / name for name in (RUN_FILE, *drawn)), kept=is_kept):
            yield
    finally:
        if (record := _held.pop(out.resolve(), None)) is not None:
            os.close(record)


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a run's folder."""
    record = read_json_object(folder / RUN_FILE)
    if not (isinstance(record.get("method"), str) and isinstance(record.get("options"), dict) and isinstance(record.get("data"), dict)):
        raise UserError(f"{folder / RUN_FILE} is no record of a run: expected method, options and data; remove the folder and run again")
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record in one step, so that a stop leaves the old or the new one."""
    write_whole(folder / RUN_FILE, json.dumps(record, indent=1, sort_keys=True))


def _without_secrets(value: Any) -> Any:
    """Tokens and keys, such as ``trainer: {hub_token: ...}``, belong in no record: it becomes the card, which is published."""
    if not isinstance(value, dict):
        return value
    secret = {key for key, one in value.items() if str(key).lower().endswith(_SECRET) and isinstance(one, str)}
    return {key: "[secret]" if key in secret else _without_secrets(one) for key, one in value.items()}


def _identity(record: dict[str, Any], *, processes: int, weights: Iterable[str]) -> dict[str, Any]:
    """What of a record makes it another run, of the weights these; ``processes`` where it names no number of them."""
    return {
        "method": record["method"],
        **{name: value for name, value in record["options"].items() if name not in _WITHOUT_EFFECT},
        **{f"data file {name}": value for name, value in record["data"].items()},
        **{f"weights of {name}": record.get("weights", {}).get(name) for name in weights},
        # Their number decides which rows make a batch.
        "number of processes": record.get("processes", processes),
    }


def _commit() -> str | None:
    """The commit of the checkout that mmalign runs from; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    return subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
