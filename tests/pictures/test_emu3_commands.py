"""The commands of pictures on Emu3: losses by stock Emu3, dropped captions, own samples that train, a saved model that is stock."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_tools.pair_pictures import main as pair_pictures
from mmalign.cli import main
from mmalign.data.pictures import encode_caption
from mmalign.models.picture_tokens import find_picture_tokens
from tests.commands.training import read_log, train
from tests.pictures.conftest import picture_lists, picture_pairs, save_pictures
from tests.pictures.test_emu3 import SIDE, constraint, prompts, stock_logps
from tests.tiny_families import emu3

PICTURES = ["--pictures", "--picture-side", str(SIDE), "--batch-size", "8"]


@pytest.fixture(scope="module")
def emu3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "emu3"
    for part in emu3():
        part.save_pretrained(folder)
    return folder


def single_rows() -> list[dict[str, Any]]:
    return [{"id": row["id"], "caption": row["caption"], "image": row["image_chosen"]} for row in picture_pairs(8)]


def test_dropped_captions_leave_the_prompt_of_an_empty_caption(emu3_dir: Path, tmp_path: Path) -> None:
    """The first loss is stock Emu3's, with all captions and with hardly any."""
    rows = single_rows()
    data = save_pictures(tmp_path / "sft.parquet", rows)
    model, processor = emu3()
    tokens = find_picture_tokens(model, side=SIDE)
    codes = tokens.tokenize(tokens.read_pixels(processor, [row["image"] for row in rows])).tolist()
    losses = []
    for share, captions in (("0", [row["caption"] for row in rows]), ("0.999999", [""] * 8)):
        with torch.no_grad():
            sums = [stock_logps(model, processor, caption, one).sum() for caption, one in zip(captions, codes, strict=True)]
        assert train(emu3_dir, data, tmp_path / share, *PICTURES, "--caption-dropout", share, kind="sft") == 0
        losses.append(read_log(tmp_path / share)[0]["loss"])
        assert losses[-1] == pytest.approx(-float(sum(sums)) / (8 * 16), abs=1e-4)
    assert abs(losses[0] - losses[1]) > 1e-2


def test_pairs_and_lists_train_what_draws_and_nothing_else(emu3_dir: Path, tmp_path: Path) -> None:
    data = save_pictures(tmp_path / "pairs.parquet", picture_pairs(8))
    assert train(emu3_dir, data, tmp_path / "dpo", *PICTURES, "--beta", "0.5") == 0
    log = read_log(tmp_path / "dpo")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1]["rewards/margin"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (emu3_dir, tmp_path / "dpo"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"text_model.lm_head.weight", "text_model.model.embed_tokens.weight"} <= moved
    assert not any("vqmodel" in name for name in moved)
    # Of the head, rows of picture tokens alone learn from pictures.
    head = (before["text_model.lm_head.weight"] != after["text_model.lm_head.weight"]).any(-1).nonzero().flatten().tolist()
    assert head == sorted(emu3()[0].vocabulary_mapping.image_tokens)
    lists = save_pictures(tmp_path / "lists.parquet", picture_lists(8))
    words = [*PICTURES, "--objective", "rank_dpo", "--lora-rank", "4"]
    assert train(emu3_dir, lists, tmp_path / "rank", *words, kind="listwise") == 0
    log = read_log(tmp_path / "rank")
    assert log[-1]["rewards/margin"] > log[0]["rewards/margin"]


@pytest.mark.parametrize("lora", [[], ["--lora-rank", "4"]])
def test_pairs_train_without_the_dropout_of_checkpoints(emu3_dir: Path, tmp_path: Path, lora: list[str]) -> None:
    """Else policy and reference would differ before the first step. The configuration that is saved keeps it."""
    model = shutil.copytree(emu3_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.1
    (model / "config.json").write_text(json.dumps(config))
    assert train(model, save_pictures(tmp_path / "pairs.parquet", picture_pairs(8)), tmp_path / "out", *PICTURES, *lora) == 0
    assert read_log(tmp_path / "out")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    if not lora:
        assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["attention_dropout"] == 0.1


def test_own_samples_become_pairs_that_train_and_the_result_is_stock(emu3_dir: Path, tmp_path: Path) -> None:
    captions, drawn = save_pictures(tmp_path / "captions.parquet", single_rows()), tmp_path / "drawn"
    words = ["--model", str(emu3_dir), "--samples", "2", "--guidance", "3", "--picture-side", str(SIDE), "--out", str(drawn)]
    assert main(["sample-images", str(captions), *words]) == 0
    samples = Dataset.from_parquet(str(drawn / "data" / "000000000.parquet"))
    tokens = find_picture_tokens(emu3()[0], side=SIDE)
    processor = AutoProcessor.from_pretrained(emu3_dir)
    (shown,) = tokens.show(processor, tokens.decode(torch.tensor(samples[3]["codes"])[None]))
    assert samples[3]["image"].tobytes() == shown.tobytes()
    assert samples[2]["codes"] != samples[3]["codes"]
    pairs = tmp_path / "pairs.parquet"
    assert pair_pictures([str(drawn / "data"), "--data", str(captions), "--out", str(pairs)]) == 0
    assert Dataset.from_parquet(str(pairs))["codes_rejected"] == samples["codes"]
    assert train(emu3_dir, pairs, tmp_path / "out", *PICTURES, "--objective", "ddo") == 0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    inputs = prompts(AutoProcessor.from_pretrained(tmp_path / "out"), ["a dog"])
    assert inputs.pop("image_sizes")[0] == [4, 4]
    stock = model.generate(**inputs, max_new_tokens=23, do_sample=False, prefix_allowed_tokens_fn=constraint(model, processor))
    assert model.decode_image_tokens(image_tokens=stock[:, -23:], height=4, width=4).shape == (1, 3, SIDE, SIDE)
    assert inputs["input_ids"][0].tolist() == encode_caption(processor, "a dog", tokens)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pictures", "--picture-side", "30"], "picture_side is 30; expected a multiple of 8"),
        (["--pictures", "--picture-side", "64"], "a picture has 16 codes, and the model's pictures have 64"),
        (["--picture-side", "32"], "answers are words; add --pictures"),
    ],
)
def test_other_sizes_are_refused(
    emu3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    rows = [{**row, "codes_rejected": [number % 24] * 16} for number, row in enumerate(picture_pairs(8))]
    assert train(emu3_dir, save_pictures(tmp_path / "pairs.parquet", rows), tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_janus_has_one_size(janus_dir: Path, drawn_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(janus_dir, drawn_pairs, tmp_path / "same", "--pictures", "--picture-side", "16", "--max-steps", "1") == 0
    assert train(janus_dir, drawn_pairs, tmp_path / "other", "--pictures", "--picture-side", "32") == 2
    assert "picture_side is 32, and pictures of this JanusForConditionalGeneration have 16" in capsys.readouterr().err
    assert json.loads((tmp_path / "same" / "mmalign_run.json").read_text())["options"]["picture_side"] == 16
