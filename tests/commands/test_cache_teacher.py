"""``mmalign cache-teacher``: what is kept, going on after a stop, and a student that mimics it as it mimics the live teacher."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.encode import EncodedPrompt
from mmalign.data.images import digest_images
from mmalign.engine.batch import collate_prompts
from mmalign.models.load import load_mllm
from mmalign.runs import cache_teacher as cache
from tests.data_files import chat_rows, encoded, save_by_path, save_encoded, save_rows
from tests.methods.test_mimic import plain_logits
from tests.tiny_models import build_tiny_llava, random_image


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    for part in build_tiny_llava(seed=1):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("chats") / "chats.parquet", chat_rows(8))


def cached(teacher: Path, chats: Path, out: Path, *more: str) -> int:
    return main(["cache-teacher", str(chats), "--model", str(teacher), "--out", str(out), *more])


def mimic(student: Path, data: Path, out: Path, *more: str) -> int:
    words = ["--model", str(student), "--data", str(data), "--out", str(out), "--max-steps", "3", "--logging-steps", "1"]
    return main(["train", "mimic", *words, "--learning-rate", "1e-3", "--max-grad-norm", "1e9", *more])


def first_step(out: Path) -> dict[str, float]:
    return json.loads((out / "train_log.json").read_text())[0]


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_it_keeps_the_plain_forwards_likeliest_tokens(teacher_dir: Path, chats: Path, tmp_path: Path, storage: str) -> None:
    assert cached(teacher_dir, chats, tmp_path / "out", "--top-k", "5", "--storage", storage) == 0
    model, processor = load_mllm(str(teacher_dir))
    size = len(processor.tokenizer)
    for row in load_rows(tmp_path / "out" / "data"):
        with torch.no_grad():
            logps = plain_logits(model, processor, row)[0][:, :size].log_softmax(-1)
        values, ids = logps.topk(5)
        got = torch.tensor(row["teacher_top_logps"]).view(-1, 6)
        assert torch.tensor(row["teacher_top_ids"]).view(-1, 5).tolist() == ids.tolist()
        tolerance = {"rtol": 2e-3, "atol": 2e-5} if storage == "float16" else {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(got[:, :5], values, **tolerance)
        torch.testing.assert_close(got.exp().sum(-1), torch.ones(len(got)), rtol=0, atol=1e-2 if storage == "float16" else 1e-5)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "SHARD_SIZE", 3)
    rows = [encoded(row) for row in chat_rows(8)]
    rows[4]["images"][0]["bytes"] = b"no image"
    chats = save_encoded(tmp_path / "chats.parquet", rows)
    for out in ("whole", "stopped"):
        assert cached(teacher_dir, chats, tmp_path / out, "--max-reject-share", "0.5") == 0
    shards = sorted((tmp_path / "whole" / "data").glob("*.parquet"))
    assert [path.name for path in shards] == ["000000000.parquet", "000000003.parquet", "000000006.parquet"]
    again = tmp_path / "stopped" / "data"
    kept = os.stat(again / shards[0].name).st_mtime_ns
    (again / shards[1].name).rename(again / "000000003.partial")
    assert cached(teacher_dir, chats, tmp_path / "stopped", "--max-reject-share", "0.5") == 0
    assert os.stat(again / shards[0].name).st_mtime_ns == kept
    for path in shards:
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert len(load_rows(again)) == 7
    assert json.loads((tmp_path / "stopped" / "rejects.jsonl").read_text())["id"] == rows[4]["id"]
    assert cached(teacher_dir, chats, tmp_path / "stopped", "--top-k", "3") == 2
    assert "holds another cache: its top_k is 64, not 3" in capsys.readouterr().err


def test_a_value_that_is_refused_leaves_the_folder_to_another(
    teacher_dir: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, said in {"0": "top_k is 0; expected 1 token or more", "99999": "top_k is 99999 of"}.items():
        assert cached(teacher_dir, chats, tmp_path / "out", "--top-k", value) == 2
        assert said in capsys.readouterr().err
    assert cached(teacher_dir, chats, tmp_path / "out", "--top-k", "3") == 0


def test_with_nearly_all_tokens_it_teaches_like_the_live_teacher_and_with_few_less(
    tiny_llava_dir: Path, teacher_dir: Path, chats: Path, tmp_path: Path
) -> None:
    # The cache leaves out padding rows of the teacher's head; here it has none but 156, whose mass is that of random rows.
    assert mimic(tiny_llava_dir, chats, tmp_path / "live", "--teacher", str(teacher_dir), "--batch-size", "8") == 0
    values, norms = {}, {}
    for k in (4, 64, 355):
        assert cached(teacher_dir, chats, tmp_path / f"cache{k}", "--top-k", str(k), "--storage", "float32") == 0
        words = ["--teacher", "cached", "--teacher-model", str(teacher_dir), "--batch-size", "8", "--ce-weight", "0"]
        assert mimic(tiny_llava_dir, tmp_path / f"cache{k}" / "data", tmp_path / f"out{k}", *words) == 0
        step = first_step(tmp_path / f"out{k}")
        values[k], norms[k] = step["loss/kl"], step["grad_norm"]
    assert values[4] < values[64] < values[355]
    model, processor = load_mllm(str(tiny_llava_dir))
    teacher, _ = load_mllm(str(teacher_dir))
    total, count = 0.0, 0
    for row in load_rows(chats):
        with torch.no_grad():
            log_p, log_q = (plain_logits(one, processor, row)[0][:, :356].log_softmax(-1) for one in (teacher, model))
        total, count = total + float((log_p.exp() * (log_p - log_q)).sum()), count + len(log_p)
    # 355 of 356: the rest is one token.
    assert values[355] == pytest.approx(total / count, rel=1e-3)
    assert np.isfinite(list(norms.values())).all()


def test_stale_and_foreign_columns_are_refused(
    tiny_llava_dir: Path, teacher_dir: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cached(teacher_dir, chats, tmp_path / "cache", "--top-k", "4") == 0
    data = tmp_path / "cache" / "data"
    assert mimic(tiny_llava_dir, data, tmp_path / "a", "--teacher", "cached", "--teacher-model", str(tiny_llava_dir)) == 2
    assert "the cached teacher is weights " in capsys.readouterr().err
    assert mimic(tiny_llava_dir, chats, tmp_path / "b", "--teacher", "cached") == 2
    assert "has no column teacher_top_ids" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        mimic(tiny_llava_dir, data, tmp_path / "c", "--teacher", "cached", "--temperature", "2")
    assert "at temperature 1 alone" in capsys.readouterr().err
    for number in (0, 1):
        edited = load_rows(data).to_list()
        edited[0]["messages"][number]["content"] = "a star"
        save_rows(tmp_path / f"edited-{number}.parquet", edited)
        out = tmp_path / f"edited-{number}"
        assert mimic(tiny_llava_dir, tmp_path / f"edited-{number}.parquet", out, "--teacher", "cached", "--max-reject-share", "0.5") == 0
        (reject,) = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
        assert "the cached teacher is stale, or reads other tokens" in reject["reason"], "a question, an answer"


def test_caches_of_different_sizes_are_not_mixed(
    teacher_dir: Path, chats: Path, tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "both").mkdir()
    for size in ("4", "5"):
        assert cached(teacher_dir, chats, tmp_path / size, "--top-k", size) == 0
        (file,) = (tmp_path / size / "data").glob("*.parquet")
        file.rename(tmp_path / "both" / f"{size}.parquet")
    assert mimic(tiny_llava_dir, tmp_path / "both", tmp_path / "out", "--teacher", "cached") == 2
    assert "names 5 tokens at each place of this row and 4 in the first row" in capsys.readouterr().err


def test_chats_whose_images_are_found_later_are_asked_then(teacher_dir: Path, tmp_path: Path) -> None:
    rows = chat_rows(4)
    rows[1]["messages"][1]["content"] = "dog " * 200
    chats, out = save_by_path(tmp_path / "chats", rows), tmp_path / "out"
    words, root = ("--max-length", "60", "--max-reject-share", "0.5"), ("--image-root", str(chats.parent))
    assert cached(teacher_dir, chats, out, *words) == 2
    assert cached(teacher_dir, chats, out, *words, *root) == 0
    assert [row["id"] for row in load_rows(out / "data")] == ["pair-0", "pair-2", "pair-3"]
    file = out / "data" / "000000000.parquet"
    written = file.stat().st_mtime_ns
    assert cached(teacher_dir, chats, out, *words, *root) == 0
    assert file.stat().st_mtime_ns == written, "a chat that is too long is read as before"


def test_columns_of_other_images_are_refused(
    tiny_llava_dir: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student has a processor of its own: what both know are the decoded pictures."""
    chats = save_by_path(tmp_path / "chats", chat_rows(4))
    root = ("--image-root", str(chats.parent))
    assert cached(teacher_dir, chats, tmp_path / "cache", *root) == 0
    data, words = tmp_path / "cache" / "data", ("--teacher", "cached", *root)
    assert mimic(tiny_llava_dir, data, tmp_path / "same", *words) == 0
    assert not (tmp_path / "same" / "rejects.jsonl").exists()
    held, now = load_rows(data)[1]["teacher_images"], digest_images([random_image(99)])
    random_image(99).save(chats.parent / "1-0.png")
    assert mimic(tiny_llava_dir, data, tmp_path / "other", *words, "--max-reject-share", "0.5") == 0
    (reject,) = map(json.loads, (tmp_path / "other" / "rejects.jsonl").read_text().splitlines())
    assert reject["id"] == "pair-1"
    assert f"the cached teacher is stale: it saw the images {held}, the row's are {now}" in reject["reason"]
    assert cached(teacher_dir, chats, tmp_path / "cache", *root) == 2
    assert f"000000000.parquet was made from the images {held} of row pair-1, and they are {now} now" in capsys.readouterr().err
    load_rows(data).remove_columns("teacher_images").to_parquet(tmp_path / "old.parquet")
    assert mimic(tiny_llava_dir, tmp_path / "old.parquet", tmp_path / "old", *words) == 2
    assert "has no column teacher_images; it has" in capsys.readouterr().err


def test_chats_of_about_the_same_length_are_asked_together(teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long and short ones in turn; they are written in the order of the data."""
    rows = chat_rows(12)
    for number, row in enumerate(rows):
        row["id"] = str(number)
        if number % 2:
            row["messages"][-1]["content"] = " ".join(["a dog"] * 40)
    padding = []

    def collate(encoded: Sequence[EncodedPrompt], **options: Any) -> dict[str, Any]:
        batch = collate_prompts(encoded, **options)
        padding.append(float((batch["attention_mask"] == 0).float().mean()))
        return batch

    monkeypatch.setattr(cache, "collate_prompts", collate)
    chats = save_rows(tmp_path / "chats.parquet", rows)
    assert cached(teacher_dir, chats, tmp_path / "out", "--batch-size", "3") == 0
    assert len(padding) == 4
    assert sum(padding) < 0.5
    assert [row["id"] for row in load_rows(tmp_path / "out" / "data")] == [row["id"] for row in rows]


def test_the_first_chats_are_compared_and_not_the_shortest(teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats without an image are the shortest, and say nothing of how images are read."""
    rows = chat_rows(4)
    for row in rows[2:]:
        row["images"] = []
    seen = []

    def check(model: Any, prompts: Sequence[EncodedPrompt], **options: Any) -> str:
        seen.append([prompt.num_images for prompt in prompts])
        return ""

    monkeypatch.setattr(cache, "check_rows", check)
    assert cached(teacher_dir, save_rows(tmp_path / "chats.parquet", rows), tmp_path / "out") == 0
    assert seen == [[1, 1]]
