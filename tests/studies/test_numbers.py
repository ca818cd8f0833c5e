"""Numbers of finished runs: published in one file, and taken from it, so that a study goes on elsewhere."""

from pathlib import Path

import pytest

from mmalign.files import read_json
from scripts.studies.numbers import take_numbers, write_numbers
from scripts.studies.study import write_json

RUNS = {"cells/1/dpo.json": {"f1": 0.1 + 0.2}, "search/dpo/0.1_1e-4.json": {"f1": 2}, "mod/cells/1/sft.json": {"f1": 3.0, "by": {"a": 1}}}


def test_published_numbers_are_taken_where_runs_are_missing(tmp_path: Path) -> None:
    published = tmp_path / "docs" / "numbers" / "dpo.jsonl"
    for name, metrics in RUNS.items():
        write_json(tmp_path / "here" / name, metrics)
    (tmp_path / "here" / "cells" / "1" / "dpo.log.json").write_text("[]")
    write_json(tmp_path / "here" / "other" / "cells" / "1" / "dpo.json", {"f1": 1.0})
    write_numbers(tmp_path / "here", published, ("cells", "search", "mod/cells"))
    assert len(published.read_text().splitlines()) == len(RUNS), "one line per run of these folders, none for logs"

    write_json(tmp_path / "there" / "cells/1/dpo.json", {"f1": 9.0})
    assert take_numbers(published, tmp_path / "there") == len(RUNS) - 1
    found = {name: read_json(tmp_path / "there" / name) for name in RUNS}
    assert found == RUNS | {"cells/1/dpo.json": {"f1": 9.0}}, "a run of one's own is kept"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not"),
        ("[1]", "line 1: not"),
        ('{"run": "cells/a.json"}', "line 1: not"),
        ('{"run": "../a.json", "metrics": {}}', "not the file of a run"),
        ('{"run": "cells/a.py", "metrics": {}}', "not the file of a run"),
    ],
)
def test_other_files_are_refused(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SystemExit, match=said):
        take_numbers(path, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.py"))
    with pytest.raises(SystemExit, match="no numbers in"):
        take_numbers(tmp_path / "missing.jsonl", tmp_path / "out")
