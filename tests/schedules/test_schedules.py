"""Curriculum and rounds: what is chosen, by hand; runs on a tiny world; staged references; resume."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from data_tools.did import did_weights
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_list, read_pair
from mmalign.errors import UserError
from schedules.curry import cut_lists, cut_pairs, rank_pairs
from schedules.curry import main as curry
from schedules.iterate import draw_pairs, train_pairs
from schedules.iterate import main as iterate
from schedules.iterate_options import IterateOptions
from schedules.kinds import Lists
from schedules.rounds_of_words import Words, forwarded
from schedules.selection import demote_repetitions, repeats, select_pairs
from schedules.stages import option_values, write_rows
from tests.data_files import save_rows
from tests.tiny_models import list_rows, pair_rows

TRAIN = "--learning-rate 1e-3 --batch-size 4 --max-steps 2 --logging-steps 1"


@pytest.mark.parametrize(
    ("scores", "stages", "expected"),
    [
        ([4.0, 3.0, 2.0, 1.0], 3, [(0, 3), (0, 2), (0, 1)]),
        ([1.0, 4.0, 3.0, 2.0], 3, [(1, 0), (1, 3), (1, 2)]),
        ([4.0, 4.0, 1.0], 2, [None, (0, 2)]),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 2, [(0, 4), (0, 1)]),
        ([2.0, 2.0], 1, [None]),
        ([1.0, 2.0, 0.0], 1, [(1, 2)]),
    ],
)
def test_stages_of_a_list_by_hand(scores: list[float], stages: int, expected: list[tuple[int, int] | None]) -> None:
    assert rank_pairs(scores, stages) == expected


def test_stages_of_pairs_go_from_easy_to_hard() -> None:
    rows = [{"id": i, "score_chosen": float(gap), "score_rejected": 0.0, "difficulty": gap / 10} for i, gap in enumerate([1, 3, 2, 3, 0])]
    assert [[row["id"] for row in stage] for stage in cut_pairs(Dataset.from_list(rows), 2, by="scores")] == [[1, 3], [2, 0, 4]]
    assert [[row["id"] for row in stage] for stage in cut_pairs(Dataset.from_list(rows), 2, by="difficulty")] == [[4, 0], [2, 1, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0, 2.0, 3.0]}, "row 1 has 2 responses and 3 scores"),
        ({"scores": [1.0]}, "row 1 has 2 responses and 1 scores"),
        ({"scores": [1.0, None]}, "row 1: scores is None; expected a finite number"),
        ({"scores": [1.0, float("nan")]}, "row 1: scores is nan; expected a finite number"),
        ({"scores": None}, "row 1 has no list of scores"),
        ({"responses": None}, "row 1 has no list of responses"),
    ],
)
def test_lists_that_can_not_be_cut_say_why(change: dict[str, Any], message: str) -> None:
    good = {"id": "a", "images": [], "prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2.0]}
    with pytest.raises(UserError, match=re.escape(message)):
        cut_lists(Dataset.from_list([good, {**good, **change}]), 1)


def test_rows_without_images_are_written(tmp_path: Path) -> None:
    rows = [{"id": name, "images": images, "prompt": "q"} for name, images in (("a", None), ("b", []))]
    write_rows(tmp_path / "rows.parquet", rows, image_root=None)
    assert load_rows(tmp_path / "rows.parquet")["images"] == [[], []]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_pairs_of_no_difficulty_say_so(value: float | None) -> None:
    with pytest.raises(UserError, match=f"row 1: difficulty is {value}; expected a finite number"):
        cut_pairs(Dataset.from_list([{"difficulty": 1.0}, {"difficulty": value}]), 1, by="difficulty")
    with pytest.raises(UserError, match=f"row 0: score_rejected is {value}; expected a finite number"):
        cut_pairs(Dataset.from_list([{"score_chosen": 1.0, "score_rejected": value}]), 1, by="scores")


def test_selection_by_margin_by_hand() -> None:
    scores = [6.0, 3.0, 5.0, 1.0, 4.0]
    assert select_pairs(scores, min_score=5, min_gap=2, most=9) == [(0, 3), (2, 3), (0, 1), (0, 4), (2, 1)]
    assert select_pairs(scores, min_score=None, min_gap=5, most=9) == [(0, 3)]
    assert select_pairs(scores, min_score=5, min_gap=2, most=2) == [(0, 3), (2, 3)]
    assert select_pairs([1.0, 1.0], min_score=None, min_gap=1e-6, most=1) == []


def test_a_teachers_answer_needs_another_margin_than_a_sample() -> None:
    options = IterateOptions(sources=[Path("a")], model="m", out=Path("o"), sample="", min_gap=0.5, min_gap_student=2, pairs_per_prompt=9)
    row = {"id": "q", "responses": ["a", "b", "c", "taught"], "scores": [3.0, 2.0, 0.5, 4.0], "gold": "taught"}
    # The teacher's by 0.5 from all; a by 2 from c alone; b by 2 from none.
    assert draw_pairs(row, options) == [(3, 2), (0, 2), (3, 1), (3, 0)]
    assert draw_pairs({**row, "gold": None}, options) == [(3, 2), (0, 2), (3, 1)]


def test_repetitions_by_hand() -> None:
    line = "a b c d "
    assert [repeats(line * n, 4) for n in (1, 4, 5)] == [False, False, True]
    assert [repeats("word " * n, 4) for n in (7, 8)] == [False, True]
    row = {"responses": ["good", line * 5, "bad"], "scores": [3.0, 4.0, 1.0]}
    assert demote_repetitions(row, most=4, gap=0.5) == [3.0, 0.5, 1.0]


def test_values_of_an_option() -> None:
    text = "--scorer answers --prompts 'a b' c --gold=teacher --samples 4"
    assert [option_values(text, name) for name in ("--prompts", "--gold", "--seed")] == [["a b", "c"], ["teacher"], []]


def test_each_stage_starts_from_and_is_held_to_the_one_before(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "lists.parquet", list_rows([4, 3, 4, 4]))
    words = [str(data), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "out"), "--stages", "2", "--train", TRAIN]
    assert curry(words) == 0
    for number in (1, 2):
        folder = tmp_path / "out" / f"stage-{number}"
        first = json.loads((folder / "train_log.json").read_text())[0]
        # The reference is the stage's own start: log 2 at the first step.
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    options = json.loads((tmp_path / "out" / "stage-2" / "mmalign_run.json").read_text())["options"]
    assert options["model"] == str(tmp_path / "out" / "stage-1")
    easy, hard = (load_rows(tmp_path / "out" / "pairs" / f"stage-{n}.parquet") for n in (1, 2))
    gaps = [sum(a - b for a, b in zip(part["score_chosen"], part["score_rejected"], strict=True)) for part in (easy, hard)]
    assert gaps[0] > gaps[1]
    assert read_pair(easy[0], index=0).images
    # Nothing is done twice, and another schedule is refused.
    before = (tmp_path / "out" / "stage-2" / "model.safetensors").stat().st_mtime_ns
    assert curry(words) == 0
    assert (tmp_path / "out" / "stage-2" / "model.safetensors").stat().st_mtime_ns == before
    assert curry([*words[:-1], TRAIN + " --beta 0.2"]) == 2


@pytest.mark.slow
def test_a_schedule_of_pairs_that_was_stopped_ends_alike(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = [{**row, "difficulty": i / 8} for i, row in enumerate(pair_rows(8))]
    data = save_rows(tmp_path / "pairs.parquet", rows)

    def words(out: str) -> list[str]:
        options = ["--stages", "2", "--rank-by", "difficulty", "--train", TRAIN]
        return [str(data), "--model", str(tiny_llava_dir), "--out", str(tmp_path / out), *options]

    assert curry(words("whole")) == 0
    assert curry(words("stopped")) == 0
    # As a kill between the second stage's last checkpoint and its end leaves it.
    (tmp_path / "stopped" / "stage-2" / "train_log.json").unlink()
    (tmp_path / "stopped" / "stage-2" / "model.safetensors").unlink()
    assert curry(words("stopped")) == 0
    whole, stopped = (load_file(tmp_path / name / "stage-2" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train", "--lora-rank 4"], "full weights"),
        (["--train", "--reference copy"], "sets itself"),
        (["--stages", "0"], "stages is 0"),
        (["--stages", "4"], "stage 1 of 4 has no pairs"),
    ],
)
def test_what_the_curriculum_refuses(tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "lists.parquet", list_rows([3, 3]))
    assert curry([str(data), "--model", "none", "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    sizes = "--num-scenes 24 --num-pairs 2 --num-eval-scenes 8 --num-workers 1"
    assert mmalign(["world", "build", "--out", str(out), *sizes.split()]) == 0
    return out


def test_two_rounds_on_a_world(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model names shapes by chance; its own words are sampled, scored by the world's truth, paired and trained on."""
    model = speaking_model(world, tmp_path / "speaker")
    sample = "--scorer truth --samples 4 --max-new-tokens 12 --batch-size 4"
    words = [str(world / "eval"), "--model", str(model), "--out", str(tmp_path / "out"), "--sample", sample, "--train", TRAIN]
    words += ["--eval-data", str(world / "eval")]
    assert iterate([*words, "--replay", "0.5", "--rounds", "1"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("round 1: "))
    metrics = json.loads((tmp_path / "out" / "round-1" / "round.json").read_text())["metrics"]
    for key in ("chair/instance", "chair/sentence", "chair/recall", "pope/f1"):
        assert f" {key} {metrics[key]:.3f}" in line
    first = (tmp_path / "out" / "round-1" / "round.json").stat().st_mtime_ns
    assert iterate([*words, "--replay", "0.5", "--rounds", "2"]) == 0
    assert (tmp_path / "out" / "round-1" / "round.json").stat().st_mtime_ns == first
    one, two = (json.loads((tmp_path / "out" / f"round-{n}" / "round.json").read_text()) for n in (1, 2))
    assert two["policy"] == str(tmp_path / "out" / "round-1" / "model")
    pairs = load_rows(tmp_path / "out" / "round-2" / "pairs.parquet")
    own = [row for row in pairs if row["id"].split("/")[-2] == "2"]
    assert len(own) == two["num_pairs"]
    assert len(pairs) - len(own) == min(one["num_pairs"], round(0.5 * two["num_pairs"]))
    assert all(row["score_chosen"] > row["score_rejected"] for row in pairs)
    for index, row in enumerate(load_rows(tmp_path / "out" / "round-1" / "lists.parquet")):
        read_list(row, index=index)
    log = json.loads((tmp_path / "out" / "round-2" / "model" / "train_log.json").read_text())
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert iterate([*words, "--replay", "0.3"]) == 2


def speaking_model(world: Path, out: Path) -> Path:
    """A tiny model with the world's tokenizer that has seen a few steps of its captions, so that it says shapes."""
    from tests.tiny_models import CLIP_TOWER, QWEN3

    out.mkdir()
    for name, values in (("vision", CLIP_TOWER), ("llm", QWEN3)):
        (out / f"{name}.json").write_text(json.dumps(values))
    halves = ["--vision", str(out / "vision.json"), "--llm", str(out / "llm.json"), "--tokenizer", str(world / "tokenizer")]
    assert mmalign(["compose", *halves, "--out", str(out / "mllm")]) == 0
    steps = "--batch-size 8 --max-steps 15 --learning-rate 1e-2 --optimizer muon --logging-steps 20"
    assert (
        mmalign(["train", "sft", "--model", str(out / "mllm"), "--data", str(world / "sft"), "--out", str(out / "sft"), *steps.split()])
        == 0
    )
    return out / "sft"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-gap", "0"], "min_gap is 0"),
        (["--rounds", "0"], "rounds is 0"),
        (["b", "--rounds", "3"], "2 sources for 3 rounds"),
        (["--train", "--out x"], "sets itself"),
        (["--sample", "--scorer truth --seed 3"], "--sample holds --seed, which the schedule sets itself"),
        (["--sample", "--scorer truth --model=other"], "--sample holds --model, which the schedule sets itself"),
        (["--rejected", "did"], "rejected is 'did'; expected worst, or did:beta=0.5"),
        (["--rejected", "did:beta=-1"], "rejected is 'did:beta=-1'"),
        (["--reward-scale", "0"], "reward_scale is 0"),
        (["--repetition", "-1"], "repetition is -1"),
        (["--min-gap-student", "0"], "min_gap_student 0"),
        (["--correct", "1"], "--correct is for --method listwise"),
        (["--method", "listwise", "--replay", "0.5"], "--replay is of pairs"),
    ],
)
def test_what_rounds_refuse(tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = [word for word in more if not word.startswith("-")][:1] if more[0] == "b" else []
    rest = more[1:] if first else more
    words = ["a", *first, "--model", "m", "--out", str(tmp_path / "out"), "--sample", "--scorer truth", *rest]
    assert iterate(words) == 2
    assert message in capsys.readouterr().err


def test_a_round_whose_scores_are_all_alike_says_so(tmp_path: Path) -> None:
    options = IterateOptions(sources=[Path("a")], model="m", out=tmp_path, sample="")
    row = {"id": "q", "images": [], "prompt": "what", "responses": ["a", "b"], "scores": [0.5, 0.5]}
    with pytest.raises(UserError, match="round 1 gave no pairs of 1 prompts; lower --min-score or --min-gap"):
        train_pairs(options, Words(options), Lists([row].__getitem__, [row["scores"]]), number=1, policy="m")


def test_groups_are_held_to_the_policy_that_sampled_them(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right or wrong by the truth's score; every sample stays; the first loss is DisCO's by hand, without a penalty."""
    model = speaking_model(world, tmp_path / "speaker")
    sample = "--scorer truth --samples 4 --max-new-tokens 12 --batch-size 4"
    words = [str(world / "eval"), "--model", str(model), "--out", str(tmp_path / "out"), "--sample", sample, "--rounds", "1"]
    words += ["--method", "listwise", "--objective", "disco_b", "--correct", "0.2"]
    train = "--learning-rate 1e-3 --batch-size 64 --logging-steps 1 --max-steps 3 --dtype float32"
    assert iterate([*words, "--train", train]) == 0
    folder = tmp_path / "out" / "round-1"
    groups, sampled = load_rows(folder / "lists.parquet"), (folder / "sampled" / "chunks").glob("*.jsonl")
    lines = [json.loads(line) for path in sorted(sampled) for line in path.read_text().splitlines()]
    kept = [[pair for pair in zip(line["responses"], line["scores"], strict=True) if pair[0]] for line in lines]
    assert [row["responses"] for row in groups] == [[text for text, _ in line] for line in kept]
    assert [row["scores"] for row in groups] == [[float(score >= 0.2) for _, score in line] for line in kept]
    expected = 0.0
    for row in load_rows(folder / "cached" / "cached.parquet"):
        means = [sum(values) / len(values) for values in row["reference_token_logps_responses"]]
        sides = [[mean for mean, score in zip(means, row["scores"], strict=True) if score == kind] for kind in (0.0, 1.0)]
        if all(sides):
            expected += sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])
    log = json.loads((folder / "model" / "train_log.json").read_text())
    assert log[0]["loss"] == pytest.approx(expected / len(groups), abs=1e-4)
    assert log[0]["kl/old"] == pytest.approx(0, abs=1e-5)
    assert abs(log[2]["kl/old"]) > 1e-4
    record = json.loads((folder / "round.json").read_text())
    assert record["alike"] == log[0]["lists/alike"] < 1
    assert f"round 1: {len(groups)} prompts, {record['alike']:.1%} alike, mean score {record['mean_score']:.3f}" in capsys.readouterr().out
    assert iterate([*words, "--train", train, "--correct", "0.4"]) == 2
    assert "another schedule" in capsys.readouterr().err


def test_shared_options_by_hand() -> None:
    assert forwarded(["--dtype", "float32", "--epochs", "2", "--max-length=90"]) == ["--dtype", "float32", "--max-length=90"]


def test_rejected_samples_are_drawn_by_their_scores() -> None:
    assert did_weights([0.8, -0.3, -1.1], beta=0.5, scale=1.0) == pytest.approx([0.188006583368, 0.325862978002, 0.486130438630], abs=1e-12)
    assert did_weights([1.6, -0.6, -2.2], beta=0.5, scale=2.0) == pytest.approx([0.188006583368, 0.325862978002, 0.486130438630], abs=1e-12)
    assert did_weights([0.8, -0.3], beta=0.0, scale=1.0) == [0.5, 0.5]
    options = IterateOptions(sources=[Path("a")], model="m", out=Path("o"), sample="", rejected="did:beta=0.5")
    scores = [2.0, 0.8, -0.3, -1.1, 2.0]
    rows = [{"id": str(number), "scores": scores, "responses": list("abcde")} for number in range(4000)]
    drawn = [draw_pairs(row, options) for row in rows]
    assert all(len(pairs) == 1 and pairs[0][0] == 0 for pairs in drawn)
    shares = [sum(pairs[0][1] == number for pairs in drawn) / len(drawn) for number in range(5)]
    # Five standard errors of a share are below 0.04.
    assert shares == pytest.approx([0, 0.188, 0.326, 0.486, 0], abs=0.04)
    assert drawn[:9] == [draw_pairs(row, options) for row in rows[:9]]
