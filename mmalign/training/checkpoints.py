"""Checkpoints that can be trusted: a manifest is written last, and resume takes the newest that verifies."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from mmalign.errors import UserError
from mmalign.files import hash_file, read_json_object, write_whole

MANIFEST = "manifest.json"


class ManifestCallback(TrainerCallback):
    """After each save, writes the size and hash of every file of the checkpoint: a killed save has no manifest.

    Then it deletes the oldest checkpoints, so that one that is whole is there at every moment.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the manifest on the process that writes files, once all have written theirs."""
        if state.is_world_process_zero:
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            rotate_checkpoints(output_dir=args.output_dir, save_total_limit=args.save_total_limit, use_mtime=True)


def write_manifest(folder: Path) -> None:
    """Hash every file below ``folder`` into its manifest, atomically."""
    entries = {str(path.relative_to(folder)): _entry(path) for path in _files(folder)}
    write_whole(folder / MANIFEST, json.dumps(entries, indent=1, sort_keys=True))


def verify_checkpoint(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as it was written."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return "it was not saved to its end"
    try:
        entries = read_json_object(manifest).items()
    except UserError:
        return "its manifest is damaged"
    for name, expected in entries:
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if _entry(path) != expected:
                return f"{name} is damaged"
        except (OSError, ValueError) as error:
            return f"{name[:80]} can't be read ({error})"
    return None


def find_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies.

    Returns:
        Its folder, or None; and a line for each newer one that was passed over.
    """
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    passed_over: list[str] = []
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        reason = verify_checkpoint(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"{folder}: {reason}")
    return None, passed_over


def _files(folder: Path) -> list[Path]:
    # training_args.bin is a pickle of arbitrary classes and is never read on resume.
    ignored = {MANIFEST, "training_args.bin"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ignored and path.suffix != ".partial")


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path)}
