"""The validator: hand-worked statistics, planted duplicates and leaks, perceptual hashes on real photographs."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools.image_hashes import hash_distances, perceptual_hash
from data_tools.length_bias import LengthBias, sign_test
from data_tools.validate_pairs import main
from tests.data_files import encoded, save_encoded, save_rows
from tests.formats.form import Form, save_form
from tests.formats.rows import PAIRS
from tests.tiny_models import pair_rows, random_image


def validate(tmp_path: Path, source: Path, *words: str) -> dict[str, Any]:
    assert main([str(source), "--out", str(tmp_path / "report"), *words]) == 0
    return json.loads((tmp_path / "report" / "report.json").read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    # 8 of 10: 2 (1 + 10 + 45) / 1024. 0 of 5: 2 / 32. An even split can't be less uneven.
    [(8, 2, 112 / 1024), (0, 5, 2 / 32), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_sign_test_by_hand(positive: int, negative: int, expected: float) -> None:
    assert sign_test(positive, negative) == pytest.approx(expected, rel=1e-12)
    assert sign_test(negative, positive) == sign_test(positive, negative)


def test_sign_test_of_a_large_set_equals_the_normal_limit() -> None:
    n, k = 200_000, 99_000
    z = (n / 2 - k - 0.5) / math.sqrt(n / 4)
    assert sign_test(k, n - k) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_length_bias_by_hand() -> None:
    bias = LengthBias()
    for chosen, rejected in (("a b c", "a"), ("a b", "b c d d"), ("a b", "c d"), ("a b c", "a b")):
        bias.add(chosen, rejected)
    assert bias.summary() == {
        "pairs": 4,
        "mean_words_chosen": 10 / 4,
        "mean_words_rejected": 9 / 4,
        "mean_characters_chosen": 16 / 4,
        "mean_characters_rejected": 14 / 4,
        "share_chosen_longer": 0.5,
        "share_rejected_longer": 0.25,
        "share_equal": 0.25,
        "sign_test_p": 1.0,
    }


def test_duplicates_and_contradictions(tmp_path: Path) -> None:
    first, other = pair_rows(2)
    texts = {name: first[name][0]["content"] for name in ("chosen", "rejected")}
    louder = {**first, "id": "text", "chosen": [{"role": "assistant", "content": texts["chosen"].upper() + "!"}]}
    swapped = {**first, "id": "swapped"} | {
        name: [{"role": "assistant", "content": texts[source]}] for name, source in (("chosen", "rejected"), ("rejected", "chosen"))
    }
    elsewhere = {**first, "id": "elsewhere", "images": other["images"]}
    rows = [first, other, {**first, "id": "exact"}, louder, swapped, elsewhere]
    report = validate(tmp_path, save_rows(tmp_path / "pairs.parquet", rows))
    assert lines(tmp_path / "report" / "duplicates.jsonl") == [
        {"id": "exact", "same_as": "pair-0", "kind": "exact"},
        {"id": "text", "same_as": "pair-0", "kind": "text"},
        {"id": "swapped", "same_as": "pair-0", "kind": "contradiction"},
    ]
    assert report["duplicates"] == {"exact": 1, "text": 1, "contradiction": 1}
    assert report["prompts"] == {"distinct": 3, "most_pairs": 4}
    assert report["images"]["distinct"] == 2


def test_broken_rows_are_told_and_never_stop_it(tmp_path: Path) -> None:
    rows = [encoded(row) for row in pair_rows(4)]
    rows[1]["images"] = [{"bytes": b"junk", "path": None}]
    rows[2]["chosen"] = rows[2]["rejected"]
    rows[3]["chosen"] = [{"role": "assistant", "content": " "}]
    report = validate(tmp_path, save_encoded(tmp_path / "pairs.parquet", rows))
    assert (report["rows"], report["broken"]) == (4, 3)
    assert [(row["id"], row["reason"]) for row in lines(tmp_path / "report" / "rejects.jsonl")] == [
        ("pair-1", "image bytes is not an image that Pillow can read"),
        ("pair-2", "chosen and rejected are the same text"),
        ("pair-3", "chosen is empty"),
    ]


@pytest.mark.parametrize("form", [form for form in PAIRS.forms if form.file.startswith("pairs.")], ids=lambda form: form.title)
def test_what_training_reads_is_good_and_what_it_refuses_is_broken(tmp_path: Path, form: Form) -> None:
    file = save_form(form, tmp_path / "data")
    words = [str(file), "--image-root", str(file.parent), "--out", str(tmp_path / "report")]
    assert main(words) == (2 if form.refused else 0)
    if form.refused:
        assert form.refused in lines(tmp_path / "report" / "rejects.jsonl")[0]["reason"]


def test_nothing_to_report_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    assert main([str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "report")]) == 2
    assert "no row of 2 can be used; the reasons are in" in capsys.readouterr().err
    reasons = [row["reason"] for row in lines(tmp_path / "report" / "rejects.jsonl")]
    assert reasons[0].startswith("the row has no column chosen, rejected; it has prompt")
    assert reasons[1].startswith("not JSON")


def test_image_statistics_by_hand(tmp_path: Path) -> None:
    rows = pair_rows(4)
    # random_image's size is rows x columns: 32 x 40, 20 x 10 and 30 x 30 pixels, the last as grey PNG, the first twice.
    images = [random_image(0), random_image(1, (10, 20)), random_image(2, (30, 30)).convert("L"), random_image(0)]
    for row, image in zip(rows, images, strict=True):
        row["images"] = [image]
    statistics = validate(tmp_path, save_encoded(tmp_path / "pairs.parquet", [encoded(row) for row in rows]))["images"]
    assert (statistics["distinct"], statistics["most_uses"]) == (3, 2)
    assert statistics["modes"] == {"RGB": 2, "L": 1}
    assert statistics["formats"] == {"PNG": 3}
    assert statistics["width"] == {"min": 20, "q1": 25, "median": 30, "q3": 31, "max": 32}
    assert statistics["aspect_ratio"]["min"] == pytest.approx(32 / 40)
    assert statistics["aspect_ratio"]["max"] == pytest.approx(2.0)


def test_sources_are_told_apart(tmp_path: Path) -> None:
    rows = [{**row, "source": "ab"[i % 2]} for i, row in enumerate(pair_rows(4))]
    report = validate(tmp_path, save_rows(tmp_path / "pairs.parquet", rows))
    assert {group: bias["pairs"] for group, bias in report["length"].items()} == {"all": 4, "a": 2, "b": 2}
    assert "| a | 2 |" in (tmp_path / "report" / "summary.md").read_text()


# --- Real photographs. ---


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def reopened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded at quality 30": lambda image: reopened(jpeg(image, 30)),
    "scaled by half": lambda image: scaled(image, 0.5),
    "scaled to a quarter and encoded": lambda image: reopened(jpeg(scaled(image, 0.25), 60)),
    "square for CLIP": lambda image: image.resize((336, 336)),
    "brighter by a fifth": lambda image: image.point(lambda value: min(255, int(value * 1.2))),
    "grey": lambda image: image.convert("L"),
}


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Image.Image]:
    files = sorted((shared_data / "photos" / "images").iterdir())
    return [scaled(image, min(1.0, 640 / max(image.size))) for image in (Image.open(path).convert("RGB") for path in files)]


@pytest.fixture(scope="module")
def photo_hashes(photos: list[Image.Image]) -> np.ndarray:
    return np.stack([perceptual_hash(photo) for photo in photos])


@pytest.mark.parametrize("change", CHANGES)
def test_a_photograph_is_known_again(photos: list[Image.Image], photo_hashes: np.ndarray, change: str) -> None:
    distances = [
        hash_distances(perceptual_hash(CHANGES[change](photo)), known[None])[0]
        for photo, known in zip(photos[::4], photo_hashes[::4], strict=True)
    ]
    assert max(distances) <= 32


def test_different_photographs_are_far_apart(photo_hashes: np.ndarray) -> None:
    """The default limit of 32 bits has room on both sides: unrelated photographs differ in 90 bits or more."""
    for i in range(len(photo_hashes) - 1):
        assert hash_distances(photo_hashes[i], photo_hashes[i + 1 :]).min() > 90


def test_leaks_are_found(tmp_path: Path, photos: list[Image.Image]) -> None:
    benchmark = tmp_path / "val2014"
    (benchmark / "deep").mkdir(parents=True)
    exact = jpeg(photos[0], 90)
    (benchmark / "same.jpg").write_bytes(exact)
    scaled(photos[1], 0.4).save(benchmark / "deep" / "small.png")
    (benchmark / "broken.jpg").write_bytes(b"junk")
    rows = [encoded(row) for row in pair_rows(4)]
    for row, data in zip(rows, (exact, jpeg(photos[1], 50), jpeg(photos[2], 90), exact), strict=True):
        row["images"] = [{"bytes": data, "path": None}]
    report = validate(tmp_path, save_encoded(tmp_path / "pairs.parquet", rows), "--benchmark-images", str(benchmark))
    found = lines(tmp_path / "report" / "leaks.jsonl")
    assert [(leak["id"], Path(leak["benchmark_image"]).name, leak["kind"]) for leak in found] == [
        ("pair-0", "same.jpg", "exact"),
        ("pair-1", "small.png", "perceptual"),
        ("pair-3", "same.jpg", "exact"),
    ]
    assert report["leaks"] == {
        "benchmark_images": 2,
        "unreadable_benchmark_images": 1,
        "max_distance": 32,
        "rows_exact": 2,
        "rows_perceptual": 1,
    }
    assert (
        "2 rows show one of 2 benchmark images byte for byte, 1 one that looks the same" in (tmp_path / "report" / "summary.md").read_text()
    )
