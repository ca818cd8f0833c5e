"""Schedules hold scores and choices in memory; images, pictures and paths are read one row at a time."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from schedules.curry import cut_lists, cut_pairs
from schedules.iterate import choose_pairs, make_pairs
from schedules.iterate_options import IterateOptions
from schedules.kinds import Lists
from schedules.rounds_of_words import Words


class Picture:
    """Counts how many there are."""

    alive, most = 0, 0

    def __init__(self) -> None:
        Picture.alive += 1
        Picture.most = max(Picture.most, Picture.alive)

    def __del__(self) -> None:
        Picture.alive -= 1


def test_lists_are_read_one_at_a_time() -> None:
    """Also to choose pairs, and to change scores."""

    def read(number: int) -> dict[str, Any]:
        return {"id": f"q{number}", "images": [Picture()], "prompt": "q", "responses": ["a", "b"]}

    lists = Lists(read, [[float(number % 3), 1.0] for number in range(30)])
    options = IterateOptions(sources=[Path("a")], model="m", out=Path("o"), sample="")
    changed = lists.with_scores(lambda row: [2 * score for score in row["scores"]])
    assert [row["id"] for row in changed.differing()] == [f"q{number}" for number in range(30) if number % 3 != 1]
    pairs = make_pairs(changed, choose_pairs(changed, options), Words(options))
    expected = [(f"q{number}/0", 2.0 * max(number % 3, 1), 2.0 * min(number % 3, 1)) for number in range(30) if number % 3 != 1]
    assert [(pair["id"], pair["score_chosen"], pair["score_rejected"]) for pair in pairs] == expected
    # The one before is let go of when the next one is there.
    assert Picture.most <= 2


def test_stages_of_a_curriculum_are_views() -> None:
    """Its stages are views of the data, with the images that are there."""
    good = {"id": 7, "images": ["a.png"], "prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2.0]}
    lists = Dataset.from_list([{**good, "images": [f"{number}.png"]} for number in range(3)])
    (stage,) = cut_lists(lists, 1)
    assert [(row["images"], row["chosen"][0]["content"], row["score_rejected"]) for row in stage] == [
        ([f"{number}.png"], "b", 1.0) for number in range(3)
    ]
    pairs = Dataset.from_list([{"images": [f"{number}.png"], "difficulty": float(number % 2)} for number in range(4)])
    stages = cut_pairs(pairs, 2, by="difficulty")
    assert all(stage.data.nbytes == pairs.data.nbytes for stage in stages)
    assert [stage["images"][:] for stage in stages] == [[["0.png"], ["2.png"]], [["1.png"], ["3.png"]]]
