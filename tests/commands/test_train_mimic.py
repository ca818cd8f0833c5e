"""``mmalign train mimic``: a student comes closer to its teacher."""

import shutil
from pathlib import Path

import pytest
import torch

from mmalign.cli import main
from mmalign.models.load import load_mllm
from mmalign.worlds.tokenizer import train_tokenizer
from tests.commands.training import read_log, train
from tests.data_files import chat_rows, save_rows
from tests.tiny_families import fastvlm
from tests.tiny_models import build_tiny_llava


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another family with another tower and the student's tokenizer."""
    folder = tmp_path_factory.mktemp("teacher") / "fastvlm"
    for part in fastvlm():
        part.save_pretrained(folder)
    return folder


def test_a_student_comes_closer_to_its_teacher_stage_by_stage(tiny_llava_dir: Path, teacher_dir: Path, chats: Path, tmp_path: Path) -> None:
    """Dense-to-dense, upcycling, dense-to-sparse: what each stage trains, and that the divergence falls."""
    steps = ["--max-steps", "8", "--batch-size", "8", "--schedule", "constant"]
    words = ["--teacher", str(teacher_dir), "--teacher-dtype", "float32", *steps]
    assert train(tiny_llava_dir, chats, tmp_path / "d2d", *words, "--stage", "dense-to-dense", kind="mimic") == 0
    assert main(["upcycle", str(tmp_path / "d2d"), "--out", str(tmp_path / "sparse")]) == 0
    more = ["--stage", "dense-to-sparse", "--ce-weight", "1", "--divergence", "js", "--temperature", "2"]
    assert train(tmp_path / "sparse", chats, tmp_path / "d2s", *words, *more, kind="mimic") == 0
    for start, end in ((tiny_llava_dir, tmp_path / "d2d"), (tmp_path / "sparse", tmp_path / "d2s")):
        log = read_log(end)
        # Random chats pull the sparse student away from a random teacher: its loss falls, and not the divergence alone.
        key = "loss" if end.name == "d2s" else "loss/kl"
        assert log[-1][key] < 0.95 * log[0][key]
        before, after = (dict(load_mllm(str(folder))[0].named_parameters()) for folder in (start, end))
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved
        assert not any("vision_tower" in name for name in moved)
        sparse = end.name == "d2s"
        assert all(".mlp." in name or "projector" in name for name in moved) == sparse
        assert ("router/balance" in log[0]) == ("loss/nll" in log[0]) == sparse
    assert "a multimodal LLM, distilled from a teacher on chats about images" in (tmp_path / "d2s" / "README.md").read_text()


def test_several_teachers_by_a_column(tiny_llava_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "chats.parquet", [{**row, "kind": "ab"[i % 2]} for i, row in enumerate(chat_rows(8))])
    words = ["--teacher", f"a={tiny_llava_dir}", f"b={teacher_dir}", "--teacher-column", "kind", "--teacher-dtype", "float32"]
    assert train(tiny_llava_dir, data, tmp_path / "out", *words, "--batch-size", "8", "--max-steps", "1", kind="mimic") == 0
    (mixed,) = read_log(tmp_path / "out")
    assert train(tiny_llava_dir, data, tmp_path / "one", "--teacher", str(teacher_dir), *words[5:], "--max-steps", "1",
                 "--batch-size", "8", kind="mimic") == 0  # fmt: skip
    (one,) = read_log(tmp_path / "one")
    # Of the rows of the student's own model there is no divergence.
    assert 0.2 < mixed["loss/kl"] / one["loss/kl"] < 0.8


def test_an_adapter_learns_on_its_own_answers_from_a_teacher_in_four_bits(tiny_llava_dir: Path, chats: Path, tmp_path: Path) -> None:
    """Rows are read by a worker, and answered in two micro-batches; the weakened images are the teacher's."""
    words = ["--teacher", str(tiny_llava_dir), "--teacher-quantization", "nf4", "--lora-rank", "2", "--num-workers", "1"]
    words += ["--on-policy", "1", "--sample-tokens", "6", "--divergence", "js", "--js-weight", "0.9", "--ce-weight", "1"]
    words += ["--visual-advantage", "both", "--weaken", "noise", "--batch-size", "4", "--gradient-accumulation-steps", "2"]
    assert train(tiny_llava_dir, chats, tmp_path / "out", *words, kind="mimic") == 0
    log = read_log(tmp_path / "out")
    assert len(log) == 3
    for entry in log:
        assert 1 <= entry["on_policy/length"] <= 6
        assert 0 <= entry["on_policy/ended"] <= 1
        assert {"visual_advantage/mean", "visual_advantage/top", "visual_advantage/kl_top", "visual_advantage/kl_rest"} <= entry.keys()
        # The student is the teacher but for its four bits: cross-entropy, of nothing here, would be about 6 per token.
        assert entry["loss"] < 0.5
        assert "loss/nll" not in entry


def test_a_teacher_with_another_tokenizer_teaches_and_a_run_resumes(tiny_llava_dir: Path, chats: Path, tmp_path: Path) -> None:
    """Half of the answers are sampled, which is another draw at each step; from the middle the run ends in the same bits."""
    for part in build_tiny_llava(tokenizer=train_tokenizer(["a red dog sees the cat"] * 3), seed=1, scale=1.0):
        part.save_pretrained(tmp_path / "other")
    words = ["--teacher", str(tmp_path / "other"), "--teacher-dtype", "float32", "--batch-size", "8", "--schedule", "constant"]
    assert train(tiny_llava_dir, chats, tmp_path / "refused", *words, "--max-steps", "1", kind="mimic") == 2
    words += ["--divergence", "uld-hybrid", "--max-steps", "6", "--save-steps", "3", "--learning-rate", "1e-3"]
    words += ["--on-policy", "0.5", "--sample-tokens", "6"]
    for name in ("whole", "resumed"):
        assert train(tiny_llava_dir, chats, tmp_path / name, *words, kind="mimic") == 0
        if name == "resumed":
            shutil.rmtree(tmp_path / name / "checkpoints" / "checkpoint-6")
            assert train(tiny_llava_dir, chats, tmp_path / name, *words, kind="mimic") == 0
    whole, resumed = (load_mllm(str(tmp_path / name))[0].state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    logs = [read_log(tmp_path / name) for name in ("whole", "resumed")]
    assert logs[0] == logs[1]
    assert logs[0][-1]["loss/uld"] < 0.95 * logs[0][0]["loss/uld"]
    assert {"on_policy/length", "on_policy/ended", "on_policy/unread"} <= logs[0][0].keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "dense-to-sparse"], "stage dense-to-sparse is not of a dense model, whose stages are init, dense-to-dense"),
        (["--stage", "init", "--freeze", "projector"], "--stage init says what is frozen; leave --freeze projector out"),
        (["--stage", "init", "--lora-rank", "2"], "--freeze and --stage are for full weights"),
        (["--kl-weight", "0"], "kl_weight is 0.0; expected a positive number"),
        (["--temperature", "-1"], "temperature is -1.0; expected a positive number"),
        (["--on-policy", "2"], "on_policy is 2.0; expected a share of the rows from 0 to 1"),
        (["--teacher", "cached", "--on-policy", "1"], "--on-policy samples new ones; use a live teacher"),
        (["--js-weight", "0.1"], "divergence 'forward-kl' has none; add --divergence js"),
        (["--divergence", "uld", "--distil", "all"], "--divergence uld compares answers at the right places"),
        (["--divergence", "uld", "--teacher", "cached"], "--teacher cached knows the student's tokens alone"),
    ],
)
def test_mimic_refuses_what_makes_no_sense(
    tiny_llava_dir: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    teacher = [] if "--teacher" in words else ["--teacher", str(tiny_llava_dir)]
    assert train(tiny_llava_dir, chats, tmp_path / "out", *teacher, *words, kind="mimic") == 2
    assert message in capsys.readouterr().err


def test_a_teacher_in_four_bits_and_one_in_half_precision_teach_about_the_same(tiny_llava_dir: Path, chats: Path, tmp_path: Path) -> None:
    divergences = {}
    for name, dtype, quantization in (("float32", "float32", "none"), ("bfloat16", "bfloat16", "none"), ("nf4", "float32", "nf4")):
        words = ["--teacher", str(tiny_llava_dir), "--teacher-dtype", dtype, "--teacher-quantization", quantization]
        assert train(tiny_llava_dir, chats, tmp_path / name, *words, "--batch-size", "8", kind="mimic") == 0
        divergences[name] = read_log(tmp_path / name)[0]["loss/kl"]
    # The student is the teacher: what remains is the teacher's rounding.
    assert divergences["float32"] == pytest.approx(0, abs=1e-6)
    assert 1e-6 < divergences["bfloat16"] < 1e-2
    assert divergences["bfloat16"] < divergences["nf4"] < 0.5
