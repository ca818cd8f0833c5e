"""``mmalign train`` from files to a checkpoint that plain transformers loads."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from mmalign.cli import main
from mmalign.models.load import load_mllm
from mmalign.worlds.tokenizer import train_tokenizer
from tests.commands.training import read_log, read_rejects, train
from tests.data_files import encoded, save_encoded, save_rows
from tests.tiny_models import list_rows, random_image


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_training_leaves_a_checkpoint_for_plain_transformers(
    tiny_llava_dir: Path, chats: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    """Every weight is found under the name that transformers looks for, and is the one of the last checkpoint."""
    assert train(tiny_llava_dir, chats if kind == "sft" else pairs, tmp_path / "out", kind=kind) == 0
    trained, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    AutoProcessor.from_pretrained(tmp_path / "out")
    last = load_file(tmp_path / "out" / "checkpoints" / "checkpoint-3" / "model.safetensors")
    before = dict(load_mllm(str(tiny_llava_dir))[0].named_parameters())
    moved = set()
    for name, value in trained.named_parameters():
        assert torch.equal(value, last[name]), name
        moved |= set() if torch.equal(value, before[name]) else {name.split(".")[1]}
    assert moved >= {"vision_tower", "multi_modal_projector", "language_model"}
    losses = [entry["loss"] for entry in read_log(tmp_path / "out")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_generation_flags_without_effect_do_not_stop_a_save(tiny_llava_dir: Path, chats: Path, tmp_path: Path) -> None:
    """Published as with Vicuna, a temperature and no sampling: transformers refuses to save that in a config that training has changed."""
    shutil.copytree(tiny_llava_dir, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.9, "top_p": 0.6, "pad_token_id": None}))
    assert train(tmp_path / "model", chats, tmp_path / "out", kind="sft") == 0
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["pad_token_id"]) == (0.9, 0.6, 0)


def test_a_sparse_student_trains_with_router_losses_and_saves_as_plain_transformers(
    tiny_llava_dir: Path, chats: Path, tmp_path: Path
) -> None:
    assert main(["upcycle", str(tiny_llava_dir), "--out", str(tmp_path / "sparse"), "--layers", "all"]) == 0
    freeze = ["--freeze", "vision_tower", "attention_and_embeddings"]
    assert train(tmp_path / "sparse", chats, tmp_path / "out", *freeze, "--router-z-weight", "0.001", kind="sft") == 0
    weights = [*tmp_path.rglob("model.safetensors")]
    assert len(weights) >= 3, "of the sparse model, of a checkpoint and of the trained model"
    assert {path.stat().st_mode for path in weights} == {(tmp_path / "sparse" / "config.json").stat().st_mode}
    trained, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    before = dict(load_mllm(str(tmp_path / "sparse"))[0].named_parameters())
    moved = {name for name, value in trained.named_parameters() if not torch.equal(value, before[name])}
    layers = [f"model.language_model.layers.{i}.mlp.{part}" for i in (0, 1) for part in ("experts.gate_up_proj", "gate.weight")]
    assert moved > set(layers)
    assert all(".mlp." in name or "multi_modal_projector" in name for name in moved)
    log = read_log(tmp_path / "out")
    for entry in log:
        assert sum(entry[f"router_load/l0_e{expert}"] for expert in range(4)) == pytest.approx(1)
        # A balance of two layers at 0.01 each, a z-loss at 0.001.
        added = 2 * (0.01 * entry["router/balance"] + 0.001 * entry["router/z"])
        assert entry["loss"] == pytest.approx(entry["loss/nll"] + added, abs=2e-4)
    assert log[-1]["loss/nll"] < log[0]["loss/nll"]


def test_router_losses_of_a_dense_model_are_refused(
    tiny_llava_dir: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_llava_dir, chats, tmp_path / "out", "--balance-weight", "0.01", kind="sft") == 2
    assert "is dense and has no router; leave --balance-weight and --router-z-weight out" in capsys.readouterr().err


def test_lists_train(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = list_rows([3, 2, 4, 3, 2, 3, 4, 3])
    rows[2]["scores"][0] = 7.0
    data = save_rows(tmp_path / "lists.parquet", rows)
    words = ["--objective", "tpo", "--lora-rank", "4", "--max-reject-share", "0.2"]
    assert train(tiny_llava_dir, data, tmp_path / "out", *words, kind="listwise") == 0
    assert read_rejects(tmp_path / "out") == {"list-2": "scores hold 7; objective tpo expects 0 to 1: rescale them"}
    log = read_log(tmp_path / "out")
    assert log[0]["rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["rewards/margin"] > 1e-3
    assert "trained on lists of scored responses with tpo (beta 0.5)" in (tmp_path / "out" / "README.md").read_text()


def test_contrastive_learns_from_a_config_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    train_tokenizer(["a red dog. a blue cat."] * 3).save_pretrained(tmp_path / "tokenizer")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {"text_config": {**tower, "max_position_embeddings": 24}, "vision_config": {**tower, "image_size": 28, "patch_size": 14}}
    (tmp_path / "clip.json").write_text(json.dumps({"projection_dim": 16, **towers}))
    rows = [
        encoded({"id": str(i), "images": [random_image(i)], "text": f"a {name} dog"}) for i, name in enumerate(["red", "blue", "cat"] * 4)
    ]
    rows[0]["images"], rows[1]["text"] = [], " "
    data = save_encoded(tmp_path / "texts.parquet", rows)
    words = ["--max-reject-share", "0.5", "--max-steps", "20", "--batch-size", "10", "--schedule", "constant", "--learning-rate", "3e-3"]
    model = tmp_path / "clip.json"
    assert train(model, data, tmp_path / "out", *words, "--tokenizer", str(tmp_path / "tokenizer"), kind="contrastive") == 0
    assert read_rejects(tmp_path / "out") == {"0": "row has 0 images; expected one image and its text", "1": "text is empty"}
    log = read_log(tmp_path / "out")
    # Ten rows of three texts: a guess finds one's own text in a third of the cases.
    assert log[-1]["contrastive/accuracy"] > 0.8
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    clip, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(clip).__name__ == "CLIPModel"
    assert not loading["missing_keys"]
    AutoProcessor.from_pretrained(tmp_path / "out")
    assert train(tmp_path / "out", data, tmp_path / "next", *words, kind="contrastive") == 0
    assert read_log(tmp_path / "next")[0]["contrastive/accuracy"] > 0.8
    # Locked-image tuning: the other tower and the projections follow it.
    assert train(tmp_path / "out", data, tmp_path / "locked", *words, "--freeze", "vision_tower", kind="contrastive") == 0
    start, locked = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "locked"))
    same = {name for name in start if torch.equal(start[name], locked[name])}
    assert {name for name in start if name.startswith("vision_model")} <= same
    assert not {"visual_projection.weight", "text_projection.weight", "text_model.embeddings.token_embedding.weight"} & same


def test_frozen_tower_keeps_its_batch_norms(tiny_fastvlm_dir: Path, chats: Path, tmp_path: Path) -> None:
    assert train(tiny_fastvlm_dir, chats, tmp_path / "out", "--freeze", "vision_tower", kind="sft") == 0
    before, after = (load_mllm(str(folder))[0].state_dict() for folder in (tiny_fastvlm_dir, tmp_path / "out"))
    assert any("running_mean" in name for name in before)
    for name, value in before.items():
        assert torch.equal(value, after[name]) or "vision_tower" not in name, name
    assert any(not torch.equal(value, after[name]) for name, value in before.items() if "language_model" in name)


@pytest.mark.parametrize("reference", ["copy", "adapter-off"])
def test_a_reference_runs_in_the_precision_of_the_policy(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, reference: str) -> None:
    """In float32 beside a policy in bfloat16 the first rewards would be what rounding makes of it: 3e-4 here."""
    words = ["--reference", reference, "--precision", "bfloat16", *(["--lora-rank", "4"] if reference == "adapter-off" else [])]
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 0
    assert read_log(tmp_path / "out")[0]["rewards/margin"] == pytest.approx(0, abs=1e-5)


def test_weights_that_train_in_half_precision_are_told(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 2e-6 nearly all steps are less than half of what parts two numbers of bfloat16; an adapter's weights are float32."""
    words = ["--dtype", "bfloat16", "--learning-rate", "2e-6"]
    assert train(tiny_llava_dir, pairs, tmp_path / "half", *words) == 0
    told = capsys.readouterr().out
    assert "weights train in bfloat16: a step that changes one by less than 1/512 of itself is rounded away; --dtype float32" in told
    before, after = (load_mllm(str(folder), dtype="bfloat16")[0].state_dict() for folder in (tiny_llava_dir, tmp_path / "half"))
    same = torch.cat([(value == after[name]).flatten() for name, value in before.items()])
    assert same.float().mean() > 0.9
    assert train(tiny_llava_dir, pairs, tmp_path / "adapter", *words, "--lora-rank", "4", "--train-projector") == 0
    assert train(tiny_llava_dir, pairs, tmp_path / "full", "--precision", "bfloat16") == 0
    assert "rounded away" not in capsys.readouterr().out


def test_reference_with_batch_norms_is_the_policy_at_the_start(tiny_fastvlm_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """In train mode the tower would show the policy other features than the reference, and the first margin would not be 0."""
    assert train(tiny_fastvlm_dir, pairs, tmp_path / "out", "--lora-rank", "4") == 0
    first, *_ = read_log(tmp_path / "out")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margin"] == 0


@pytest.mark.parametrize("weights", [[], ["--lora-rank", "4"]], ids=["full", "adapter"])
def test_gradient_checkpointing_computes_again_and_changes_nothing(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, weights: list[str]
) -> None:
    calls: dict[str, Counter[str]] = {}
    for name, words in (("plain", []), ("checkpointed", ["--gradient-checkpointing"])):
        calls[name] = Counter()
        handle = register_module_forward_pre_hook(lambda module, _, seen=calls[name]: seen.update([type(module).__name__]))
        assert train(tiny_llava_dir, pairs, tmp_path / name, *weights, *words) == 0
        handle.remove()
    assert calls["checkpointed"]["Qwen3MLP"] > calls["plain"]["Qwen3MLP"]
    plain, checkpointed = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in calls)
    for name, value in plain.items():
        assert torch.equal(value, checkpointed[name]), name
