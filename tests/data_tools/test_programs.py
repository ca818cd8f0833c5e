"""Every program: help at once, without the heavy libraries."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "data_tools"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))


def test_all_programs_are_known() -> None:
    assert PROGRAMS == ["coco_objects", "convert_pairs", "inject_errors", "sample_pairs", "validate_pairs", "weaken_images"]


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
