"""Tables, by hand."""

from mmalign.tables import markdown_table, text_table


def test_columns_are_aligned_and_a_heading_may_be_wide() -> None:
    rows = [["", "a", "note"], ["a heading wider than all"], ["  x", 1.5, "yes"], ["longer", 10, ""], ["short", 2]]
    assert text_table(rows, text=(0, 2)).splitlines() == [
        "          a  note",
        "a heading wider than all",
        "  x     1.5  yes",
        "longer   10",
        "short     2",
    ]
    assert text_table([["only"]]) == "only"
    assert text_table([]) == ""


def test_markdown() -> None:
    assert markdown_table(["arm", "s", "range"], [["a", 1, "1 to 2"]], text=(0, 2)) == (
        "| arm | s | range |\n|---|---:|---|\n| a | 1 | 1 to 2 |"
    )
    assert markdown_table(["arm", "x"], [["a|b"]]) == "| arm | x |\n|---|---:|\n| a\\|b |  |"
