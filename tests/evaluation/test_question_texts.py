"""Answers are held to the questions that their rows repeat, and known by them where files count otherwise."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.evaluation.answers import Answer, match_answers, read_answers
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.hallusionbench import load_hallusionbench
from mmalign.evaluation.mme import load_mme
from mmalign.evaluation.mmhal import load_mmhal
from mmalign.evaluation.pope import Pope, PopeQuestion, load_pope
from mmalign.evaluation.question_texts import align_parts, core_of

SUFFIX = "\nAnswer the question using a single word or phrase."


def read(path: Path, rows: Sequence[dict[str, Any]], benchmark: Benchmark) -> dict[str, str]:
    path.write_text("\n".join(map(json.dumps, rows)))
    return match_answers(benchmark.read_answers(path), required=benchmark.required(), known=benchmark.known())


def pope(**splits: Sequence[str]) -> Pope:
    items = [
        PopeQuestion(f"{split}/{i}", split, "a.jpg", f"Is there a {name} in the image?", i % 2 == 1)
        for split, names in splits.items()
        for i, name in enumerate(names, start=1)
    ]
    return Pope([], items)


def llava(names: Sequence[str]) -> list[dict[str, Any]]:
    """LLaVA's rows: the answer is the question's object, to be told apart."""
    return [
        {"question_id": i, "prompt": f"Is there a {name} in the image?{SUFFIX}", "text": f"{name} {i}", "answer_id": "x", "model_id": "m"}
        for i, name in enumerate(names, start=1)
    ]


RANDOM, POPULAR, ADVERSARIAL = ["dog", "boat", "dog", "cup"], ["dog", "person", "dog", "chair"], ["dog", "leash", "dog", "cat"]


def test_one_file_of_all_splits_whose_ids_count_on(tmp_path: Path) -> None:
    """Questions recur within a split and between splits: only the run of a whole split says what is what."""
    rows = llava([*ADVERSARIAL, *POPULAR, *RANDOM])
    whole = pope(random=RANDOM, popular=POPULAR, adversarial=ADVERSARIAL)
    got = read(tmp_path / "a.jsonl", rows, whole)
    assert [got[f"adversarial/{i}"] for i in (1, 2, 3, 4)] == ["dog 1", "leash 2", "dog 3", "cat 4"]
    assert [got[f"random/{i}"] for i in (1, 2, 3, 4)] == ["dog 9", "boat 10", "dog 11", "cup 12"]
    # Workers write rows in any order; their numbers tell it.
    random.Random(0).shuffle(rows)
    assert read(tmp_path / "a.jsonl", rows, whole) == got


def test_one_split_of_a_joint_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = llava([*ADVERSARIAL, *POPULAR, *RANDOM])
    assert list(read(tmp_path / "a.jsonl", rows, pope(popular=POPULAR)).values()) == ["dog 5", "person 6", "dog 7", "chair 8"]
    assert "8 of 12 rows answer questions of other files and are left out" in caplog.text
    # The first block of the file too, whose ids are the split's own.
    assert list(read(tmp_path / "a.jsonl", rows, pope(adversarial=ADVERSARIAL)).values())[:2] == ["dog 1", "leash 2"]


def test_answers_to_another_split_are_refused_with_both_texts(tmp_path: Path) -> None:
    message = (
        r"row 2 answers 'Is there a leash in the image\?.*, but question random/2 is 'Is there a boat in the image\?'; these are answers to"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl", llava(ADVERSARIAL), pope(random=RANDOM))
    ours = [{"id": f"random/{row['question_id']}", "prompt": row["prompt"], "response": "Yes"} for row in llava(ADVERSARIAL)]
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl", ours, pope(random=RANDOM))
    # A split that is there twice, of two models, is no answer to which one is meant.
    with pytest.raises(ValueError, match="but question random/1 is"):
        read(tmp_path / "a.jsonl", llava([*POPULAR[1:], *RANDOM, *RANDOM]), pope(random=RANDOM))


def test_a_joint_file_from_another_release_of_a_split(tmp_path: Path) -> None:
    """LLaVA's random split has fewer questions than the released one: which row is which can't be told."""
    rows = llava([*ADVERSARIAL, *POPULAR, *RANDOM[:1], *RANDOM[2:]])
    with pytest.raises(ValueError, match=r"but not the 4 questions from random/1 on \('Is there a dog in the image\?'\); give"):
        read(tmp_path / "a.jsonl", rows, pope(random=RANDOM, popular=POPULAR, adversarial=ADVERSARIAL))


def test_rows_without_ids_of_splits_in_another_order(tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "answer": row["text"]} for row in llava([*POPULAR, *RANDOM])]
    got = read(tmp_path / "a.jsonl", rows, pope(random=RANDOM, popular=POPULAR))
    assert (got["random/2"], got["popular/2"]) == ("boat 6", "person 2")


def test_rows_without_texts_are_known_by_id_alone(tmp_path: Path) -> None:
    rows = [{"question_id": i, "text": "Yes"} for i in (1, 2, 3, 4)]
    assert read(tmp_path / "a.jsonl", rows, pope(random=RANDOM)) == {f"random/{i}": "Yes" for i in (1, 2, 3, 4)}


def test_other_words_around_a_question_are_no_other_question() -> None:
    assert core_of("Is it a  Dog? Please answer yes or no.") == "is it a dog?"
    assert core_of("Describe this image.") == "describe this image."
    assert align_parts(["USER: <image>\nIs it A?\nASSISTANT:"], ["1"], [["a"]], {"a": "Is it a? Answer yes or no."}) == (["a"], [])
    assert align_parts([None], ["1"], [["a"]], {"a": "Is it a?"}) is None


def test_the_released_splits_in_one_file(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "benchmarks" / "pope"
    whole = load_pope(folder)
    order = [item for split in ("adversarial", "popular", "random") for item in whole.records if item.split == split]
    rows = [
        {"question_id": i, "prompt": item.text + SUFFIX, "text": "Yes" if item.is_yes else "No"} for i, item in enumerate(order, start=1)
    ]
    assert whole.score(read(tmp_path / "a.jsonl", rows, whole), mode="official")["pope/accuracy"] == 1.0
    one = load_pope(folder / "coco_pope_popular.json")
    assert one.score(read(tmp_path / "a.jsonl", rows, one), mode="official")["pope/accuracy"] == 1.0
    with pytest.raises(ValueError, match="these are answers to another set or split"):
        read(tmp_path / "a.jsonl", rows[:3000], one)


def test_llavas_rows_of_benchmarks_whose_ids_are_no_numbers(shared_data: Path, tmp_path: Path) -> None:
    for benchmark in (load_mmhal(shared_data / "benchmarks" / "mmhal"), load_hallusionbench(shared_data / "benchmarks" / "hallusionbench")):
        rows = [{"question_id": i, "prompt": q.prompt, "text": q.id, "image": q.image} for i, q in enumerate(benchmark.questions())]
        assert read(tmp_path / "a.jsonl", rows, benchmark) == {i: i for i in benchmark.required()}
        rows[5]["prompt"] = "What is this?"
        with pytest.raises(ValueError, match="none of .* answers belongs to this benchmark"):
            read(tmp_path / "a.jsonl", rows, benchmark)


def test_mme_rows_that_answer_neither_question(tmp_path: Path) -> None:
    asked = [("dog", "Yes"), ("cat", "No")]
    rows = [
        {"question_id": "existence/a.jpg", "category": "existence", "question": f"Is there a {name}? Please answer yes or no.", "answer": a}
        for name, a in asked
    ]
    (tmp_path / "mme.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mme = load_mme(tmp_path)
    given = [{"question_id": "existence/a.jpg", "prompt": f"Is there a {name}?{SUFFIX}", "text": a} for name, a in reversed(asked)]
    assert read(tmp_path / "a.jsonl", given, mme) == {"existence/a.jpg/1": "Yes", "existence/a.jpg/2": "No"}
    given[0]["prompt"] = f"Is there a bird?{SUFFIX}"
    with pytest.raises(ValueError, match=r"row 1 answers 'Is there a bird\?.*but question existence/a.jpg/1 is 'Is there a dog\?"):
        read(tmp_path / "a.jsonl", given, mme)


def test_order_without_texts_is_still_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"response": "x"}\n{"response": "y"}')
    assert read_answers(tmp_path / "a.jsonl", order=["a", "b"]) == [Answer("a", "x"), Answer("b", "y")]


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ({"id": "random/1", "image": "COCO_val2014_000000000009.jpg", "response": "Yes"}, True),
        ({"question_id": 1, "image_path": "/coco/val2014/COCO_val2014_000000000009.jpg", "text": "Yes"}, True),
        ({"image": "COCO_val2014_000000000009.jpg", "question": "Is there a dog in the image?", "answer": "Yes"}, True),
        ({"id": "random/1", "image": "val2014/COCO_val2014_000000000001.jpg", "response": "Yes"}, False),
        ({"id": "random/1", "image": "0009.jpg", "response": "Yes"}, False),
        ({"id": "random/1", "image": None, "response": "Yes"}, False),
    ],
)
def test_a_row_that_names_its_image_is_held_to_it(tmp_path: Path, row: dict[str, Any], other: bool) -> None:
    """Questions of other images are the same; a name that is none of COCO's may have been given to a copy."""
    benchmark = Pope([], [PopeQuestion("random/1", "random", "COCO_val2014_000000000001.jpg", "Is there a dog in the image?", True)])
    if not other:
        assert read(tmp_path / "a.jsonl", [row], benchmark) == {"random/1": "Yes"}
        return
    with pytest.raises(ValueError, match=r"row 1 is about image .*0009.jpg, but question random/1 is about .*0001.jpg; these are"):
        read(tmp_path / "a.jsonl", [row], benchmark)
