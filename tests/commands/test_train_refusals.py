"""What ``mmalign train`` refuses, and what it leaves out."""

import json
import shutil
from pathlib import Path

import pytest

from mmalign.cli import main
from mmalign.files import read_json
from tests.commands.training import read_rejects, train
from tests.data_files import chat_rows, encoded, save_by_path, save_encoded, save_rows, scored_rows
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava


def test_a_folder_of_another_run_is_left_alone(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(tiny_llava_dir, pairs, out, "--reference", "cached") == 0
    weights = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert train(tiny_llava_dir, pairs, out, "--reference", "cached", "--beta", "0.5") == 2
    assert "holds another run: its beta is None, not 0.5" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == weights
    other = save_rows(tmp_path / "pairs.parquet", scored_rows(8, seed=1, reference=tiny_llava_dir))
    assert train(tiny_llava_dir, other, out, "--reference", "cached") == 2
    assert "holds another run: its data is" in capsys.readouterr().err
    chats = save_rows(tmp_path / "chats.parquet", chat_rows(4))
    assert train(tiny_llava_dir, chats, out, kind="sft") == 2
    assert "holds another run: its method is 'preference', not 'sft'" in capsys.readouterr().err
    assert train(tiny_llava_dir, pairs, tmp_path / "next", kind="sft") == 2
    assert "has no column messages" in capsys.readouterr().err
    assert not (tmp_path / "next").exists(), "the right data can take the folder"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    assert train(tiny_llava_dir, pairs, tmp_path / "notes") == 2
    assert "is not empty and holds no run of mmalign" in capsys.readouterr().err


def test_a_run_that_is_refused_before_it_has_saved_anything_leaves_its_folder(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was forgotten or mistyped is mended in the same command."""
    data = save_by_path(tmp_path / "images", chat_rows(4))
    out = tmp_path / "out"
    assert train(tiny_llava_dir, data, out, kind="sft") == 2
    assert "pass the folder it starts from as --image-root" in capsys.readouterr().err
    assert len(read_rejects(out)) == 4, "its reasons stay"
    root = ["--image-root", str(tmp_path / "images")]
    assert train(tiny_llava_dir, data, out, *root, "--trainer", "{lr_scheduler_kwargs: {min_lr: 0}}", kind="sft") == 2
    assert "which the schedule refuses" in capsys.readouterr().err
    assert train(tiny_llava_dir, data, out, *root, kind="sft") == 0
    assert not (out / "rejects.jsonl").exists()
    (out / "checkpoints" / "checkpoint-3" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "images")
    assert train(tiny_llava_dir, data, out, *root, kind="sft") == 2
    assert (out / "mmalign_run.json").exists(), "a run that has begun keeps it"


def test_broken_rows_are_left_out_with_their_reasons(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = [encoded(row) for row in scored_rows(9, reference=tiny_llava_dir)]
    png = rows[0]["images"][0]["bytes"]
    rows[0]["images"] = [{"bytes": png[: len(png) // 2], "path": None}]
    rows[1]["images"] = [{"bytes": None, "path": "nowhere/lost.png"}]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3]["chosen"] = [{"role": "assistant", "content": "  "}]
    rows[4]["chosen"] = [{"role": "assistant", "content": "dog cat " * 60}]
    rows[5]["difficulty"] = float("nan")
    rows[6]["reference_logps_chosen"] = float("-inf")
    words = ["--max-reject-share", "0.9", "--max-length", "60", "--difficulty-mode", "paper", "--reference", "cached"]
    assert train(tiny_llava_dir, save_encoded(tmp_path / "pairs.parquet", rows), tmp_path / "out", *words) == 0
    reasons = read_rejects(tmp_path / "out")
    expected = {
        "pair-0": "truncated",
        "pair-1": "nowhere/lost.png",
        "pair-2": "chosen and rejected are the same text",
        "pair-3": "chosen is empty",
        "pair-4": "(images included), more than max_length 60",
        "pair-5": "difficulty is nan",
        "pair-6": "reference_logps_chosen is -inf",
    }
    assert set(reasons) == set(expected)
    for row_id, text in expected.items():
        assert text in reasons[row_id], (row_id, reasons[row_id])
    record = json.loads((tmp_path / "out" / "mmalign_run.json").read_text())
    assert (record["num_rows"], record["num_rejected"]) == (9, 7)


def test_broken_chats_are_left_out_with_their_reasons(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = [encoded(row) for row in chat_rows(8)]
    rows[0]["images"] = [{"bytes": rows[0]["images"][0]["bytes"][:60], "path": None}]
    rows[1]["messages"] = [*rows[1]["messages"][:1], {"role": "assistant", "content": ""}]
    rows[2]["messages"] = rows[2]["messages"][:1]
    rows[3]["messages"] = [{"role": "user", "content": "dog " * 80}, *rows[3]["messages"][1:]]
    rows[4] |= {"images": [], "messages": [{"role": "user", "content": "<image>\nwhat"}, *rows[4]["messages"][1:]]}
    data = save_encoded(tmp_path / "chats.parquet", rows)
    assert train(tiny_llava_dir, data, tmp_path / "out", "--max-reject-share", "0.9", "--max-length", "60", kind="sft") == 0
    expected = {
        "pair-0": "image bytes is truncated or damaged",
        "pair-1": "assistant turn is empty",
        "pair-2": "messages must hold a user turn and end with an assistant turn",
        "pair-3": "(images included), more than max_length 60",
        "pair-4": "messages has 1 image placeholders for 0 images",
    }
    reasons = read_rejects(tmp_path / "out")
    assert set(reasons) == set(expected)
    for row_id, text in expected.items():
        assert text in reasons[row_id], (row_id, reasons[row_id])


@pytest.mark.parametrize("reads", [("--difficulty-mode", "paper"), ("--curriculum", "easy-to-hard"), ("--difficulty-range", "0", "1")])
def test_scores_that_are_text_are_no_scores(
    reads: tuple[str, ...], tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "difficulty": "hard"} for row in scored_rows(4)]
    data = save_rows(tmp_path / "pairs.parquet", rows)
    assert train(tiny_llava_dir, data, tmp_path / "out", "--max-reject-share", "1", *reads) == 2
    told = capsys.readouterr().err
    assert "no row of 4 can be used; the reasons are in" in told
    assert "The first is row pair-0: difficulty is 'hard'" in told
    assert read_rejects(tmp_path / "out")["pair-0"] == "difficulty is 'hard'; expected a number in [0, 1]: score the pairs again"


@pytest.mark.parametrize("values", [("easy", "hard"), (3, 7), (None, 0.5)], ids=["words", "other scale", "missing"])
def test_a_column_of_that_name_is_not_read_where_nothing_asks_for_it(
    values: tuple[object, object], tiny_llava_dir: Path, tmp_path: Path
) -> None:
    """Sets on the hub have levels in words, and ratings."""
    rows = [{**row, "difficulty": value} for row, value in zip(scored_rows(4), values * 2, strict=True)]
    data = save_rows(tmp_path / "pairs.parquet", rows)
    assert train(tiny_llava_dir, data, tmp_path / "out") == 0
    assert not any(name.endswith("_q1") for entry in read_json(tmp_path / "out" / "train_log.json") for name in entry)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.jsonl", b'{"prompt": "a"}\n{oops', "pairs.jsonl can't be read as jsonl: "),
        ("pairs.parquet", b"PAR1 and no more", "pairs.parquet can't be read as parquet: "),
        ("pairs.jsonl", b"", "pairs.jsonl has no rows"),
        ("pairs.csv", b"prompt,chosen\n", "pairs.csv: expected a .parquet, .json, .jsonl file, or a folder of them"),
    ],
    ids=["json", "parquet", "empty", "csv"],
)
def test_files_that_cant_be_read(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert train(tiny_llava_dir, tmp_path / name, tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_models_that_cant_be_loaded(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(Path("no-such-owner/no-such-model"), pairs, tmp_path / "out") == 2
    assert "no-such-owner/no-such-model can't be loaded: " in capsys.readouterr().err
    assert train(tmp_path / "nowhere", pairs, tmp_path / "out") == 2
    assert f"no checkpoint at {tmp_path / 'nowhere'}: expected a folder" in capsys.readouterr().err
    shutil.copytree(tiny_llava_dir, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert train(tmp_path / "cut", pairs, tmp_path / "out") == 2
    assert f"{tmp_path / 'cut'} can't be loaded: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("drop", "words", "message"),
    [
        ("rejected", [], "has no column rejected; it has id, images, prompt, chosen"),
        ("difficulty", ["--difficulty-mode", "paper"], "the data set has no column difficulty: run mmalign score-difficulty first"),
        ("reference_logps_chosen", ["--reference", "cached"], "for reference 'cached', has no column reference_logps_chosen"),
        ("difficulty", ["--difficulty-range", "0", "0.5"], "--difficulty-range reads the column difficulty, and the data set has none"),
    ],
)
def test_columns_that_are_not_there(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], drop: str, words: list[str], message: str
) -> None:
    """Told before a row is looked at, which may take hours: one of these is broken, and would stop the run."""
    scored = scored_rows(4, reference=tiny_llava_dir)
    scored[0]["rejected"] = scored[0]["chosen"]
    rows = [{key: value for key, value in row.items() if key != drop} for row in scored]
    assert train(tiny_llava_dir, save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_too_many_broken_rows_stop_the_run(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = scored_rows(4)
    rows[0]["rejected"] = rows[0]["chosen"]
    assert train(tiny_llava_dir, save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out") == 2
    assert "1 of 4 rows are broken, more than the tolerated share of 5.0%" in capsys.readouterr().err


def test_a_config_key_that_is_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("learning_rte: 1e-4\n")
    with pytest.raises(SystemExit):
        main(["train", "preference", "--config", str(tmp_path / "c.yaml")])
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "adapter-off"], "needs a policy with a LoRA adapter"),
        (["--reference", "copy", "--reference-model", "x/y"], "exclude each other"),
        (["--lora-rank", "4", "--freeze", "projector"], "--freeze and --stage are for full weights"),
        (["--freeze", "vision_tower", "projector", "language_model"], "nothing is left to train"),
        (["--freeze", "projector", "--projector-learning-rate", "1e-3"], "is frozen; leave --projector-learning-rate out, or let"),
        (["--lora-rank", "4", "--projector-learning-rate", "1e-3"], "is frozen; leave --projector-learning-rate out, or let"),
        (["--train-projector"], "train_projector is for LoRA; set lora_rank, or leave it out"),
        (["--projector-learning-rate", "0"], "projector_learning_rate is 0.0; expected a positive number"),
        (["--beta", "-0.1"], "beta is -0.1; expected a positive number"),
        (["--objective", "dop"], "unknown pair objective 'dop'; did you mean 'dpo'?"),
        (["--objective", "simpo", "--reference", "cached"], "objective simpo compares with no reference; leave --reference"),
        (["--objective", "orpo", "--reference-model", "x/y"], "objective orpo compares with no reference; leave --reference"),
        (["--difficulty-range", "0.2"], "difficulty_range is 0.2; expected two numbers in [0, 1]"),
        (["--curriculum", "easy-to-hard", "--curriculum-buckets", "0"], "curriculum_buckets is 0; expected 1 or more"),
        (["--noisy-gap", "drop"], "--noisy-gap reads the column gap_fused, and the data set has none"),
        (["--objective", "dno"], "has no column score_chosen, score_rejected"),
        (["--objective", "ld_dpo", "--reference", "cached"], "has no column reference_token_logps_chosen"),
    ],
)
def test_options_that_contradict(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--projector-learning-rate", "1e-3"], ["--train-projector", "--lora-rank", "4"]])
def test_a_model_without_a_projector_of_its_own(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    model, processor = FAMILIES["qwen2-vl"]()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert train(tmp_path / "model", pairs, tmp_path / "out", *words) == 2
    assert f"Qwen2VLForConditionalGeneration has no projector of its own; leave {words[0]} out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("other mean", "makes other images"),
        ("llava-next", "makes other tokens"),
        ("qwen2.5-vl", "makes other tokens"),
        ("other template", None),
    ],
)
def test_a_reference_that_reads_rows_otherwise(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], teacher: str, message: str | None
) -> None:
    """It is run on the policy's inputs, in which it may see other words and other pixels; the template is the policy's."""
    model, processor = FAMILIES[teacher]() if teacher in FAMILIES else build_tiny_llava(seed=1)
    if teacher == "other mean":
        processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    if teacher == "other template":
        processor.chat_template = None
    for part in (model, processor):
        part.save_pretrained(tmp_path / "teacher")
    words = ["--reference", "model", "--reference-model", str(tmp_path / "teacher")]
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == (0 if message is None else 2)
    assert (message or "") in capsys.readouterr().err
