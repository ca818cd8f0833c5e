"""``mmalign classifier discover-classes`` from images of three domains to a student that distils what was found; what it refuses."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors import safe_open

from mmalign.classifier.class_logits import load_class_logits
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.cli import main
from tests.survival.child import kill, run_command, start_command, wait
from tests.tiny_classifiers import CLASSES

BACKBONE = ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
SIZE = ["--image-size", "32", "--augmentation", "pad-crop"]
# Images of each class by domain.
NUMBERS = {"farm": (120, 30, 12), "flat": (12, 120, 30), "pond": (30, 12, 120)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy red, green and blue squares; which domain one is of can't be seen but in how often its class is there."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for domain, numbers in NUMBERS.items():
        for label in np.repeat(np.arange(3), numbers).tolist():
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[..., label] += 100
            rows.append({"image": Image.fromarray(pixels.astype(np.uint8)), "label": label, "domain": domain, "id": f"p{len(rows)}"})
    features = {"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES)), "domain": Value("string"), "id": Value("string")}
    Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def domains(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of domains: ridge on features of random weights."""
    out = tmp_path_factory.mktemp("domains") / "classifier"
    words = ["--data", str(photos), "--label-column", "domain", "--label-share", "1", "--kernel", "ridge", "--out", str(out)]
    assert main(["classifier", "fit-head", *words, *BACKBONE, *SIZE]) == 0
    return out


def discover(domains: Path, photos: Path, out: Path, *words: str) -> Any:
    """The exit status; options that are refused as they are parsed end the program."""
    run = ["classifier", "discover-classes", str(domains), "--data", str(photos), "--domain-column", "domain", "--out", str(out), *words]
    try:
        return main(run)
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def found(domains: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("found") / "classes"
    assert discover(domains, photos, out, "--shots", "2") == 0
    return out


def read_found(out: Path) -> dict[str, Any]:
    """Report, split and logits; the file's metadata stand in no order."""
    with safe_open(out / "teacher.safetensors", "pt") as file:
        logits = {"about": file.metadata(), "logits": file.get_tensor("logits").tolist()}
    return {**logits, **{name: (out / name).read_text() for name in ("discovered.json", "split.json")}}


def test_classes_are_found_and_named(found: Path, photos: Path) -> None:
    report = json.loads((found / "discovered.json").read_text())
    assert report["accuracy_unlabeled"] > 0.85
    # The domains themselves can't be told by much more than their most frequent class.
    assert report["domain_accuracy"] < 0.85
    assert report["images"] == dict.fromkeys(NUMBERS, 162)
    for domain, numbers in NUMBERS.items():
        for name, number in zip(CLASSES, numbers, strict=True):
            assert report["shares"][domain][name] == pytest.approx(number / 162, abs=0.15)
    data = load_labeled_images(photos)
    logits = load_class_logits(found / "teacher.safetensors", ids=data.ids, classes=data.classes)
    assert logits.knows_images
    assert logits.logits[:, 0].exp().sum(-1).numpy() == pytest.approx(np.ones(486), abs=1e-5)


def test_same_command_writes_the_same(found: Path, domains: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_found(found)
    (found / "teacher.safetensors").unlink()
    assert discover(domains, photos, found, "--shots", "2") == 0
    assert read_found(found) == before
    assert discover(domains, photos, found, "--shots", "2", "--num-cells", "9") == 2
    assert "holds another run: its num_cells is None, not 9" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_it_resumes_to_the_same(found: Path, domains: Path, photos: Path, tmp_path: Path) -> None:
    """Killed as soon as the folder is claimed."""
    out, log = tmp_path / "out", tmp_path / "log"
    run = ["classifier", "discover-classes", str(domains), "--data", str(photos), "--domain-column", "domain", "--shots", "2"]
    process = start_command([*run, "--out", str(out)], log=log)
    while not (out / "mmalign_run.json").is_file() and process.is_alive():
        time.sleep(0.01)
    kill(process)
    assert wait(process) < 0
    assert not (out / "discovered.json").exists()
    assert run_command([*run, "--out", str(out)], log=log) == 0, log.read_text()
    assert read_found(out) == read_found(found)


def test_a_student_distils_them(found: Path, photos: Path, tmp_path: Path) -> None:
    words = ["--teacher", str(found / "teacher.safetensors"), "--teacher-kind", "logits", "--split-file", str(found / "split.json")]
    steps = ["--max-steps", "2", "--batch-size", "4", "--out", str(tmp_path / "student")]
    assert main(["classifier", "train", "--data", str(photos), *BACKBONE, *SIZE, *words, *steps]) == 0
    student = json.loads((tmp_path / "student" / "classifier.json").read_text())
    report = json.loads((found / "discovered.json").read_text())
    assert student["teacher_accuracy_unlabeled"] == pytest.approx(report["accuracy_unlabeled"])
    assert student["num_labeled"] == report["num_labeled"] == 6


def test_fewer_classes_than_names(domains: Path, photos: Path, tmp_path: Path) -> None:
    """Two classes get the two names that fit best, and the third is never named."""
    assert discover(domains, photos, tmp_path / "out", "--shots", "2", "--num-classes", "2") == 0
    named = [set(shares) for shares in json.loads((tmp_path / "out" / "discovered.json").read_text())["shares"].values()]
    assert named == [named[0]] * 3
    assert len(named[0]) == 2
    logits = load_class_logits(tmp_path / "out" / "teacher.safetensors", ids=load_labeled_images(photos).ids, classes=CLASSES).logits
    assert {CLASSES[number] for number in logits[:, 0].argmax(-1).unique().tolist()} == named[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "none of --shots, --label-share and --split-file is given"),
        (["--shots", "2", "--num-classes", "4"], "num_classes is 4 and the data have 3 classes; expected no more"),
        (["--shots", "2", "--num-classes", "1"], "num_classes is 1; expected at least 2"),
        (["--shots", "2", "--num-cells", "1000"], "num_cells is 1000; expected 1 to 486"),
        (["--shots", "2", "--num-cells", "5"], "num_cells is 5 for 3 classes; expected twice as many, 6, or more"),
        (["--shots", "2", "--domain-column", "place"], "has columns image, label, domain, id; expected place"),
        (
            ["--shots", "2", "--domain-column", "label"],
            "column label has images of cat, dog, frog (3), and the classes are farm, flat, pond",
        ),
    ],
)
def test_what_is_refused(
    domains: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert discover(domains, photos, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not {"mmalign_run.json", "split.json"} & {path.name for path in tmp_path.glob("out/*")}, "a mended command can take the folder"


def test_two_domains_are_too_few_for_three_classes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Dataset.from_parquet(str(photos / "train.parquet")).filter(lambda row: row["domain"] != "pond")
    (tmp_path / "two").mkdir()
    rows.to_parquet(tmp_path / "two" / "train.parquet")
    words = ["--data", str(tmp_path / "two"), "--label-column", "domain", "--label-share", "1", "--kernel", "ridge"]
    assert main(["classifier", "fit-head", *words, *BACKBONE, *SIZE, "--out", str(tmp_path / "domains")]) == 0
    assert discover(tmp_path / "domains", tmp_path / "two", tmp_path / "out", "--shots", "2") == 2
    assert "there are 2 domains for 3 classes" in capsys.readouterr().err


def test_columns_of_a_table(photos: Path, tmp_path: Path) -> None:
    """Text names its own classes, in order; folders have no columns; an empty cell is no class."""
    found = load_labeled_images(photos, column="domain")
    assert found.classes == tuple(NUMBERS)
    assert np.bincount(found.labels).tolist() == [162] * 3
    assert load_labeled_images(photos).classes == CLASSES
    for name in CLASSES:
        (tmp_path / "folders" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "folders" / name / "one.png")
    with pytest.raises(ValueError, match="label_column is 'domain', and .*folders is no table"):
        load_labeled_images(tmp_path / "folders", column="domain")
    rows = Dataset.from_parquet(str(photos / "train.parquet")).select(range(3)).remove_columns("domain")
    rows.add_column("domain", ["a", None, "b"]).to_parquet(tmp_path / "holes.parquet")
    with pytest.raises(ValueError, match="column domain has the value None; expected a ClassLabel, text or whole numbers"):
        load_labeled_images(tmp_path / "holes.parquet", column="domain")
