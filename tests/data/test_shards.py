"""Shards of plain numbers: stopped, split and resumed, they end as the same files."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from mmalign.data.rejects import Rejects
from mmalign.data.shards import Advance, Shards, Share, parse_share, read_lines, write_lines


def write_numbers(rows: range, path: Path, advance: Advance) -> None:
    """A line for each row; every seventh is broken."""
    write_lines(path, [{"index": index, **({"reason": "a seventh"} if index % 7 == 0 else {"square": index**2})} for index in rows])
    advance(len(rows))


def read_broken(path: Path) -> Iterable[tuple[str, str]]:
    return [(str(line["index"]), line["reason"]) for line in read_lines([path]) if "reason" in line]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_item_is_in_one_part() -> None:
    for count in (1, 2, 3, 7):
        parts = [list(Share(index, count).take(range(10))) for index in range(count)]
        assert sorted(item for part in parts for item in part) == list(range(10))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parse_share("2/3") == Share(1, 3)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/N with i from 1 to N, such as 1/8"):
        parse_share(text)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    list(Shards(tmp_path / "whole", 25, 10).finish(write_numbers, label="numbers"))
    return contents(tmp_path / "whole")


def test_each_file_holds_its_rows(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert sorted(whole) == ["000000000.jsonl", "000000010.jsonl", "000000020.jsonl"]
    shards = Shards(tmp_path / "whole", 25, 10)
    assert [line["index"] for line in read_lines(shards.paths())] == list(range(25))
    assert shards.rows(shards.paths()[-1]) == range(20, 25)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_parts_writes_the_same_files(tmp_path: Path, whole: dict[str, bytes], count: int) -> None:
    shards = Shards(tmp_path / "parts", 25, 10)
    for index in reversed(range(count)):
        list(shards.finish(write_numbers, label="numbers", share=Share(index, count)))
    assert contents(tmp_path / "parts") == whole


def test_a_stopped_run_writes_what_is_missing_and_checks_what_is_there(tmp_path: Path, whole: dict[str, bytes]) -> None:
    shards, written, checked = Shards(tmp_path / "stopped", 25, 10), [], []
    stale = shards.paths()[1]
    next(shards.finish(write_numbers, label="numbers"))

    def fail(rows: range, path: Path, advance: Advance) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(shards.finish(fail, label="numbers"))
    assert list(contents(tmp_path / "stopped")) == ["000000000.jsonl"]

    def write(rows: range, path: Path, advance: Advance) -> None:
        written.append(rows)
        write_numbers(rows, path, advance)

    def keep(path: Path) -> bool:
        checked.append(path)
        return path != stale

    for path in (None, stale):
        if path:
            path.write_text("stale")
        list(shards.finish(write, label="numbers", keep=keep))
        assert contents(tmp_path / "stopped") == whole
    assert written == [range(10, 20), range(20, 25), range(10, 20)]
    assert checked == [*shards.paths()[:1], *shards.paths()]


def test_broken_rows_of_all_files_are_collected_and_too_many_stop_it_early(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "some", 25, 10)
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.2)
    shards.reject_broken(shards.finish(write_numbers, label="numbers"), read_broken, rejects)
    assert [line["id"] for line in read_lines([rejects.path])] == ["0", "7", "14", "21"]
    many = Shards(tmp_path / "many", 250, 10)
    with pytest.raises(ValueError, match="3 of 20 rows are broken"):
        many.reject_broken(many.finish(write_numbers, label="numbers"), read_broken, Rejects(tmp_path / "r.jsonl", max_share=0.1))
    assert [path.is_file() for path in itertools.islice(many.paths(), 3)] == [True, True, False]
