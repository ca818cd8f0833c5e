"""``mmalign train preference|listwise|sft --pictures``: rows, losses by hand, codes that stand in the data, resume bit for bit."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional as F

from mmalign.data.pictures import encode_caption
from mmalign.methods.pictures import drawn_shares
from mmalign.models.load import load_mllm
from mmalign.models.picture_tokens import find_picture_tokens
from tests.commands.training import read_log, read_rejects, train
from tests.pictures.conftest import picture_lists, picture_pairs, save_pictures
from tests.tiny_models import random_image


def stock_sum(model: Any, processor: Any, caption: str, picture: Any) -> float:
    """Log p of a picture by stock Janus, from the picture itself."""
    tokens = find_picture_tokens(model)
    codes = tokens.tokenize(processor.image_processor([picture], return_tensors="pt")["pixel_values"])
    prefix = torch.tensor([encode_caption(processor, caption, tokens)])
    row = torch.cat([model.get_input_embeddings()(prefix), model.prepare_embeddings_for_image_generation(codes)], 1)
    with torch.no_grad():
        logits = model.model.generation_head(model.model(inputs_embeds=row, use_cache=False).last_hidden_state)
    return -float(F.cross_entropy(logits[0, prefix.shape[1] - 1 : -1], codes[0], reduction="sum"))


def test_pairs_train_and_the_first_loss_is_that_of_stock_janus(janus_dir: Path, drawn_pairs: Path, tmp_path: Path) -> None:
    """SimPO has no reference: its loss is not log 2 before the first step, and is worked out here from stock log-probabilities."""
    words = ["--pictures", "--objective", "simpo:target_margin=0.5", "--batch-size", "8"]
    assert train(janus_dir, drawn_pairs, tmp_path / "out", *words) == 0
    model, processor = load_mllm(str(janus_dir), dtype="float32")
    losses = []
    for row in picture_pairs(8):
        chosen, rejected = (stock_sum(model, processor, row["caption"], row[name]) / 16 for name in ("image_chosen", "image_rejected"))
        losses.append(math.log1p(math.exp(-(2.0 * (chosen - rejected) - 0.5))))
    log = read_log(tmp_path / "out")
    assert log[0]["loss"] == pytest.approx(sum(losses) / 8, abs=1e-4)
    assert log[-1]["loss"] < log[0]["loss"]
    assert "trained on pairs of pictures with simpo" in (tmp_path / "out" / "README.md").read_text()


def test_only_what_draws_has_moved(janus_dir: Path, drawn_pairs: Path, tmp_path: Path) -> None:
    assert train(janus_dir, drawn_pairs, tmp_path / "out", "--pictures", "--objective", "dpo", "smpo:weight=0.5", "--beta", "0.5") == 0
    log = read_log(tmp_path / "out")
    assert log[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1]["rewards/margin"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (janus_dir, tmp_path / "out"))
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"language_model", "generation_head", "generation_embeddings", "generation_aligner"}


@pytest.mark.parametrize("objective", ["rank_dpo", "plackett_luce", "adpo"])
def test_lists_train(janus_dir: Path, tmp_path: Path, objective: str) -> None:
    data = save_pictures(tmp_path / "lists.parquet", picture_lists(8))
    assert train(janus_dir, data, tmp_path / "out", "--pictures", "--objective", objective, "--batch-size", "8", kind="listwise") == 0
    log = read_log(tmp_path / "out")
    assert log[-1]["rewards/margin"] > log[0]["rewards/margin"]


def test_a_run_that_stopped_ends_in_the_same_weights(janus_dir: Path, drawn_pairs: Path, tmp_path: Path) -> None:
    """Pairs, and captions that are dropped at random: from a checkpoint in the middle of an epoch."""
    chats = save_pictures(tmp_path / "sft.parquet", [{"caption": row["caption"], "image": row["image_chosen"]} for row in picture_pairs(8)])
    for kind, data, more in (("preference", drawn_pairs, ["--objective", "ddo"]), ("sft", chats, ["--caption-dropout", "0.5"])):
        words = ["--pictures", "--max-steps", "6", "--save-steps", "3", "--batch-size", "3", "--schedule", "constant", *more]
        whole, again = tmp_path / f"{kind}-whole", tmp_path / f"{kind}-again"
        assert train(janus_dir, data, whole, *words, kind=kind) == 0
        shutil.copytree(whole, again)
        # As a killed run leaves it: its first checkpoint, and no model.
        shutil.rmtree(again / "checkpoints" / "checkpoint-6")
        (again / "model.safetensors").unlink()
        record = json.loads((again / "mmalign_run.json").read_text())
        record["options"]["out"] = str(again)
        (again / "mmalign_run.json").write_text(json.dumps(record))
        assert train(janus_dir, data, again, *words, kind=kind) == 0
        expected, got = (load_file(folder / "model.safetensors") for folder in (whole, again))
        assert all(torch.equal(expected[name], got[name]) for name in expected)
        assert read_log(whole) == read_log(again)


def test_codes_in_the_data_stand_for_their_picture(
    janus_dir: Path, drawn_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given ones are taken, missing ones made; those of another tokenizer and of another length are refused, equal ones left out."""
    model, processor = load_mllm(str(janus_dir), dtype="float32")
    tokens = find_picture_tokens(model)
    rows = []
    for number, row in enumerate(picture_pairs(8)):
        pixels = processor.image_processor([row["image_rejected"], row["image_chosen"]], return_tensors="pt")["pixel_values"]
        rejected, chosen = tokens.tokenize(pixels).tolist()
        rows.append(
            {**row, "codes_rejected": chosen if number == 3 else None if number == 5 else rejected, "codes_of": tokens.tokenizer_digest()}
        )
    # The picture is another one than its codes say: the codes count.
    rows[0]["image_rejected"] = random_image(99)
    data = save_pictures(tmp_path / "coded.parquet", [row for number, row in enumerate(rows) if number != 3])
    seven = save_pictures(tmp_path / "seven.parquet", [row for number, row in enumerate(picture_pairs(8)) if number != 3])
    logs = []
    for number, source in enumerate((data, seven)):
        assert train(janus_dir, source, tmp_path / f"out{number}", "--pictures", "--batch-size", "7") == 0
        logs.append(read_log(tmp_path / f"out{number}"))
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    capsys.readouterr()
    assert train(janus_dir, save_pictures(tmp_path / "same.parquet", rows), tmp_path / "same", "--pictures") == 0
    assert "1 of 8 rows hold pictures that are the same to the model's tokenizer, and are left out" in capsys.readouterr().out
    for change, message in (
        ({"codes_of": "0123456789ab"}, "come from the tokenizer 0123456789ab"),
        ({"codes_rejected": [1, 2]}, "has 2 codes"),
    ):
        (name,) = change
        stale = save_pictures(tmp_path / f"{name}.parquet", [{**row, **change} for row in rows])
        assert train(janus_dir, stale, tmp_path / name, "--pictures") == 2
        assert message in capsys.readouterr().err


def test_lists_of_codes_belong_to_lists_of_pictures(janus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many, or pictures and scores would be those of other codes."""
    tokens = find_picture_tokens(load_mllm(str(janus_dir), dtype="float32")[0])
    coded = {"codes_responses": [[7] * tokens.size, [8] * tokens.size], "codes_of": tokens.tokenizer_digest()}
    rows = [{**row, **coded} for row in picture_lists(4)]
    data = save_pictures(tmp_path / "lists.parquet", rows)
    assert train(janus_dir, data, tmp_path / "out", "--pictures", "--objective", "rank_dpo", kind="listwise") == 2
    assert "codes_responses has 2 entries for 3 pictures" in capsys.readouterr().err


def test_lists_of_pictures_without_a_preference_are_rejected_as_those_of_words_are(janus_dir: Path, tmp_path: Path) -> None:
    """Some that are equal carry no order, and the others do."""
    rows = [{"id": f"list-{number}", **row} for number, row in enumerate(picture_lists(5))]
    for number, scores in {1: [0.5, 0.5], 2: [math.inf, 0.5, 0.1], 4: [0.5, 0.5, 0.1]}.items():
        rows[number]["scores"] = scores
    data = save_pictures(tmp_path / "lists.parquet", rows)
    words = ["--pictures", "--objective", "plackett_luce", "--max-reject-share", "0.5"]
    assert train(janus_dir, data, tmp_path / "out", *words, kind="listwise") == 0
    assert read_rejects(tmp_path / "out") == {
        "list-1": "every picture has score 0.5: there is no preference to learn",
        "list-2": "scores hold inf; expected finite numbers",
    }


def test_broken_rows_are_rejected_with_their_reason(janus_dir: Path, tmp_path: Path) -> None:
    rows = picture_pairs(8)
    rows[1]["caption"] = " "
    rows[2]["image_rejected"] = rows[2]["image_chosen"]
    rows[4]["caption"] = "a <image> here"
    rows[6]["score_rejected"] = float("nan")
    data = save_pictures(tmp_path / "pairs.parquet", rows)
    words = ["--pictures", "--objective", "smpo", "--max-reject-share", "0.6"]
    assert train(janus_dir, data, tmp_path / "out", *words) == 0
    reasons = read_rejects(tmp_path / "out")
    assert reasons.keys() == {"drawing-1", "drawing-2", "drawing-4", "drawing-6"}
    assert reasons["drawing-1"] == "caption is ' '; expected text"
    assert reasons["drawing-2"] == "two pictures of image_chosen and image_rejected are the same"
    assert "holds <image>" in reasons["drawing-4"]
    assert "score_rejected" in reasons["drawing-6"]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("preference", ["--chasing", "--lora-rank", "4"], "--chasing trains on words alone"),
        ("preference", ["--reference", "cached"], "pictures have no cached log-probabilities"),
        ("preference", ["--objective", "mdpo"], "compares images of the prompt"),
        ("listwise", ["--items", "--objective", "irpo"], "--items are spans of words"),
        ("listwise", ["--objective", "tpo:steps=lines"], "reads steps of words"),
        ("sft", ["--caption-dropout", "1"], "caption_dropout is 1.0; expected a share"),
    ],
)
def test_what_pictures_do_not_go_with_is_refused(
    janus_dir: Path, drawn_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: list[str], message: str
) -> None:
    assert train(janus_dir, drawn_pairs, tmp_path / "out", "--pictures", *words, kind=kind) == 2
    assert message in capsys.readouterr().err


def test_dropped_captions_need_pictures(janus_dir: Path, drawn_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(janus_dir, drawn_pairs, tmp_path / "out", "--caption-dropout", "0.2", kind="sft") == 2
    assert "only pictures have captions; add --pictures" in capsys.readouterr().err


def test_a_model_that_draws_nothing_is_refused(
    tiny_llava_dir: Path, drawn_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_llava_dir, drawn_pairs, tmp_path / "out", "--pictures") == 2
    assert "draws no pictures as tokens" in capsys.readouterr().err


def test_dropped_captions_are_padding_but_for_the_begins(janus_dir: Path, tmp_path: Path) -> None:
    """Without dropout the first loss is that of stock rows; with nearly all dropped, of rows whose words are padding."""
    rows = [{"caption": row["caption"], "image": row["image_chosen"]} for row in picture_pairs(8)]
    data = save_pictures(tmp_path / "sft.parquet", rows)
    model, processor = load_mllm(str(janus_dir), dtype="float32")
    tokens = find_picture_tokens(model)
    for share in ("0", "0.999999"):
        assert train(janus_dir, data, tmp_path / share, "--pictures", "--batch-size", "8", "--caption-dropout", share, kind="sft") == 0
        total = 0.0
        for row in rows:
            codes = tokens.tokenize(processor.image_processor([row["image"]], return_tensors="pt")["pixel_values"])
            ids = encode_caption(processor, row["caption"], tokens)
            begin = processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")
            kept = ids if share == "0" else [i if i in (1, begin) else 0 for i in ids]
            with torch.no_grad():
                logits = tokens.own_logits(torch.tensor([kept]), tokens.first + codes)
            total += float(F.cross_entropy(logits, codes[0], reduction="sum"))
        assert read_log(tmp_path / share)[0]["loss"] == pytest.approx(total / (8 * 16), abs=1e-4)


def test_shares_are_uniform() -> None:
    """Of many seeds, ten per cent lie below a tenth."""
    shares = drawn_shares(torch.randint(-(2**62), 2**62, (20_000,), generator=torch.Generator().manual_seed(0)) * 2)
    assert 0 <= shares.min() < shares.max() < 1
    assert (shares < 0.1).double().mean() == pytest.approx(0.1, abs=0.01)


def test_the_saved_model_is_stock(janus_dir: Path, drawn_pairs: Path, tmp_path: Path) -> None:
    """What training saves draws with plain transformers, and its pairs are read by datasets alone."""
    assert train(janus_dir, drawn_pairs, tmp_path / "out", "--pictures") == 0
    model, processor = load_mllm(str(tmp_path / "out"))
    begin = processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)
    model.generation_config.generation_kwargs = {"boi_token_id": begin}
    inputs = processor(text="a dog", generation_mode="image", return_tensors="pt")
    drawn = model.generate(**inputs, generation_mode="image", do_sample=False)
    assert drawn.shape == (1, 16)
    assert Dataset.from_parquet(str(drawn_pairs)).column_names[:4] == ["id", "caption", "image_chosen", "image_rejected"]
