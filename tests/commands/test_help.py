"""What a newcomer meets first: a quick import, and help without waiting that explains every option."""

import dataclasses
import re
import subprocess
import sys
import time

import pytest

from mmalign.cli import COMMANDS, main
from mmalign.config import read_help


def test_import_is_light() -> None:
    code = "import sys, mmalign; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.strip() == "[]"
    assert min(seconds) < 1.0


def test_help_of_every_command_needs_no_torch() -> None:
    code = """
import sys
from mmalign.cli import COMMANDS, main
for name in COMMANDS:
    try:
        main([*name.split(), "--help"])
    except SystemExit as stop:
        assert stop.code == 0, name
print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_is_no_error() -> None:
    """As head does."""
    command = [sys.executable, "-u", "-m", "mmalign", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    # Each entry begins at the margin; its text follows behind spaces or on the lines below.
    entries = re.split(r"\n  (?=-)", out)
    options_class = COMMANDS[name].options_class()
    texts = read_help(options_class)
    for option in dataclasses.fields(options_class):
        words = texts.get(option.name, "")
        assert len(words.split()) >= 2, f"{option.name} has no help"
        flag = "--" + option.name.replace("_", "-")
        entry = next((entry for entry in entries if re.match(rf"{flag}[ ,\n]", entry)), None)
        assert entry is not None, f"{flag} is not listed"
        assert words in " ".join(entry.split()), entry
