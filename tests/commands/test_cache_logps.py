"""``mmalign cache-logps``: the reference's own numbers, and stale ones refused with both fingerprints."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.images import digest_images
from mmalign.data.rows import read_list, read_pair
from mmalign.difficulty import scoring
from mmalign.engine.probe import RowChoice, own_logps
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import load_mllm
from tests.data_files import save_by_path, save_rows
from tests.tiny_models import list_rows, pair_rows, random_image


@pytest.fixture
def cached(tiny_llava_dir: Path, tmp_path: Path) -> Path:
    pairs = save_rows(tmp_path / "pairs.parquet", pair_rows(6))
    assert main(["cache-logps", str(pairs), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "cache"), "--batch-size", "4"]) == 0
    return tmp_path / "cache" / "cached.parquet"


def train(model: Path, data: Path, out: Path, *more: str) -> int:
    words = ["--model", str(model), "--data", str(data), "--out", str(out), "--batch-size", "3", "--max-steps", "6", "--logging-steps", "1"]
    return main(["train", "preference", *words, "--learning-rate", "1e-3", *more])


def test_the_numbers_are_the_plain_forwards(tiny_llava_dir: Path, cached: Path) -> None:
    model, processor = load_mllm(str(tiny_llava_dir))
    for raw in load_rows(cached):
        row = read_pair(raw, index=0)
        encoded = encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected])
        with torch.no_grad():
            chosen, rejected = own_logps(model, encoded)
        torch.testing.assert_close(torch.tensor(raw["reference_token_logps_chosen"]), chosen, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(raw["reference_token_logps_rejected"]), rejected, rtol=0, atol=1e-5)
        assert raw["reference_logps_chosen"] == pytest.approx(chosen.sum().item(), abs=1e-4)


def test_the_first_pairs_are_compared_and_not_the_shortest(tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs without an image are the shortest, and say nothing of how images are read."""
    rows = pair_rows(4)
    for row in rows[2:]:
        row["images"] = []
    seen = []

    def probe(model: Any, prompts: Sequence[EncodedPrompt], **options: Any) -> RowChoice:
        seen.append([prompt.num_images for prompt in prompts])
        return RowChoice(True, "")

    monkeypatch.setattr(scoring, "probe_rows", probe)
    pairs = save_rows(tmp_path / "pairs.parquet", rows)
    assert main(["cache-logps", str(pairs), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "cache")]) == 0
    assert seen == [[1, 1]]


def test_a_cached_reference_trains_like_a_live_one(tiny_llava_dir: Path, cached: Path, tmp_path: Path) -> None:
    assert train(tiny_llava_dir, cached, tmp_path / "cached", "--reference", "cached") == 0
    assert train(tiny_llava_dir, cached, tmp_path / "live", "--reference", "copy") == 0
    one, other = (json.loads((tmp_path / name / "train_log.json").read_text())[:-1] for name in ("cached", "live"))
    assert len(one) == len(other) == 6
    assert one[-1]["rewards/margin"] > 0.1
    for mine, theirs in zip(one, other, strict=True):
        # Adam's first steps are as long for a gradient that is rounding noise: weights may differ, what they compute hardly.
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert mine["rewards/margin"] == pytest.approx(theirs["rewards/margin"], abs=5e-3)


def test_other_images_are_cached_for_the_objectives_that_compare_them(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "images_other": [random_image(60 + i) for _ in row["images"]]} for i, row in enumerate(pair_rows(6))]
    pairs = save_rows(tmp_path / "pairs.parquet", rows)
    words = ["cache-logps", str(pairs), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "cache"), "--batch-size", "4"]
    asked = ["--objective", "mdpo", "symmpo", "--weaken", "mask", "--weaken-seed", "7"]
    assert main([*words, *asked]) == 0
    cached = tmp_path / "cache" / "cached.parquet"
    names = set(load_rows(cached).column_names)
    cells = {"chosen_weakened", "other_own", "other_other", "chosen_other"}
    assert names >= {f"reference_logps_{cell}" for cell in cells} | {"reference_views"}
    same = ["--objective", "mdpo", "symmpo", "--weaken", "mask"]
    logs = {}
    for name, more in {"cached": ["--weaken-seed", "7"], "copy": ["--weaken-seed", "7"]}.items():
        assert train(tiny_llava_dir, cached, tmp_path / name, "--reference", name, *same, *more) == 0
        logs[name] = json.loads((tmp_path / name / "train_log.json").read_text())[:-1]
    for mine, theirs in zip(logs["cached"], logs["copy"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert mine["rewards/over_weakened"] == pytest.approx(theirs["rewards/over_weakened"], abs=5e-3)
    assert logs["copy"][-1]["rewards/over_weakened"] > 0.02
    assert train(tiny_llava_dir, cached, tmp_path / "seed", "--reference", "cached", *same) == 2
    assert "run mmalign cache-logps again with the same --objective, --weaken and --weaken-seed" in capsys.readouterr().err
    # The folder is of these objectives: another choice is another cache.
    assert main([*words, "--objective", "mdpo"]) == 2
    assert "holds other scores" in capsys.readouterr().err
    # What one reference said of other images does not stay beside what another one says of the pairs.
    assert main(["cache-logps", str(cached), "--model", str(tiny_llava_dir), "--dtype", "bfloat16", "--out", str(tmp_path / "again")]) == 0
    again = set(load_rows(tmp_path / "again" / "cached.parquet").column_names)
    assert names - again == {f"reference_logps_{cell}" for cell in cells} | {"reference_views"}


def test_log_probabilities_of_another_model_are_refused(
    tiny_llava_dir: Path, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_llava_dir, changed)
    weights = load_file(changed / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    held, wanted = (fingerprint_checkpoint(str(folder), dtype="auto") for folder in (tiny_llava_dir, changed))
    assert train(changed, cached, tmp_path / "out", "--reference", "cached") == 2
    error = capsys.readouterr().err
    assert f"they come from {held}, the reference is {wanted}" in error
    # The reference may be another model than the policy: a teacher, named.
    assert train(changed, cached, tmp_path / "taught", "--reference", "cached", "--reference-model", str(tiny_llava_dir)) == 0
    assert train(tiny_llava_dir, cached, tmp_path / "half", "--reference", "cached", "--dtype", "bfloat16") == 2
    assert held.replace("float32", "bfloat16") in capsys.readouterr().err


def test_log_probabilities_of_another_text_are_refused(
    tiny_llava_dir: Path, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"chosen": [{"role": "assistant", "content": "a star"}]} if index == 0 else {}

    Dataset.from_parquet(str(cached)).map(edit, with_indices=True).to_parquet(tmp_path / "edited.parquet")
    assert train(tiny_llava_dir, tmp_path / "edited.parquet", tmp_path / "out", "--reference", "cached") == 2
    assert "of row pair-0 are stale: they are of the text" in capsys.readouterr().err


def test_log_probabilities_of_other_images_are_refused(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words are the same; only the file behind a name is another one."""
    pairs = save_by_path(tmp_path / "pairs", pair_rows(4))
    root = ("--image-root", str(pairs.parent))
    words = ["cache-logps", str(pairs), "--model", str(tiny_llava_dir), *root]
    assert main([*words, "--out", str(tmp_path / "cache")]) == 0
    cached = tmp_path / "cache" / "cached.parquet"
    assert train(tiny_llava_dir, cached, tmp_path / "same", "--reference", "cached", *root) == 0
    held = load_rows(cached)[0]["reference_images"]
    random_image(99).save(pairs.parent / "0-0.png")
    now = digest_images([random_image(99)])
    assert train(tiny_llava_dir, cached, tmp_path / "other", "--reference", "cached", *root) == 2
    assert f"of row pair-0 are stale: they are of the images {held}, the row's images are {now}; run" in capsys.readouterr().err
    # Nor is a stopped run continued with them.
    (tmp_path / "cache" / "cached.parquet").unlink()
    assert main([*words, "--out", str(tmp_path / "cache")]) == 2
    error = capsys.readouterr().err
    assert f"000000000.jsonl was made from the images {held} of row pair-0, and they are {now} now; remove the shards" in error
    (tmp_path / "cache" / "shards" / "000000000.jsonl").unlink()
    assert main([*words, "--out", str(tmp_path / "cache")]) == 0
    assert load_rows(cached)[0]["reference_images"] == now


def test_a_picture_has_one_digest_wherever_it_lies(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Log-probabilities of pairs with embedded images serve the pairs with paths, and the other way round."""
    embedded, paths = save_rows(tmp_path / "pairs.parquet", pair_rows(4)), save_by_path(tmp_path / "paths", pair_rows(4))
    found = []
    for name, pairs in (("embedded", embedded), ("paths", paths)):
        words = ["--model", str(tiny_llava_dir), "--image-root", str(paths.parent), "--out", str(tmp_path / name)]
        assert main(["cache-logps", str(pairs), *words]) == 0
        found.append(load_rows(tmp_path / name / "cached.parquet"))
    for column in ("reference_images", "reference_text", "reference_token_logps_chosen"):
        assert found[0][column] == found[1][column]
    assert len(set(found[0]["reference_images"])) == 4


def test_log_probabilities_that_know_no_images_are_refused(
    tiny_llava_dir: Path, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_rows(cached).remove_columns("reference_images").to_parquet(tmp_path / "old.parquet")
    assert train(tiny_llava_dir, tmp_path / "old.parquet", tmp_path / "out", "--reference", "cached") == 2
    assert "have no column reference_images: an earlier version wrote them" in capsys.readouterr().err


def test_fingerprints_follow_weights_processor_and_precision(tiny_llava_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llava_dir, folder)
    first = fingerprint_checkpoint(str(folder), dtype="float32")
    assert first == fingerprint_checkpoint(str(tiny_llava_dir), dtype="float32")
    (folder / "README.md").write_text("a card is no part of the model")
    assert fingerprint_checkpoint(str(folder), dtype="float32") == first
    (folder / "tokenizer").mkdir()
    assert fingerprint_checkpoint(str(folder), dtype="float32") == first
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    second = fingerprint_checkpoint(str(folder), dtype="float32")
    assert second.split(",")[0] == first.split(",")[0]
    assert second.split(",")[1] != first.split(",")[1]
    with pytest.raises(ValueError, match="has no safetensors weights"):
        fingerprint_checkpoint(str(tmp_path), dtype="float32")


def test_the_fingerprint_of_an_adapter_follows_what_it_computes_with(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Its scale stands in ``adapter_config.json`` alone; where the base lies is no part of it."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path / "adapter"
    get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_llava_dir), config).save_pretrained(folder)
    shutil.copytree(tiny_llava_dir, tmp_path / "elsewhere")
    held = json.loads((folder / "adapter_config.json").read_text())

    def changed(**fields: Any) -> str:
        (folder / "adapter_config.json").write_text(json.dumps(held | fields))
        return fingerprint_checkpoint(str(folder), dtype="float32")

    first = changed()
    base, modules = str(tmp_path / "elsewhere"), held["target_modules"][::-1]
    assert changed(base_model_name_or_path=base, target_modules=modules, peft_version="1.0") == first
    assert len({first, changed(lora_alpha=8), changed(use_rslora=True), changed(alpha_pattern={"q_proj": 8})}) == 4


@pytest.fixture
def hub(tiny_llava_dir: Path) -> Iterator[str]:
    """A hub with one model, which answers what downloading asks: the list of files, and each file with its ETag."""
    files = {path.name: path.read_bytes() for path in tiny_llava_dir.iterdir() if path.is_file()}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].rsplit("/", 1)[-1]
            found = files.get(name)
            if "/tree/" in self.path:
                tree = [{"type": "file", "path": name, "size": len(content), "oid": name} for name, content in files.items()]
                found = json.dumps(tree).encode()
            elif "/api/models/" in self.path:
                siblings = [{"rfilename": name} for name in files]
                found = json.dumps({"id": "org/tiny", "sha": "0" * 40, "private": False, "tags": [], "siblings": siblings}).encode()
            self.send_response(404 if found is None else 200)
            for key, value in (("X-Repo-Commit", "0" * 40), ("ETag", f'"{name}"'), ("Content-Length", str(len(found or b"")))):
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found or b"")

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_hub_id_that_was_never_downloaded(hub: str, tiny_llava_dir: Path, tmp_path: Path) -> None:
    """The fingerprint is taken before the model is loaded, so it can't count on the cache."""
    code = "from mmalign.models.fingerprint import fingerprint_checkpoint as f; print(f('org/tiny', dtype='float32'))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == fingerprint_checkpoint(str(tiny_llava_dir), dtype="float32")


def train_lists(model: Path, data: Path, out: Path, *more: str) -> int:
    words = ["--model", str(model), "--data", str(data), "--out", str(out), "--batch-size", "3", "--max-steps", "3", "--logging-steps", "1"]
    return main(["train", "listwise", *words, "--learning-rate", "1e-3", "--objective", "plackett_luce", "adpo", *more])


@pytest.mark.parametrize(("command", "name"), [("score-difficulty", "scored"), ("cache-logps", "cached"), ("score-rewards", "rewarded")])
def test_the_pairs_are_not_written_over(command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = save_rows(tmp_path / f"{name}.parquet", pair_rows(2))
    before = pairs.read_bytes()
    models = ["--clip", "lost", "--mllm", "lost"] if command == "score-difficulty" else ["--model", "lost"]
    assert main([command, str(pairs), *models, "--out", str(tmp_path)]) == 2
    assert f"{name}.parquet is read and would be written over; choose another --out" in capsys.readouterr().err
    assert pairs.read_bytes() == before


def test_lists_are_cached_too(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers are the plain forward's; they train like a live reference; stale texts and missing columns are refused."""
    lists = save_rows(tmp_path / "lists.parquet", list_rows([3, 2, 4, 3]))
    assert main(["cache-logps", str(lists), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "cache"), "--batch-size", "3"]) == 0
    cached = tmp_path / "cache" / "cached.parquet"
    model, processor = load_mllm(str(tiny_llava_dir))
    for raw in load_rows(cached):
        row = read_list(raw, index=0)
        encoded = encode_responses(processor, images=row.images, prompt=row.prompt, responses=row.responses)
        with torch.no_grad():
            expected = own_logps(model, encoded)
        assert raw["reference_logps_responses"] == pytest.approx([value.sum().item() for value in expected], abs=1e-4)
        for held, value in zip(raw["reference_token_logps_responses"], expected, strict=True):
            assert held == pytest.approx(value.tolist(), abs=1e-4)
    assert train_lists(tiny_llava_dir, cached, tmp_path / "cached", "--reference", "cached") == 0
    assert train_lists(tiny_llava_dir, cached, tmp_path / "live", "--reference", "copy") == 0
    one, other = (json.loads((tmp_path / name / "train_log.json").read_text())[:-1] for name in ("cached", "live"))
    assert len(one) == 3
    for mine, theirs in zip(one, other, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
    assert train_lists(tiny_llava_dir, lists, tmp_path / "none", "--reference", "cached") == 2
    assert "no column reference_logps_responses" in capsys.readouterr().err
    edited = tmp_path / "edited.parquet"
    Dataset.from_parquet(str(cached)).map(lambda row: {"responses": row["responses"][::-1]}).to_parquet(edited)
    assert train_lists(tiny_llava_dir, edited, tmp_path / "edited", "--reference", "cached") == 2
    assert "are stale: they are of the text" in capsys.readouterr().err
