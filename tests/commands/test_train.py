"""``mmalign train`` from files to a checkpoint that plain transformers loads; what it refuses, and what it leaves out."""

import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from mmalign.cli import main
from mmalign.commands.train import LIST_NAMES, PAIR_NAMES
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.objectives import PAIR_OBJECTIVES
from mmalign.models.load import load_mllm
from mmalign.worlds.tokenizer import train_tokenizer
from tests.data_files import chat_rows, encoded, save_encoded, save_rows, scored_rows
from tests.tiny_families import fastvlm
from tests.tiny_models import QWEN3, build_tokenizer, list_rows, random_image

STEP = ["--max-steps", "3", "--batch-size", "4", "--logging-steps", "1", "--learning-rate", "1e-3"]


def train(model: Path, data: Path, out: Path, *words: str, kind: str = "preference") -> int:
    return main(["train", kind, "--model", str(model), "--data", str(data), "--out", str(out), *STEP, *words])


def read_log(out: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]


def read_rejects(out: Path) -> dict[str, str]:
    lines = (out / "rejects.jsonl").read_text().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(8, reference=tiny_llava_dir))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("chats") / "chats.parquet", chat_rows(8))


@pytest.fixture(scope="module")
def tiny_fastvlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mmalign compose`` makes of a convolutional tower, which has batch norms."""
    folder = tmp_path_factory.mktemp("fastvlm")
    tower = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
    for name, values in (("tower", tower), ("llm", QWEN3)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    build_tokenizer().save_pretrained(folder / "tokenizer")
    halves = ["--vision", str(folder / "tower.json"), "--llm", str(folder / "llm.json"), "--tokenizer", str(folder / "tokenizer")]
    assert main(["compose", *halves, "--image-size", "64", "--out", str(folder / "model")]) == 0
    return folder / "model"


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


@pytest.mark.parametrize(
    "words", [["--objective", "simpo:target_margin=0.5"], ["--objective", "dpo,orpo:weight=0.5"], ["--objective", "ld_dpo", "ipo"]]
)
def test_objectives_train_and_stand_in_the_card(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, words: list[str]) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 0
    log = read_log(tmp_path / "out")
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["rewards/margin"] > log[0]["rewards/margin"]
    card = (tmp_path / "out" / "README.md").read_text()
    expected = {
        "simpo:target_margin=0.5": "with simpo (beta 2)",
        "dpo,orpo:weight=0.5": "with dpo (beta 0.1) + orpo,",
        "ld_dpo": "with ld_dpo (beta 0.1) + ipo",
    }
    assert expected[words[1]] in card


def test_a_sparse_student_trains_with_router_losses_and_saves_as_plain_transformers(
    tiny_llava_dir: Path, chats: Path, tmp_path: Path
) -> None:
    assert main(["upcycle", str(tiny_llava_dir), "--out", str(tmp_path / "sparse"), "--layers", "all"]) == 0
    freeze = ["--freeze", "vision_tower", "attention_and_embeddings"]
    assert train(tmp_path / "sparse", chats, tmp_path / "out", *freeze, "--router-z-weight", "0.001", kind="sft") == 0
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


def test_help_names_every_objective() -> None:
    """The names are written out, because the registries need torch."""
    assert PAIR_NAMES.split(", ") == PAIR_OBJECTIVES.names()
    assert LIST_NAMES.split(", ") == LIST_OBJECTIVES.names()


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


def test_frozen_tower_keeps_its_batch_norms(tiny_fastvlm_dir: Path, chats: Path, tmp_path: Path) -> None:
    assert train(tiny_fastvlm_dir, chats, tmp_path / "out", "--freeze", "vision_tower", kind="sft") == 0
    before, after = (load_mllm(str(folder))[0].state_dict() for folder in (tiny_fastvlm_dir, tmp_path / "out"))
    assert any("running_mean" in name for name in before)
    for name, value in before.items():
        assert torch.equal(value, after[name]) or "vision_tower" not in name, name
    assert any(not torch.equal(value, after[name]) for name, value in before.items() if "language_model" in name)


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


@pytest.mark.parametrize("mode", ["off", "paper", "paper-norm", "both"])
def test_preference_logs_rewards_and_quartiles(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, mode: str) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--difficulty-mode", mode, "--reference", "copy", "--batch-size", "8") == 0
    first, _, last = read_log(tmp_path / "out")
    # Before the first step the policy is the reference: every margin is 0 and the loss log 2.
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-5)
    if mode != "both":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["rewards/margin"] > 0
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracy"} <= set(last)
    assert {f"rewards/margin_q{number}" for number in (1, 2, 3, 4)} <= set(last)


def test_equal_difficulties_train_like_plain_dpo(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """To the last bit of every weight. The paper's mode raises every beta alike: it is plain DPO at beta 0.1 (1 + 0.5)."""
    data = save_rows(tmp_path / "pairs.parquet", [{**row, "difficulty": 0.5} for row in scored_rows(8, reference=tiny_llava_dir)])
    weights = {}
    for mode, beta in (("off", "0.1"), ("paper-norm", "0.1"), ("loss-weight", "0.1"), ("off", "0.15"), ("paper", "0.1")):
        out = tmp_path / f"{mode}-{beta}"
        assert train(tiny_llava_dir, data, out, "--difficulty-mode", mode, "--beta", beta, "--reference", "cached") == 0
        weights[out.name] = load_file(out / "model.safetensors")
    for one, other in (("paper-norm-0.1", "off-0.1"), ("loss-weight-0.1", "off-0.1"), ("paper-0.1", "off-0.15")):
        for name, value in weights[one].items():
            assert torch.equal(value, weights[other][name]), (one, name)
    assert any(not torch.equal(value, weights["off-0.15"][name]) for name, value in weights["off-0.1"].items())


@pytest.mark.parametrize(("curriculum", "order"), [("easy-to-hard", [1, 2, 3, 4]), ("hard-to-easy", [4, 3, 2, 1])])
def test_curriculum_is_the_order_that_is_trained_in(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, curriculum: str, order: list[int]
) -> None:
    """Eight pairs, two a step: each step sees one quarter of difficulty, whatever the order in the file."""
    words = ["--reference", "cached", "--batch-size", "2", "--max-steps", "4"]
    shuffled = tmp_path / "shuffled.parquet"
    Dataset.from_parquet(str(pairs)).select([5, 0, 7, 3, 1, 6, 2, 4]).to_parquet(shuffled)
    assert train(tiny_llava_dir, shuffled, tmp_path / "out", *words, "--curriculum", curriculum) == 0
    seen = [[key for key in entry if "margin_q" in key] for entry in read_log(tmp_path / "out")]
    assert seen == [[f"rewards/margin_q{number}"] for number in order]


def test_selection_is_printed_recorded_and_trained_on(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [-3.0, 1.0, 0.5, -1.5, 2.0, 0.1, -0.2, 1.0]
    rows = [{**row, "gap_fused": gap} for row, gap in zip(scored_rows(8, reference=tiny_llava_dir), gaps, strict=True)]
    data = save_rows(tmp_path / "pairs.parquet", rows)
    results = {}
    for noisy in ("keep", "drop", "flip", "smooth"):
        out = tmp_path / noisy
        words = [
            "--reference",
            "cached",
            "--noisy-gap",
            noisy,
            "--difficulty-range",
            "0.1",
            "0.9",
            "--batch-size",
            "8",
            "--warmup-ratio",
            "0",
        ]
        assert train(tiny_llava_dir, data, out, *words) == 0
        record = json.loads((out / "mmalign_run.json").read_text())
        results[noisy] = (record["selection"], load_file(out / "model.safetensors"), capsys.readouterr().out)
    assert results["keep"][0] == {"outside_difficulty_range": 2, "trained_on": 6}
    found = {"noisy_gap_threshold": -1.0, "noisy_pairs": 2}
    assert results["drop"][0] == {**found, "noisy_gap": "drop", "outside_difficulty_range": 1, "trained_on": 5}
    assert results["flip"][0] == {**found, "noisy_gap": "flip", "outside_difficulty_range": 2, "trained_on": 6}
    assert "noisy gaps: 2 of 8 pairs, fused gap at or below -1.000 standard deviations, dropped" in results["drop"][2]
    assert "difficulty from 0.1 to 0.9: 5 of 6 pairs remain" in results["drop"][2]
    assert "on 5 of 8 rows" in results["drop"][2]
    for one, other in itertools.combinations(results, 2):
        assert any(not torch.equal(value, results[other][1][name]) for name, value in results[one][1].items()), (one, other)


def test_preference_with_an_adapter(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(tiny_llava_dir, pairs, out, "--lora-rank", "4") == 0
    assert (out / "adapter_model.safetensors").is_file()
    model, _ = load_mllm(str(out))
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in model.named_parameters())
    assert "library_name: peft" in (out / "README.md").read_text()
    random_image(0).save(tmp_path / "0.png")
    question = {"question_id": 1, "image": "0.png", "text": "is there a dog", "label": "yes"}
    (tmp_path / "pope_random.jsonl").write_text(json.dumps(question) + "\n")
    asked = ["evaluate", "pope", "--data", str(tmp_path / "pope_random.jsonl"), "--images", str(tmp_path), "--max-new-tokens", "3"]
    assert main([*asked, "--model", str(out), "--out", str(tmp_path / "results")]) == 0
    assert json.loads((tmp_path / "results" / "pope.json").read_text())["num_answers"] == 1
    assert train(out, pairs, tmp_path / "again") == 2


def test_a_folder_of_another_run_is_left_alone(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(tiny_llava_dir, pairs, out, "--reference", "cached") == 0
    weights = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert train(tiny_llava_dir, pairs, out, "--reference", "cached", "--beta", "0.5") == 2
    assert "holds another run: its beta is None, this one's 0.5" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == weights
    other = save_rows(tmp_path / "pairs.parquet", scored_rows(8, seed=1, reference=tiny_llava_dir))
    assert train(tiny_llava_dir, other, out, "--reference", "cached") == 2
    assert "holds another run: its data is" in capsys.readouterr().err
    assert train(tiny_llava_dir, pairs, out, kind="sft") == 2
    assert "holds another run: its method is 'preference', this one's 'sft'" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    assert train(tiny_llava_dir, pairs, tmp_path / "notes") == 2
    assert "is not empty and holds no run of mmalign" in capsys.readouterr().err


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
        "pair-4": "prompt has 1 image placeholders for 0 images",
    }
    reasons = read_rejects(tmp_path / "out")
    assert set(reasons) == set(expected)
    for row_id, text in expected.items():
        assert text in reasons[row_id], (row_id, reasons[row_id])


def test_scores_that_are_text_are_no_scores(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "difficulty": "hard"} for row in scored_rows(4)]
    data = save_rows(tmp_path / "pairs.parquet", rows)
    assert train(tiny_llava_dir, data, tmp_path / "out", "--max-reject-share", "1") == 2
    assert "no row of 4 can be used; the reasons are in" in capsys.readouterr().err
    assert read_rejects(tmp_path / "out")["pair-0"] == "difficulty is 'hard'; expected a number in [0, 1]: score the pairs again"


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
    ],
)
def test_columns_that_are_not_there(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], drop: str, words: list[str], message: str
) -> None:
    rows = [{key: value for key, value in row.items() if key != drop} for row in scored_rows(4, reference=tiny_llava_dir)]
    assert train(tiny_llava_dir, save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "dense-to-sparse"], "stage dense-to-sparse is not of a dense model, whose stages are init, dense-to-dense"),
        (["--stage", "init", "--freeze", "projector"], "--stage init says what is frozen; leave --freeze projector out"),
        (["--stage", "init", "--lora-rank", "2"], "--freeze and --stage are for full weights"),
        (["--kl-weight", "0"], "kl_weight is 0.0; expected a positive number"),
        (["--temperature", "-1"], "temperature is -1.0; expected a positive number"),
    ],
)
def test_mimic_refuses_what_makes_no_sense(
    tiny_llava_dir: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(tiny_llava_dir, chats, tmp_path / "out", "--teacher", str(tiny_llava_dir), *words, kind="mimic") == 2
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


def test_a_teacher_as_the_reference_tells_where_rewards_begin(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--reference", "model") == 2
    assert "--reference model needs the model: name it with --reference-model" in capsys.readouterr().err
    twin = ["--reference", "model", "--reference-model", str(tiny_llava_dir), "--objective", "kto_pair"]
    assert train(tiny_llava_dir, pairs, tmp_path / "twin", *twin) == 0
    assert "rewards before the first step" not in capsys.readouterr().out
    shutil.copytree(tiny_llava_dir, tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    scaled = {name: value * (1.2 if "mlp" in name else 1) for name, value in weights.items()}
    save_file(scaled, tmp_path / "teacher" / "model.safetensors", metadata={"format": "pt"})
    words = ["--reference-model", str(tmp_path / "teacher"), "--objective", "kto_pair", "--center-rewards"]
    assert train(tiny_llava_dir, pairs, tmp_path / "taught", *words) == 0
    assert "rewards before the first step, on 8 pairs: chosen " in capsys.readouterr().out
