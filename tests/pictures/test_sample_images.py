"""``mmalign sample-images``: stock Janus' own pictures, whatever the batch; shards, resume, the same bytes."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature

import mmalign.runs.sample_images as command
from mmalign.cli import main
from mmalign.data.images import load_image
from mmalign.data.pictures import encode_caption
from mmalign.engine.choosing import Sampling
from mmalign.models.picture_tokens import find_picture_tokens
from tests.commands.training import train
from tests.pictures.conftest import draw_captions
from tests.tiny_families import janus
from tests.tiny_models import random_text

CAPTIONS = [random_text(i, 2 + 2 * i) for i in range(4)]


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    return janus()


draw = functools.partial(draw_captions, guidance=5.0)


@pytest.mark.parametrize("guidance", [5.0, 2.5])
def test_the_likeliest_pictures_are_those_of_stock_generate(built: tuple[Any, Any], guidance: float) -> None:
    """Captions of different length in one batch, padded on the left, half of the rows without them."""
    model, processor = built
    prompts = [
        processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": caption}]}], add_generation_prompt=True)
        for caption in CAPTIONS
    ]
    inputs = processor(text=prompts, generation_mode="image", return_tensors="pt", padding=True, add_special_tokens=False)
    stock = model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=guidance)
    got = draw(built, CAPTIONS, guidance=guidance)
    assert torch.equal(got, stock)
    # Each caption its own picture, and guidance changes it: else anything would pass.
    assert len({tuple(row) for row in got.tolist()}) == 4
    assert not torch.equal(got, draw(built, CAPTIONS, guidance=1.0))


def test_without_guidance_each_token_is_the_likeliest(built: tuple[Any, Any]) -> None:
    model, processor = built
    codes, pictures = draw(built, CAPTIONS, guidance=1.0), find_picture_tokens(model)
    for caption, row in zip(CAPTIONS, codes, strict=True):
        with torch.no_grad():
            logits = pictures.own_logits(torch.tensor([encode_caption(processor, caption, pictures)]), pictures.first + row[None])
        assert torch.equal(logits.argmax(-1), row)


def test_a_sampled_picture_is_the_same_in_every_batch(built: tuple[Any, Any]) -> None:
    """And is drawn from the guided distribution: at a temperature near 0 it is the likeliest one."""
    decoding = Sampling(1.0, answers=2)
    together = draw(built, CAPTIONS, decoding=decoding).view(4, 2, -1)
    for number, caption in enumerate(CAPTIONS):
        alone = draw(built, [caption], decoding=decoding, seeds=[number]).view(2, -1)
        assert torch.equal(together[number], alone)
        assert not torch.equal(alone[0], alone[1])
    assert torch.equal(draw(built, CAPTIONS, decoding=Sampling(1e-4)), draw(built, CAPTIONS))


def save_captions(path: Path, count: int = 5) -> Path:
    rows = [{"id": f"c{i}", "caption": random_text(i, 2 + i % 3), "truth": [i, i + 1]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(model: Path, captions: Path, out: Path, *more: str) -> int:
    try:
        return main(["sample-images", str(captions), "--model", str(model), "--out", str(out), "--samples", "2", *more])
    except SystemExit as stop:
        return int(stop.code or 0)


def read_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "data").glob("*.parquet")}


def test_rows_hold_pictures_codes_and_the_captions_columns(janus_dir: Path, tmp_path: Path) -> None:
    assert sample(janus_dir, save_captions(tmp_path / "captions.jsonl"), tmp_path / "out") == 0
    rows = Dataset.from_parquet(str(tmp_path / "out" / "data" / "000000000.parquet"))
    assert isinstance(rows.features["image"], ImageFeature)
    assert [(row["id"], row["sample"], row["truth"]) for row in rows] == [(f"c{i}", k, [i, i + 1]) for i in range(5) for k in range(2)]
    tokens = find_picture_tokens(janus()[0])
    codes = torch.tensor([rows[3]["codes"]])
    shown = ((tokens.decode(codes)[0] * 0.5 + 0.5) * 255).clip(0, 255).to(torch.uint8)
    assert rows[3]["image"].tobytes() == shown.numpy().tobytes()
    assert set(rows["codes_of"]) == {tokens.tokenizer_digest()}
    assert rows[2]["codes"] != rows[3]["codes"]


def test_a_stopped_run_and_parts_end_in_the_same_bytes(janus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SHARD", 2)
    captions = save_captions(tmp_path / "captions.jsonl")
    assert sample(janus_dir, captions, tmp_path / "whole") == 0
    expected = read_bytes(tmp_path / "whole")
    assert len(expected) == 3
    for part in ("2/2", "1/2"):
        assert sample(janus_dir, captions, tmp_path / "parts", "--shard", part) == 0
    assert read_bytes(tmp_path / "parts") == expected
    (tmp_path / "whole" / "data" / "000000002.parquet").unlink()
    assert sample(janus_dir, captions, tmp_path / "whole") == 0
    assert read_bytes(tmp_path / "whole") == expected


def test_what_can_not_be_drawn_is_told(janus_dir: Path, tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = save_captions(tmp_path / "captions.jsonl")
    assert sample(janus_dir, captions, tmp_path / "out") == 0
    for model, words, message in (
        (janus_dir, ["--seed", "1"], "holds other pictures: its seed is 0, not 1"),
        (janus_dir, ["--temperature", "0"], "they would all be the same picture"),
        (janus_dir, ["--top-p", "0"], "top_p is 0.0; expected more than 0"),
    ):
        assert sample(model, captions, tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
    assert sample(tiny_llava_dir, captions, tmp_path / "llava") == 2
    assert "draws no pictures as tokens" in capsys.readouterr().err
    captions.write_text(captions.read_text() + '{"id": "c5", "caption": " ", "truth": [1]}\n')
    assert sample(janus_dir, captions, tmp_path / "broken", "--max-reject-share", "0.5") == 0
    assert json.loads((tmp_path / "broken" / "rejects.jsonl").read_text())["reason"] == "caption is ' '; expected text"


def test_an_adapter_draws(janus_dir: Path, drawn_pairs: Path, tmp_path: Path) -> None:
    """What training an adapter leaves is drawn with: its pictures are others than the base's."""
    words = ["--pictures", "--lora-rank", "4", "--learning-rate", "1e-1", "--objective", "ddo"]
    assert train(janus_dir, drawn_pairs, tmp_path / "adapter", *words) == 0
    captions = save_captions(tmp_path / "captions.jsonl", 2)
    for model, out in ((janus_dir, "base"), (tmp_path / "adapter", "adapted")):
        assert sample(model, captions, tmp_path / out) == 0
    rows = [Dataset.from_parquet(str(tmp_path / out / "data" / "000000000.parquet")) for out in ("base", "adapted")]
    images = [[load_image(image).tobytes() for image in data["image"]] for data in rows]
    assert images[0] != images[1]
