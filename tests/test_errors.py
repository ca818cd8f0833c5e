"""What a program says of the faults of its user and of the machine."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.errors import run_and_tell


def test_ctrl_c_is_told_in_a_line_and_ends_the_program_by_its_signal() -> None:
    # What starts the tests in the background has Ctrl-C ignored, and a program takes that over.
    code = "from mmalign.errors import run_and_tell\nimport signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "run_and_tell(lambda: signal.raise_signal(signal.SIGINT), prog='mmalign train sft', traced=False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-2, "mmalign train sft: interrupted; what is finished is kept\n")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_place_of_a_folder_is_the_users_fault(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run_and_tell((tmp_path / name).mkdir, prog="mmalign evaluate", traced=False) == 2
    assert f"'{tmp_path}/{name}'; a file stands where a folder is expected, choose another path" in capsys.readouterr().err


def test_what_a_terminal_has_no_letters_for_is_printed_in_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert run_and_tell(lambda: print("F1 \u2191, saved in caf\udce9"), prog="mmalign report eval", traced=False) == 0
    assert shown.getvalue() == b"F1 \\u2191, saved in caf\\udce9\n"
