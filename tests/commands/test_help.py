"""What a newcomer meets first: a quick import, and help without waiting."""

import subprocess
import sys
import time


def test_import_is_light() -> None:
    code = "import sys, mmalign; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.strip() == "[]"
    assert min(seconds) < 1.0


def test_help_of_a_command_needs_no_torch() -> None:
    code = "import sys; from mmalign.cli import main\ntry: main(['train', 'preference', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--difficulty-mode" in done.stdout
