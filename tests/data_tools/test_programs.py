"""Every program: help at once, without the heavy libraries."""

import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from data_tools.program import run_program
from mmalign.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "data_tools"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))


def test_all_programs_are_known() -> None:
    assert PROGRAMS == [
        "best_of_n",
        "coco_objects",
        "collect_traces",
        "convert_chats",
        "convert_pairs",
        "convert_pictures",
        "inject_errors",
        "pair_pictures",
        "sample_pairs",
        "search_pairs",
        "train_reader",
        "validate_pairs",
        "weaken_images",
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_light_and_every_option_explains_itself(name: str) -> None:
    code = (
        f"import sys\nfrom data_tools.{name} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent).stdout
    assert out.startswith(f"usage: {name}.py")
    assert out.rstrip().endswith("[]")
    lines = out.splitlines()
    for number, line in enumerate(lines):
        # The help stands behind the option, or in the next line where the option is long.
        if line.startswith("  --"):
            assert "  " in line.strip() or lines[number + 1].startswith(" " * 20), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("convert_pairs trl d --out o --max-words 0", "max_words is 0; expected at least 1"),
        ("convert_chats llava d --out o --shard-rows 0", "shard_rows is 0; expected at least 1"),
        ("inject_errors d --mode answer --llm l --out o --max-new-tokens 0", "max_new_tokens is 0; expected at least 1"),
        ("inject_errors d --mode answer --llm l --out o --max-reject-share 5", "max_reject_share is 5.0; expected a share, from 0 to 1"),
        ("weaken_images d --model m --out o --max-new-tokens -1", "max_new_tokens is -1; expected at least 1"),
        ("sample_pairs d --model m --scorer truth --out o --max-new-tokens 0", "max_new_tokens is 0; expected at least 1"),
        ("sample_pairs d --model m --scorer truth --out o --max-reject-share 2", "max_reject_share is 2.0; expected a share, from 0 to 1"),
        ("search_pairs d --model m --value self --out o --batch-size 0", "batch_size is 0; expected at least 1"),
        ("collect_traces d --teacher world --out o --max-reject-share -1", "max_reject_share is -1.0; expected a share, from 0 to 1"),
        ("weaken_images d --model m --out o --seed -1", "seed is -1; expected at least 0"),
        ("best_of_n d --out o --seed -1", "seed is -1; expected at least 0"),
    ],
)
def test_numbers_that_options_cannot_have_are_refused_before_anything_is_read(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = words.split()
    with pytest.raises(SystemExit) as stop:
        import_module(f"data_tools.{name}").main(rest)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a program that can be told nothing."""


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        (UserError("data is 'x'; expected a file"), 2, "program.py: error: data is 'x'; expected a file"),
        (PermissionError(13, "Permission denied", "out"), 1, "program.py: failed: [Errno 13] Permission denied: 'out'"),
    ],
)
def test_faults_are_told_as_mmalign_tells_them(capsys: pytest.CaptureFixture[str], fault: Exception, status: int, told: str) -> None:
    def broken(options: NoOptions) -> None:
        raise fault

    assert run_program(broken, NoOptions, [], file="program.py", doc=None) == status
    assert capsys.readouterr().err.strip() == told


def test_a_users_fault_is_traced_on_request() -> None:
    def broken(options: NoOptions) -> None:
        raise UserError("data is 'x'; expected a file")

    with pytest.raises(UserError):
        run_program(broken, NoOptions, ["--traceback"], file="program.py", doc=None)
