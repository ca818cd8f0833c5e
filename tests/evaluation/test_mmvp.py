"""MMVP: pairs by hand, both readings of an answer, the real file's labels, and the embedded world's contrast images."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.choice import parse_official, parse_strict
from mmalign.evaluation.intervals import compute_intervals
from mmalign.evaluation.mmvp import Mmvp, load_mmvp
from mmalign.options.world import WorldOptions
from mmalign.worlds.build import build_world

HEADER = "Index,Question,Options,Correct Answer\n"
CSV = HEADER + "".join(
    f'{i},"{question}",{options},{answer}\n'
    for i, question, options, answer in (
        (1, "Is it open, or closed?", "(a) Open (b) Closed", "(a)"),
        (2, "Is it open, or closed?", "(a) Open (b) Closed", "(b)"),
        (3, "Are there keys?", "(a) Yes (b) No", "(a)"),
        (4, "Are there keys?", "(a) Yes (b) No", "(b)"),
        (5, "How many?", "(a) One (b) More than one", "(b)"),
        (6, "How many?", "(a) One (b) More than one", "(a)"),
    )
)
CONTRAST = [
    {"id": f"{pair}-{side}", "pair": pair, "image": f"{pair}-{side}.png", "question": question, "options": options, "answer": options[side],
     "kind": kind}
    for pair, question, options, kind in (
        ("a", "What colour is the star?", ["Red", "Blue"], "recoloured"), ("b", "Is there a star?", ["No", "Yes"], "added"),
    )
    for side in (0, 1)
]  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Mmvp:
    (tmp_path / "Questions.csv").write_text(CSV, encoding="utf-8-sig")
    return load_mmvp(tmp_path)


@pytest.fixture
def contrast(tmp_path: Path) -> Mmvp:
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CONTRAST))
    return load_mmvp(tmp_path)


def test_pairs_by_hand(bench: Mmvp) -> None:
    assert bench.required() == ["1", "2", "3", "4", "5", "6"]
    question = bench.questions()[0]
    assert (question.image, question.prompt) == ("1.jpg", "Is it open, or closed? (a) Open (b) Closed")
    answers = dict(zip(bench.required(), ["(a)", "(b) Closed", "(a)", "(a)", "(b)", "hm"], strict=True))
    got = bench.score(answers, mode="strict")
    # Right: 1, 2, 3, 5. Both right: the first pair. Alike: the second; the third is half unknown.
    assert (got["mmvp/accuracy"], got["mmvp/pair"]) == pytest.approx((4 / 6, 1 / 3))
    assert (got["mmvp/alike"], got["mmvp/unknown"]) == pytest.approx((1 / 3, 1))
    assert (got["mmvp/always_first/accuracy"], got["mmvp/always_first/pair"]) == (0.5, 0)
    assert (got["mmvp/always_second/accuracy"], got["mmvp/always_second/pair"]) == (0.5, 0)
    items = bench.items(answers, mode="strict")
    assert [(item.label, item.correct, item.cluster) for item in items[3:5]] == [("No", False, "2"), ("More than one", True, "3")]
    # A pair with one answer is none.
    assert bench.score({"1": "(a)", "3": "(a)", "4": "(b)"}, mode="strict")["mmvp/pair"] == 1.0


@pytest.mark.parametrize(
    ("answer", "official", "strict"),
    [
        ("(a)", 0, 0),
        ("B", 1, 1),
        ("b.", 1, 1),
        ("(b) Closed", 1, 1),
        ("The answer is B.", 1, 1),
        ("Option (a)", 0, 0),
        ("It is closed.", None, 1),
        ("OPEN", None, 0),
        # The article, the end of a word and a first letter are letters to the official parser.
        ("A closed one.", 0, 1),
        ("Its area is open", 0, 0),
        ("Barely closed", 1, 1),
        # What is denied is not named, and both letters name none.
        ("It is open, not closed.", None, 0),
        ("The door isn't open", None, None),
        ("Not (a). (b)", 1, 1),
        ("Between (a) and (b), it is (b)", 0, 1),
        ("Either (a) or (b).", 0, None),
        # Options that are only repeated, Markdown around the letter, a comma behind it.
        ("(a) Open (b) Closed. The answer is (b)", 0, 1),
        ("(a) Open (b) Closed", 0, None),
        ("Option A: Open. Option B: Closed. It is open.", 0, 0),
        ("**Answer:** B", 1, 1),
        ("The answer is **b**.", None, 1),
        ("B, as the lid shows", 1, 1),
        ("B\n\nThe lid of box a is up.", 1, 1),
        ('{"answer": "b"}', None, 1),
        ("Answer\uff1aB", 1, 1),
        ("A/B", 1, None),
        ("Option A? No, option B.", 0, 1),
        ("I choose a closed one", 0, 1),
        ("openly", None, None),
        ("", None, None),
    ],
)
def test_both_readings(answer: str, official: int | None, strict: int | None) -> None:
    assert (parse_official(answer), parse_strict(answer, ("Open", "Closed"))) == (official, strict)


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (("One", "More than one"), "There is more than one.", 1),
        (("One", "More than one"), "one", 0),
        (("Yes", "No"), "No, yes means the other.", 1),
        (("No", "Yes"), "Yes", 1),
        (("Correct", "Incorrect"), "Incorrect.", 1),
        (("At the top left", "At the top right"), "At the top right.", 1),
    ],
)
def test_words_of_options(options: tuple[str, str], answer: str, expected: int) -> None:
    assert parse_strict(answer, options) == expected


def test_contrast_images_are_asked_without_letters(contrast: Mmvp) -> None:
    assert [(question.prompt, question.image) for question in contrast.questions()][::3] == [
        ("What colour is the star?", "a-0.png"), ("Is there a star?", "b-1.png")
    ]  # fmt: skip
    answers = dict(zip(contrast.required(), ["Red.", "Blue.", "Yes.", "Yes."], strict=True))
    for mode in ("official", "strict"):
        got = contrast.score(answers, mode=mode)  # type: ignore[arg-type]
        assert (got["mmvp/pair"], got["mmvp/accuracy"], got["mmvp/alike"]) == (0.5, 0.75, 0.5)
        assert (got["mmvp/recoloured/pair"], got["mmvp/added/pair"]) == (1.0, 0.0)
        assert (got["mmvp/always_first/accuracy"], got["mmvp/always_first/pair"]) == (0.5, 0.0)
        assert not any("corrected" in key for key in got)


def test_a_judge_is_asked_whether_answer_and_label_agree(bench: Mmvp) -> None:
    answers = dict.fromkeys(bench.required(), "It is open.")
    prompts = bench.judge_prompts(answers)
    assert "Question: Is it open, or closed? (a) Open (b) Closed\nRight answer: (b) Closed\nResponse: It is open.\n" in prompts["2"]
    judgements = dict(zip(bench.required(), ["yes", "Yes", "Yes.", "yes", "no", "unclear"], strict=True))
    official, strict = (bench.score(answers, mode=mode, judgements=judgements) for mode in ("official", "strict"))  # type: ignore[arg-type]
    # The original script reads a yes alone; whoever reads on finds another one, and a second pair.
    assert (official["mmvp/accuracy"], official["mmvp/pair"], official["mmvp/unknown"]) == pytest.approx((3 / 6, 1 / 3, 2))
    assert (strict["mmvp/accuracy"], strict["mmvp/pair"], strict["mmvp/unknown"]) == pytest.approx((4 / 6, 2 / 3, 1))
    assert not any("corrected" in key and "always" not in key for key in official)
    assert "mmvp/alike" not in official
    assert (bench.variant(judged=True), bench.variant(judged=False)) == ("judge", "rule")


def test_pairs_are_resampled_as_one(bench: Mmvp) -> None:
    """Answered alike, every pair has one right answer of two, whichever pairs are drawn."""
    intervals = compute_intervals(Mmvp, bench.items(dict.fromkeys(bench.required(), "(a)"), mode="strict"), resamples=200)
    assert (intervals["mmvp/accuracy"].low, intervals["mmvp/accuracy"].high) == (0.5, 0.5)
    assert intervals["mmvp/pair"].high == 0
    right = dict(zip(bench.required(), ["(a)", "(b)", "(a)", "(a)", "(a)", "(a)"], strict=True))
    pair = compute_intervals(Mmvp, bench.items(right, mode="strict"), resamples=500)["mmvp/pair"]
    assert (pair.low, pair.high) == (0, 1)


def test_the_real_file_with_labels_as_published_and_corrected(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "benchmarks" / "mmvp"
    bench = load_mmvp(source)
    with (source / "Questions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert bench.required() == [row["Index"] for row in rows] == [str(i) for i in range(1, 301)]
    assert [question.prompt for question in bench.questions()] == [f"{row['Question']} {row['Options']}" for row in rows]
    published = {row["Index"]: row["Correct Answer"] for row in rows}
    corrected = published | {"99": "(b)", "100": "(a)", "279": "(b)", "280": "(a)"}
    keys = ["mmvp/pair", "mmvp/accuracy", "mmvp/corrected/pair", "mmvp/corrected/accuracy"]
    for answers, expected in ((published, [1, 1, 148 / 150, 296 / 300]), (corrected, [148 / 150, 296 / 300, 1, 1])):
        for mode in ("official", "strict"):
            got = bench.score(answers, mode=mode)  # type: ignore[arg-type]
            assert [got[key] for key in keys] == pytest.approx(expected)
    got = bench.score(dict.fromkeys(published, "(a)"), mode="official")
    assert [got[key] for key in keys] == [0, 0.5, 0, 0.5]
    # The file of the hub is corrected already: both readings are the same.
    with (tmp_path / "Questions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "Correct Answer": corrected[row["Index"]]} for row in rows)
    again = load_mmvp(tmp_path).score(corrected, mode="strict")
    assert [again[key] for key in keys] == pytest.approx([148 / 150, 296 / 300, 1, 1])


def test_the_questions_own_table_with_the_responses(bench: Mmvp, tmp_path: Path) -> None:
    """Rows go by their Index, in whatever order they stand."""
    lines = [f'{one.id},"{one.text}",(a),said {one.id}' for one in reversed(bench.records)]
    (tmp_path / "answers.csv").write_text("\n".join(["Index,Question,Correct Answer,response", *lines]) + "\n")
    answers = read_answers(tmp_path / "answers.csv", bench.form, order=bench.required(), texts=bench.texts())
    assert match_answers(answers, required=bench.required()) == {i: f"said {i}" for i in bench.required()}


def test_answers_of_the_original(bench: Mmvp, tmp_path: Path) -> None:
    replies = ["A", "B", "(a)", "No", "b", "a"]
    rows = [
        {"question_id": int(one.id), "prompt": f"{one.text}\nAnswer with the letter.", "answer": "(a)", "response": reply}
        for one, reply in zip(bench.records, replies, strict=True)
    ]
    (tmp_path / "answer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = read_answers(tmp_path / "answer.jsonl", bench.form, order=bench.required(), texts=bench.texts())
    assert list(match_answers(answers, required=bench.required()).values()) == replies
    rows[0]["prompt"] = "Are there keys?"
    (tmp_path / "answer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"row 1 answers 'Are there keys\?', but question 1 is 'Is it open, or closed\?'"):
        read_answers(tmp_path / "answer.jsonl", bench.form, order=bench.required(), texts=bench.texts())


def test_the_images_of_the_release_lie_in_its_folder(bench: Mmvp, tmp_path: Path) -> None:
    assert bench.images_in(tmp_path) == tmp_path / "images"
    (tmp_path / "MMVP Images").mkdir()
    assert bench.images_in(tmp_path) == tmp_path / "MMVP Images"


def test_a_world_is_evaluated_by_true_answers_and_by_a_model(
    tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = build_world(
        WorldOptions(out=tmp_path / "w", num_scenes=2, num_pairs=2, num_eval_scenes=10, num_contrast=1, num_workers=1, image_size=32)
    )
    data = world / "eval" / "contrast"
    bench = load_mmvp(data)
    true = {row["id"]: f"{row['answer']}." for row in map(json.loads, (data / "questions.jsonl").read_text().splitlines())}
    got = bench.score(true, mode="official")
    assert len(true) == 20
    assert {value for key, value in got.items() if key.endswith("pair") and "always" not in key} == {1.0}
    assert {key for key in got if key.endswith("ed/pair") and "always" not in key} == {
        f"mmvp/{kind}/pair" for kind in ("swapped", "removed", "added", "moved", "recoloured")
    }
    words = ["evaluate", "mmvp", "--data", str(data), "--model", str(tiny_llava_dir), "--max-new-tokens", "2", "--out", str(tmp_path / "o")]
    assert main([*words, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    # The model is random, and says nothing of the kind.
    assert (result["num_answers"], result["mmvp/pair"]) == (20, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "holds no rows"),
        ("Index,Question\n1,Is it?\n", "row 1 has no Options; it has Index, Question"),
        (HEADER + '1,Is it?,"(a) Yes",(a)\n', r"row 1: Index, Options and Correct Answer are 1, '\(a\) Yes' and '\(a\)'"),
        (HEADER + "1,Is it?,(a) Yes (b) No,yes\n", r"expected a number, \(a\) ... \(b\) ..., and \(a\) or \(b\)"),
        (HEADER + "1,Is it?,(a) Yes (b) No,(a)\n", "1 pairs of .* have not two questions: 1"),
        (HEADER + "1,Is it?,(a) Yes (b) No,(a)\n" * 2, r"holds 1 questions twice \(first: 1\)"),
        (HEADER + '1,"Is it?\n', "can't be read as CSV: unexpected end of data"),
    ],
)
def test_broken_releases(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Questions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_mmvp(tmp_path)


def test_broken_contrast_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no questions at .*: expected MMVP's Questions.csv, or questions.jsonl"):
        load_mmvp(tmp_path)
    (tmp_path / "questions.jsonl").write_text(json.dumps({**CONTRAST[0], "answer": "Green"}) + "\n")
    with pytest.raises(ValueError, match=r"options and answer are \['Red', 'Blue'\] and 'Green'; expected two texts and one of them"):
        load_mmvp(tmp_path)
