"""Images from elsewhere: paths stay in the root, and what is no picture or too large is refused before it is decoded."""

import gzip
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmalign.data.checking import keep_good_rows
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image, resolve_image_path
from mmalign.data.rejects import Rejects
from mmalign.data.rows import read_pair
from mmalign.errors import UserError
from mmalign.evaluation.captions import read_object_sets
from tests.data_files import encoded, save_encoded
from tests.tiny_models import pair_rows, random_image

PARTS = st.sampled_from(["..", ".", "a", "link", "away", "", "/", "~", "\\", "etc", "passwd", "a.png", "\0", "C:", "%2e%2e", "é"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a picture, a link out of it to a picture and one to a folder, and a sibling whose name begins like its own."""
    folder = tmp_path_factory.mktemp("images")
    for place in (folder / "root" / "a", folder / "root-2", folder / "outside"):
        place.mkdir(parents=True)
        random_image(0).save(place / "a.png")
    (folder / "root" / "link").symlink_to(folder / "outside" / "a.png")
    (folder / "root" / "away").symlink_to(folder / "outside")
    return folder / "root"


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(PARTS | st.text(max_size=3), max_size=6), absolute=st.booleans())
def test_no_path_leaves_the_root(root: Path, parts: list[str], absolute: bool) -> None:
    """Whatever is resolved lies below the root, links followed as the system follows them."""
    path = ("/" if absolute else "") + "/".join(parts)
    try:
        found = resolve_image_path(path, root=root)
    except UserError:
        return
    assert Path(os.path.realpath(found)).is_relative_to(root)


@pytest.mark.parametrize("path", ["../outside/a.png", "../root-2/a.png", "link", "away/a.png", "a/../../outside/a.png", "/etc/passwd"])
def test_ways_out_are_refused(root: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leaves the image root"):
        load_image(path, root=root)
    with pytest.raises(ValueError, match="leaves the image root"):
        load_image(str(root.parent / "outside" / "a.png"), root=root)


def png_of(width: int, height: int) -> bytes:
    """A sound PNG of so many black pixels, in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def picture_with_text(text: int) -> bytes:
    """A PNG whose compressed text chunk unpacks to so many bytes."""
    sound = png_of(4, 4)
    data = b"k\0\0" + zlib.compress(bytes(text))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return sound[:33] + chunk + sound[33:]


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE_FILES = {
    "a hundred megapixels": (png_of(10_000, 10_000), "refused as a decompression bomb"),
    "a compressed text of a gigabyte": (picture_with_text(1 << 28), "is damaged|truncated|Decompressed"),
    "svg": (SVG, "is not an image that Pillow can read; it looks like XML or SVG"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "is not an image that Pillow can read; it looks like an HTML page"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "can read; it looks like PostScript"),
    "zip": (b"PK\x03\x04" + bytes(64), "can read; it looks like a zip archive"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "can read; it looks like a Git LFS pointer"),
    "pdf": (b"%PDF-1.7\n", "can read; it looks like PDF"),
    "empty": (b"", "is not an image that Pillow can read"),
}


@pytest.mark.parametrize("kind", list(HOSTILE_FILES))
def test_hostile_files_under_a_pictures_name(kind: str, tmp_path: Path) -> None:
    data, reason = HOSTILE_FILES[kind]
    (tmp_path / "a.jpg").write_bytes(data)
    tracemalloc.start()
    for value in ("a.jpg", data, {"bytes": data, "path": None}):
        with pytest.raises(ValueError, match=reason):
            load_image(value, root=tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_they_cost_their_row_and_no_other(tmp_path: Path) -> None:
    rows = [encoded(row) for row in pair_rows(len(HOSTILE_FILES) + 2)]
    for row, (data, _) in zip(rows, HOSTILE_FILES.values(), strict=False):
        row["images"] = [{"bytes": data, "path": None}]
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=1.0)
    dataset = load_rows(save_encoded(tmp_path / "pairs.parquet", rows))
    good = keep_good_rows(dataset, lambda row, index: read_pair(row, index=index), rejects=rejects)
    assert good["id"] == [row["id"] for row in rows[-2:]]
    assert rejects.num_rejected == len(HOSTILE_FILES)


def test_a_schema_can_not_have_other_files_opened(tmp_path: Path) -> None:
    """Of nested image columns too, ``datasets`` would open whatever path they hold."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    outside = tmp_path / "outside.png"
    random_image(0).save(outside)
    nested = {"bytes": None, "path": str(outside)}
    turn = {"role": Value("string"), "content": Value("string"), "extra": List(ImageFeature())}
    features = Features({"prompt": List(turn), "chosen": Value("string"), "rejected": Value("string"), "deep": {"picture": ImageFeature()}})
    row = {"prompt": [{"role": "user", "content": "what", "extra": [nested]}], "chosen": "a", "rejected": "b", "deep": {"picture": nested}}
    Dataset.from_list([row], features=features).to_parquet(str(tmp_path / "rows.parquet"))
    outside.unlink()
    (read,) = load_rows(tmp_path / "rows.parquet")
    assert isinstance(read["deep"]["picture"], dict)
    assert isinstance(read["prompt"][0]["extra"][0], dict)


def test_archives_are_not_unpacked(tmp_path: Path) -> None:
    """By name nothing is: no reader of mmalign unpacks an archive, and ``datasets`` gets none to see."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "rows.jsonl", "w") as archive:
        archive.writestr("../../evil.txt", "x")
    (tmp_path / "rows.json").write_bytes(gzip.compress(b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'))
    (tmp_path / "rows.parquet").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        with pytest.raises(ValueError, match=rf"{name} is no \w+ file: it begins with"):
            load_rows(tmp_path / name)
    assert not (tmp_path.parent.parent / "evil.txt").exists()


def test_object_sets_that_unpack_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.evaluation import captions

    monkeypatch.setattr(captions, "_LARGEST", 1 << 20)
    (tmp_path / "objects.json.gz").write_bytes(gzip.compress(b"[" + b" " * (1 << 22)))
    with pytest.raises(ValueError, match="holds no object sets .more than 1,048,576 bytes"):
        read_object_sets(tmp_path / "objects.json.gz")


def test_pictures_of_a_question_file_stay_in_their_folder(tmp_path: Path) -> None:
    """Their names come from the file, as those of an archive would."""
    from mmalign.options.evaluate import EvaluateOptions
    from mmalign.runs.evaluate import load_benchmark
    from tests.safety.readers import lines, write_halbench

    write_halbench(tmp_path)
    for name in ("../evil", "a/b", "/tmp/evil", "..\\evil", ".hidden"):
        lines(tmp_path / "obj_halbench.jsonl", [{"image_id": name, "question": "Describe.", "image": "aGVsbG8="}])
        with pytest.raises(ValueError, match="expected an id that can name a file"):
            load_benchmark(EvaluateOptions(benchmark="object-halbench", data=tmp_path))


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF"])
)
def test_any_bytes_are_a_picture_or_refused(data: bytes, start: bytes) -> None:
    try:
        image = load_image(start + data)
    except UserError:
        return
    assert isinstance(image, Image.Image)
