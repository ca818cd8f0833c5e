"""Every command that a page shows is one that its program understands."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.page_commands import check_mentions, check_page, read_shown

DOCS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("scripts/*/*.md")]
PAGES = sorted(page for page in DOCS if list(read_shown(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    count, faults = check_page(page)
    assert not faults, "\n".join(faults)
    assert count


def test_commands_within_the_text_name_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [check_mentions(page) for page in DOCS]
    assert not (faults := [fault for _, faults in found for fault in faults]), "\n".join(faults)
    assert sum(count for count, _ in found) > 100
    page = tmp_path / "page.md"
    page.write_text("```\nblock\n```\n\nOne `mmalign train sft --model M --dada D`, two\n`python -m scripts.benchmarks.none --x 1`.\n")
    assert [fault.split(":")[1] for fault in check_mentions(page)[1]] == ["5", "6"]


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("mmalign train preference --modell M", "unknown option '--modell'; did you mean '--model'?"),
        ("mmalign train preference --model M --data d --out o --beta big", "beta is 'big'; expected float"),
        ("mmalign train preference --model M \\\n  --data d", "missing: --out"),
        ("mmalign train preferences ...", "no command mmalign train preferences"),
        ("mmalign train preference --noisy-gap hide ...", "noisy_gap is 'hide'; expected one of keep, drop, flip, smooth"),
        ("mkdir a && mmalign recipe show dadpo > b", "there is no recipe 'dadpo'"),
        ("mmalign train sft --config run.yaml", "config file not found: run.yaml"),
        ("torchrun --nproc-per-node 8 -m mmalign upcycle", "missing: --model, --out"),
        ("accelerate launch --config_file a.yaml -m mmalign upcycle ...", "no file ['a.yaml']"),
        ("python data_tools/convert_pairs.py bpo --out o", "missing: --files"),
        ("python data_tools/convert_all.py", "no program data_tools.convert_all"),
        ("python -m schedules.curry lists --model m --out o --stage 3", "unknown option '--stage'; did you mean '--stages'?"),
        ("python -m scripts.studies.da_dpo --seeds few", "unrecognized arguments: --seeds few"),
        ("python scripts/benchmarks/preference_step.py --model v32k --steps few", "invalid int value: 'few'"),
        ("make tests", "the Makefile has no target tests"),
        ("make test COUNT=3", "the Makefile has no variable COUNT"),
        ("scripts/da_dpo/run.sh llava-1.5-7b --sets bpo", "run.sh knows no --sets"),
        ("NAME=m sbatch scripts/launch/train_one_node.sbatch", "reads no NAME"),
        ("sbatch scripts/launch/train_one_node.sbatch --lora 2", "knows no --lora"),
        ("mmaling demo", "unknown command mmaling"),
    ],
)
def test_what_is_not_understood_is_found(command: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n```\n# first\nmake lint\n{command}   # a comment\n```\n")
    _, faults = check_page(page)
    assert len(faults) == 1, faults
    assert faults[0].startswith("page.md:6: ")
    assert fault in faults[0]
