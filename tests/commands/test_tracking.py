"""``--log-to``: real trackers get what the log has, under its names, with answers in a table; the run stays the same."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.cli import main
from mmalign.errors import UserError
from mmalign.training import tracking
from tests.commands.test_train_eval import bench as bench
from tests.commands.test_train_eval import command, read_log, scoring
from tests.commands.training import train

NOT_NUMBERS = {"step", "epoch"}


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'mmalign[{package}]'")


def logged(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of everything in the log."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in read_log(out):
        for key, value in entry.items():
            if key not in NOT_NUMBERS:
                found.setdefault(key, []).append((entry["step"], value))
    return found


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    return events.Reload()


def test_tensorboard_has_the_log_and_the_answers(tiny_llava_dir: Path, pairs: Path, bench: Path, tmp_path: Path) -> None:
    needs("tensorboard")
    words = [*command(tiny_llava_dir, pairs, tmp_path / "tracked", *scoring(bench)), "--log-to", "tensorboard"]
    assert main(words) == 0
    events = read_events(tmp_path / "tracked" / "tensorboard")
    for name, values in logged(tmp_path / "tracked").items():
        assert [(one.step, pytest.approx(one.value, rel=1e-5)) for one in events.Scalars(name)] == values, name
    tables = events.Tensors("samples/pope/text_summary")
    assert [one.step for one in tables] == [2, 4, 5]
    text = tables[-1].tensor_proto.string_val[0].decode()
    items = [json.loads(line) for line in (tmp_path / "tracked" / "eval" / "step-5" / "pope_items.jsonl").read_text().splitlines()]
    assert text.count("\n") == 1 + len(items)
    assert all(item["question"] in text for item in items)
    assert len(events.Images("samples/chair/2")) == 3
    assert main(command(tiny_llava_dir, pairs, tmp_path / "plain", *scoring(bench))) == 0
    plain, tracked = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "tracked"))
    assert all(torch.equal(plain[name], tracked[name]) for name in plain)


def test_a_run_resumes_without_the_tracker_and_with_it(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    needs("tensorboard")
    first = command(tiny_llava_dir, pairs, tmp_path / "out")
    first[first.index("--max-steps") + 1] = "5"
    killed = "import sys, os; from transformers import TrainerCallback as C; from mmalign.training import checkpoints as c;\n"
    killed += "C.on_step_end = lambda self, a, s, control, **k: os._exit(9) if s.global_step == 4 else control\n"
    killed += "from mmalign.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", killed, *first, "--log-to", "tensorboard"], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr[-2000:]
    assert main([*first, "--log-to", "tensorboard"]) == 0
    events = read_events(tmp_path / "out" / "tensorboard")
    # Of the killed run, what stood before its last checkpoint, of step 2, may be there or not; nothing is there twice.
    steps = [one.step for one in events.Scalars("loss")]
    assert len(steps) == len(set(steps))
    assert steps[-3:] == [3, 4, 5]
    assert main(first) == 0, "the finished run, asked for again without a tracker"


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_other_trackers_run_offline(package: str, tiny_llava_dir: Path, pairs: Path, bench: Path, tmp_path: Path) -> None:
    needs(package)
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio")}
    words = [*command(tiny_llava_dir, pairs, tmp_path / "out", *scoring(bench)), "--log-to", package, "--log-project", "tests"]
    done = subprocess.run(
        [sys.executable, "-m", "mmalign", *words], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if package == "wandb":
        (held,) = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
        content = held.read_bytes()
        assert all(name.encode() in content for name in ("rewards/margin", "eval/pope/f1", "samples/pope"))
        return
    read = "import json; from trackio.sqlite_storage import SQLiteStorage as s; "
    read += "print(json.dumps(s.get_logs('tests', s.get_runs('tests')[0]), default=str))"
    shown = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    entries = json.loads(shown.stdout.splitlines()[-1])
    margins = [(entry["step"], entry["rewards/margin"]) for entry in entries if "rewards/margin" in entry]
    assert margins == [(step, pytest.approx(value)) for step, value in logged(tmp_path / "out")["rewards/margin"]]
    tables = [entry["samples/pope"] for entry in entries if "samples/pope" in entry]
    assert len(tables) == 3
    assert len(tables[0]["_value"]) == 6


def test_a_tracker_that_is_not_installed_is_named_before_the_rows_are_read(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--log-to", "wandb", kind="preference") == 2
    assert "--log-to wandb needs the package wandb" in capsys.readouterr().err
    with pytest.raises(UserError, match="pip install 'mmalign\\[wandb\\]'"):
        tracking.check_trackers(["wandb"])
