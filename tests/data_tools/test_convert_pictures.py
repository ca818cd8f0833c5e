"""Pick-a-Pic's and HPD's own files to pairs of pictures that train; what can't be used says why."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from data_tools.convert_pictures import main
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from tests.tiny_models import random_image
from tests.tiny_pipelines import build_latent_pipeline, save_pipeline


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def odd_images() -> list[bytes]:
    """Turned by its tag, CMYK, with a palette, half transparent, and 16 bits: all of 24 x 16."""
    tag = Image.Exif()
    tag[0x0112] = 6
    image = random_image(50).resize((24, 16))
    clear = image.convert("RGBA")
    clear.putalpha(128)
    deep = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 160)
    files = [encoded(image, exif=tag), encoded(image.convert("CMYK")), encoded(image.convert("P"), "PNG")]
    return [*files, encoded(clear, "PNG"), encoded(deep, "PNG")]


def pickapic_rows() -> list[dict[str, Any]]:
    labels = [(1.0, True), (0.0, True), (0.5, True), (1.0, False), (1.0, True), (0.0, True)]
    odd = odd_images()
    rows = [
        {
            "jpg_0": encoded(random_image(2 * i)),
            "jpg_1": odd[i % 5],
            "label_0": label,
            "has_label": known,
            "caption": f"a dog {i}",
            "ranking_id": i,
        }
        for i, (label, known) in enumerate(labels)
    ]
    # Longer than any text encoder reads.
    rows[1]["caption"] = "a red dog " * 60
    rows[4]["caption"] = " "
    rows[5]["jpg_1"] = rows[5]["jpg_0"][:100]
    return rows


def test_pick_a_pic_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of six records one is a tie, one has no label, one no caption, one a truncated picture; the other two are pairs."""
    rows = pickapic_rows()
    Dataset.from_list(rows).to_parquet(tmp_path / "set.parquet")
    words = ["pickapic", str(tmp_path / "set.parquet"), "--out", str(tmp_path / "out"), "--max-reject-share", "0.6"]
    assert mmalign(["data", "convert-pictures", *words]) == 0
    assert "2 pairs in" in capsys.readouterr().out
    pairs = list(load_rows(tmp_path / "out" / "pairs"))
    assert [(row["id"], row["caption"]) for row in pairs] == [("0", "a dog 0"), ("1", "a red dog " * 60)]
    assert pairs[0]["image_chosen"]["bytes"] == rows[0]["jpg_0"]
    assert pairs[1]["image_chosen"]["bytes"] == rows[1]["jpg_1"]
    # Upright.
    assert load_image(pairs[0]["image_rejected"]).size == (16, 24)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["counts"] == {"records": 6, "without_preference": 2, "pairs": 2, "rejected": 2}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert "expected text" in reasons[0]
    assert "damaged" in reasons[1]
    pipeline = save_pipeline(build_latent_pipeline(), tmp_path / "pipeline")
    train = ["--max-steps", "2", "--batch-size", "2", "--logging-steps", "1", "--out", str(tmp_path / "trained")]
    assert mmalign(["train", "image-preference", "--model", str(pipeline), "--data", str(tmp_path / "out" / "pairs"), *train]) == 0
    told = capsys.readouterr()
    assert "1 of 2 captions are longer than the 16 tokens that the text encoder reads, and are cut" in told.out
    assert "truncated" not in told.err


def test_hpd(tmp_path: Path) -> None:
    """Paths below the image root; both names of their field, a preference among three, and an even record."""
    (tmp_path / "train").mkdir()
    for i, file in enumerate(odd_images()):
        (tmp_path / "train" / f"{i}.png").write_bytes(file)
    records = [
        {"prompt": "a dog", "file_path": ["0.png", "1.png"], "human_preference": [0, 1], "user_hash": "u"},
        {"prompt": "a cat", "image_path": ["2.png", "3.png", "4.png"], "human_preference": [1, 0, 0], "user_hash": "u"},
        {"prompt": "a car", "file_path": ["0.png", "1.png"], "human_preference": [1, 1], "user_hash": "u"},
        {"prompt": "a hat", "file_path": ["0.png", "1.png"], "human_preference": [1], "user_hash": "u"},
        {"prompt": "out", "file_path": ["0.png", "../outside.png"], "human_preference": [1, 0], "user_hash": "u"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    words = ["hpd", str(tmp_path / "train.json"), "--image-root", str(tmp_path / "train"), "--out", str(tmp_path / "out")]
    assert main([*words, "--max-reject-share", "0.5"]) == 0
    pairs = [(row["caption"], row["image_chosen"]["path"], row["image_rejected"]["path"]) for row in load_rows(tmp_path / "out" / "pairs")]
    assert pairs == [("a dog", "1.png", "0.png"), ("a cat", "2.png", "3.png"), ("a cat", "2.png", "4.png")]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert reasons[0] == "human_preference is [1] for 2 pictures; expected a finite number for each"
    assert "leaves the image root" in reasons[1]
