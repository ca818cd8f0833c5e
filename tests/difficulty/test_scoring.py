"""Scoring with real tiny models: the gaps' definitions, resume after a kill, rejects, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from mmalign.cli import main
from mmalign.data.rows import read_pair
from mmalign.difficulty.contrastive import score_contrastive, split_text
from mmalign.difficulty.voting import project_gaps
from tests.data_files import save_by_path, save_rows
from tests.difficulty.scored import hashes, score
from tests.tiny_models import pair_rows


def test_contrastive_gap_by_its_definition(clip: Any) -> None:
    model, processor = clip
    rows = [read_pair({**raw, "chosen": "a red dog. a blue cat.", "rejected": "a cat"}, index=0) for raw in pair_rows(2)]
    got = score_contrastive(model, processor, rows)

    def cosine(row: Any, text: str) -> float:
        inputs = processor(text=[text], images=row.images, return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        return torch.cosine_similarity(out.image_embeds, out.text_embeds).item()

    assert [one.num_cut for one in got] == [0, 0]
    for (gap, _), row in zip(got, rows, strict=True):
        expected = (cosine(row, "a red dog.") + cosine(row, "a blue cat.")) / 2 - cosine(row, "a cat")
        assert gap == pytest.approx(expected, abs=1e-5)


def test_long_sentences_are_cut_at_words(clip: Any) -> None:
    tokenizer = clip[1].tokenizer
    text = "a red dog and " * 10 + "a cat. a dog."
    found = split_text(text, tokenizer, 12)
    pieces = found.texts
    assert found.num_cut == 1
    assert " ".join(pieces).split() == text.split()
    assert max(len(tokenizer(piece)["input_ids"]) for piece in pieces) <= 12
    assert pieces[-1] == "a dog."


def test_texts_without_spaces_lose_nothing(clip: Any) -> None:
    """The tokenizer would cut off all behind its limit."""
    tokenizer = clip[1].tokenizer
    text = "\u72ac\u304c\u3044\u307e\u3059" * 12 + "\u3002" + "\u732b\u304c\u3044\u307e\u3059\u3002"
    found = split_text(text, tokenizer, 24)
    assert "".join(found.texts) == text
    assert found.num_cut == 1
    assert max(len(tokenizer(piece)["input_ids"]) for piece in found.texts) <= 24


def test_sentences_that_are_cut_are_counted_aloud(
    tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "chosen": "a red dog.", "rejected": f"a cat {i}"} for i, row in enumerate(pair_rows(3))]
    rows[1]["chosen"] = "a red dog and " * 20 + "a cat. a dog."
    pairs = save_rows(tmp_path / "pairs.parquet", rows)
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out") == 0
    assert "  1 sentences are longer than the contrastive model's text tower holds" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "difficulty.json").read_text())["num_cut_sentences"] == 1
    assert main(["fuse-difficulty", str(pairs), "--out", str(tmp_path / "out")]) == 0
    assert "  1 sentences are longer" in capsys.readouterr().out


def test_broken_rows_are_rejected_and_the_rest_scored(tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path) -> None:
    rows = pair_rows(30)
    rows[4]["rejected"] = rows[4]["chosen"]
    rows[9]["chosen"] = [{"role": "assistant", "content": " "}]
    pairs = save_rows(tmp_path / "pairs.parquet", rows)
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out", "--max-reject-share", "0.2") == 0
    scored = Dataset.from_parquet(str(tmp_path / "out" / "scored.parquet"))
    assert scored["id"] == [row["id"] for i, row in enumerate(rows) if i not in (4, 9)]
    for row in scored.remove_columns("images"):
        assert row["gap_generative"] == pytest.approx(row["reference_logps_chosen"] - row["reference_logps_rejected"], abs=1e-9)
        assert sum(row["reference_token_logps_chosen"]) == pytest.approx(row["reference_logps_chosen"], abs=1e-4)
        assert 0 <= row["difficulty"] <= 1
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [
        {"id": "pair-4", "reason": "chosen and rejected are the same text"},
        {"id": "pair-9", "reason": "chosen is empty"},
    ]
    summary = json.loads((tmp_path / "out" / "difficulty.json").read_text())
    assert (summary["num_scored"], summary["num_rejected"]) == (28, 2)


def test_rows_whose_images_are_found_later_are_scored_then(
    tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forgotten image root must not stay in the shards, nor a picture that is downloaded after the first run."""
    rows = pair_rows(6)
    rows[2]["chosen"][0]["content"] = "dog " * 200
    pairs, out = save_by_path(tmp_path / "pairs", rows), tmp_path / "out"
    words = ("--max-length", "60", "--max-reject-share", "0.5")
    assert score(pairs, clip_dir, tiny_llava_dir, out, *words) == 2
    assert "6 of 6 rows are broken" in capsys.readouterr().err
    missing = pairs.parent / "4-0.png"
    content = missing.read_bytes()
    missing.unlink()
    for kept in ((0, 1, 3, 5), (0, 1, 3, 4, 5)):
        assert score(pairs, clip_dir, tiny_llava_dir, out, *words, "--image-root", str(pairs.parent)) == 0
        assert Dataset.from_parquet(str(out / "scored.parquet"))["id"] == [f"pair-{i}" for i in kept]
        missing.write_bytes(content)
    shard = out / "shards" / "000000000.jsonl"
    written = shard.stat().st_mtime_ns
    assert score(pairs, clip_dir, tiny_llava_dir, out, *words, "--image-root", str(pairs.parent)) == 0
    assert shard.stat().st_mtime_ns == written, "a row that is too long is read as before"


def test_a_score_that_is_no_number_costs_its_row_alone(
    tmp_path: Path, clip: Any, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A contrastive model that overflows at one word."""
    model, processor = clip[0].__class__(clip[0].config), clip[1]
    model.load_state_dict(clip[0].state_dict())
    known, word = (set(processor.tokenizer(text)["input_ids"]) for text in ("a red dog. a cat", "a blue cat."))
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight[sorted(word - known)] = torch.nan
    for part in (model, processor):
        part.save_pretrained(tmp_path / "clip")
    rows = [{**row, "chosen": "a red dog.", "rejected": "a cat"} for row in pair_rows(3)]
    rows[1]["chosen"] = "a blue cat."
    pairs, out = save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out"
    assert score(pairs, tmp_path / "clip", tiny_llava_dir, out, "--max-reject-share", "0.4") == 0
    assert Dataset.from_parquet(str(out / "scored.parquet"))["id"] == [rows[0]["id"], rows[2]["id"]]
    (reject,) = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert reject["id"] == rows[1]["id"]
    assert reject["reason"].startswith("gap_contrastive is not finite: a model overflows at this row")
    assert score(pairs, tmp_path / "clip", tiny_llava_dir, tmp_path / "strict") == 2
    assert "1 of 3 rows are broken" in capsys.readouterr().err


def test_voting_again_needs_no_models(tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = save_rows(tmp_path / "pairs.parquet", pair_rows(12))
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out") == 0
    before = Dataset.from_parquet(str(tmp_path / "out" / "scored.parquet"))["difficulty"]
    assert main(["fuse-difficulty", str(pairs), "--out", str(tmp_path / "out"), "--weighting", "equal"]) == 0
    statistics = json.loads((tmp_path / "out" / "difficulty.json").read_text())["statistics"]["all"]
    assert statistics["contrastive"]["weight"] == statistics["generative"]["weight"] == 0.5
    after = Dataset.from_parquet(str(tmp_path / "out" / "scored.parquet"))["difficulty"]
    assert len(before) == len(after) == 12
    other = save_rows(tmp_path / "other.parquet", pair_rows(3, seed=5))
    assert main(["fuse-difficulty", str(other), "--out", str(tmp_path / "out")]) == 2
    assert "name the pairs that were scored" in capsys.readouterr().err


def test_other_proxies_vote_from_columns_of_the_pairs(
    tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = [{**row, "source": "ab"[i % 2], "gap_judge": float(i - 3)} for i, row in enumerate(pair_rows(12))]
    judged[5]["rejected"] = judged[5]["chosen"]
    pairs, out = save_rows(tmp_path / "pairs.parquet", judged), tmp_path / "out"
    assert score(pairs, clip_dir, tiny_llava_dir, out, "--extra-gaps", "judge,human", "--max-reject-share", "0.2") == 2
    assert "the data set, for --extra-gaps, has no column gap_human" in capsys.readouterr().err
    assert score(pairs, clip_dir, tiny_llava_dir, out, "--extra-gaps", "judge", "--max-reject-share", "0.2") == 0
    summary = json.loads((out / "difficulty.json").read_text())
    # The gaps are -3 to 8 without that of pair 5, which is broken: seven are positive.
    assert summary["statistics"]["all"]["judge"]["accuracy"] == pytest.approx(7 / 11)
    assert [one["proxies"] for one in summary["proxy_agreement"]] == [
        ["contrastive", "generative"],
        ["contrastive", "judge"],
        ["generative", "judge"],
    ]
    assert {name: part["num_pairs"] for name, part in summary["sources"].items()} == {"a": 6, "b": 5}
    assert summary["agreement"] == summary["proxy_agreement"][0]["sign_agreement"]
    printed = capsys.readouterr().out
    assert "generative and judge agree on" in printed
    assert "source b: 5 pairs, mean difficulty" in printed
    weights = ["--weights", "contrastive=0,generative=0,judge=2"]
    assert main(["fuse-difficulty", str(pairs), "--out", str(out), "--extra-gaps", "judge", *weights]) == 0
    scored = Dataset.from_parquet(str(out / "scored.parquet"))
    assert scored["gap_judge"] == [float(i - 3) for i in range(12) if i != 5]
    judge = np.array(scored["gap_judge"])
    np.testing.assert_allclose(scored["gap_fused"], judge / judge.std())
    np.testing.assert_allclose(scored["difficulty"], 1 - project_gaps(judge))
    assert main(["fuse-difficulty", str(pairs), "--out", str(out), "--weights", "contrastive=1"]) == 2
    assert "weights are of contrastive; expected one for each proxy: contrastive, generative" in capsys.readouterr().err


def test_an_extra_gap_that_is_missing_is_named(
    tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "gap_judge": None if i == 2 else 1.0} for i, row in enumerate(pair_rows(4))]
    pairs = save_rows(tmp_path / "pairs.parquet", rows)
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out", "--extra-gaps", "judge") == 2
    assert "the judge gap of pair 'pair-2' is nan; score it again or drop the pair" in capsys.readouterr().err


def test_other_weights_under_the_contrastive_models_name_are_refused(
    tmp_path: Path, clip: Any, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the rest of a stopped run would be scored by another model than its beginning."""
    model, processor = clip[0].__class__(clip[0].config), clip[1]
    for part in (model, processor):
        part.save_pretrained(tmp_path / "clip")
    pairs = save_rows(tmp_path / "pairs.parquet", pair_rows(3))
    assert score(pairs, tmp_path / "clip", tiny_llava_dir, tmp_path / "out") == 0
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    model.save_pretrained(tmp_path / "clip")
    assert score(pairs, tmp_path / "clip", tiny_llava_dir, tmp_path / "out") == 2
    assert "holds other scores: its clip_fingerprint is 'weights " in capsys.readouterr().err


def test_scores_of_other_models_are_refused(
    tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = save_rows(tmp_path / "pairs.parquet", pair_rows(3))
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out") == 0
    assert score(pairs, clip_dir, tiny_llava_dir, tmp_path / "out", "--batch-size", "5") == 2
    assert "holds other scores: its batch_size is 16, not 5; choose another --out" in capsys.readouterr().err


def test_missing_columns_and_models_are_named(
    tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Dataset.from_dict({"prompt": ["a"], "chosen": ["b"]}).to_parquet(tmp_path / "pairs.parquet")
    assert score(tmp_path / "pairs.parquet", clip_dir, tiny_llava_dir, tmp_path / "out") == 2
    assert "has no column rejected; it has prompt, chosen" in capsys.readouterr().err
    assert score(tmp_path / "pairs.parquet", tmp_path / "nowhere", tiny_llava_dir, tmp_path / "out") == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_killed_scoring_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, clip_dir: Path, tiny_llava_dir: Path) -> None:
    rows = pair_rows(1300)
    rows[700]["rejected"] = rows[700]["chosen"]
    pairs = save_rows(tmp_path / "pairs.parquet", rows)
    command = [sys.executable, "-m", "mmalign", "score-difficulty", str(pairs), "--clip", str(clip_dir), "--mllm", str(tiny_llava_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("shards/*.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "scored.parquet").exists()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
