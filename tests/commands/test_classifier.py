"""``mmalign classifier train`` from images to a report, an export and a tuned mixing; what it refuses."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmalign.classifier.class_logits import load_class_logits, save_class_logits
from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.image_cache import to_square
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.classifier.metrics import compute_logits
from mmalign.cli import main
from mmalign.data.images import digest_images, load_image
from mmalign.options.classifier import EvaluateClassifierOptions
from mmalign.runs.saved_classifier import decode_scored, load_scored
from tests.classifier.test_teachers import save_timm
from tests.conftest import REPOSITORY
from tests.tiny_classifiers import save_part, save_tiny_clip
from tests.tiny_models import random_image

STUDENT = ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
STEPS = ["--max-steps", "3", "--batch-size", "4", "--logging-steps", "1", "--image-size", "32", "--augmentation", "pad-crop"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, number, seed in (("train", 30, 0), ("validation", 9, 100), ("test", 12, 200)):
        save_part(folder / f"{name}.parquet", number, seed)
    return folder


@pytest.fixture(scope="module")
def logits(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = load_labeled_images(photos)
    path = tmp_path_factory.mktemp("logits") / "teacher.safetensors"
    sure = 4 * torch.nn.functional.one_hot(torch.from_numpy(data.labels), 3).float()
    save_class_logits(path, ids=data.ids, classes=data.classes, logits=sure, source="the truth")
    return path


def save_clip(clip: Path) -> None:
    texts = ["a photo of a cat.", "a photo of a dog.", "a photo of a frog."]
    save_tiny_clip(clip, texts, max_positions=24, logit_scale_init_value=4.6051702)


def train(photos: Path, out: Path, *words: str) -> int:
    return main(["classifier", "train", "--data", str(photos), "--out", str(out), *STUDENT, *STEPS, *words])


@pytest.fixture(scope="module")
def trained(photos: Path, logits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "student"
    teacher = ["--teacher", str(logits), "--teacher-kind", "logits", "--shots", "2"]
    assert train(photos, out, *teacher, "--validation-data", str(photos), "--test-data", str(photos)) == 0
    return out


def test_report_has_every_head_side_by_side(trained: Path) -> None:
    report = json.loads((trained / "classifier.json").read_text())
    assert (report["num_labeled"], report["num_unlabeled"], report["teacher_accuracy_unlabeled"]) == (6, 24, 1.0)
    for part in ("validation", "test"):
        assert report[part].keys() == {"ce_head", "kd_head", "mixed", "published"}
    grid = torch.tensor(report["mixing_grid"], dtype=torch.float64)
    assert report["validation"]["mixed"]["accuracy"] == pytest.approx(grid.max().item())
    model = load_dual_head(trained)
    assert model.settings.mixing.source.startswith("tuned on 9 images")
    split = json.loads((trained / "split.json").read_text())
    assert len(split["labeled"]) == 6
    assert not set(split["labeled"]) & set(split["unlabeled"])
    assert json.loads((trained / "mmalign_run.json").read_text())["steps"] == 3


def test_saved_model_is_the_one_that_was_reported(trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(photos), "--cache", str(tmp_path), "--out", str(tmp_path / "result.json")]
    assert main(["classifier", "evaluate", str(trained), *words]) == 0
    result, report = json.loads((tmp_path / "result.json").read_text()), json.loads((trained / "classifier.json").read_text())
    for head in ("ce_head", "kd_head", "mixed"):
        assert result["scores"][head] == pytest.approx(report["test"][head])
    assert "ce_head" in capsys.readouterr().out


def test_same_command_again_is_the_same_run_and_another_is_refused(
    trained: Path, photos: Path, logits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_file(trained / "model.safetensors")
    teacher = ["--teacher", str(logits), "--teacher-kind", "logits", "--shots", "2"]
    assert train(photos, trained, *teacher, "--validation-data", str(photos), "--test-data", str(photos)) == 0
    after = load_file(trained / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert train(photos, trained, *teacher[:-1], "3", "--validation-data", str(photos), "--test-data", str(photos)) == 2
    assert "holds another run: its shots is 2, not 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "fit-head"])
def test_a_command_that_was_mended_takes_the_folder_and_draws_its_own_labels(command: str, photos: Path, tmp_path: Path) -> None:
    words = ["classifier", command, "--data", str(photos), "--out", str(tmp_path / "out"), "--image-size", "32", "--no-pretrained"]
    words += [] if command == "fit-head" else ["--form", "ce-only", "--max-steps", "1", "--batch-size", "4"]
    assert main([*words, "--shots", "2", "--backbone", "resnet10"]) == 2
    assert main([*words, "--shots", "3", *STUDENT[1:]]) == 0
    assert len(json.loads((tmp_path / "out" / "split.json").read_text())["labeled"]) == 9


def test_mixing_is_never_tuned_on_test_images(trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["classifier", "tune", str(trained), "--cache", str(tmp_path), "--data"]
    assert main([*words, str(photos), "--split", "test"]) == 2
    assert "may not be tuned on test images" in capsys.readouterr().err
    # Under another name they are still the images that the run was tested on.
    assert main([*words, str(photos / "test.parquet")]) == 2
    assert "are the test images of" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    assert main(["classifier", "tune", str(copy), "--cache", str(tmp_path), "--data", str(photos)]) == 0
    mixing = load_dual_head(copy).settings.mixing
    assert mixing.source.startswith("tuned on 9 images of photos")
    # What the former mixing scored is no longer said of the model.
    report, card = json.loads((copy / "classifier.json").read_text()), (copy / "README.md").read_text()
    assert report["mixing"] == dataclasses.asdict(mixing)
    assert report["test"].keys() == {"ce_head", "kd_head", "published"}
    assert mixing.source in card
    assert "(mixed)" not in card


def test_export(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classifier", "export", str(trained), "--out", str(tmp_path / "model.pt2")]) == 0
    assert "largest difference" in capsys.readouterr().out
    probabilities = torch.export.load(tmp_path / "model.pt2").module()(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "2"], "form dual-head needs --teacher"),
        (["--form", "ce-only"], "none of --shots, --label-share and --split-file is given"),
        (["--form", "ce-only", "--shots", "1", "--label-share", "0.1"], "shots, label_share of --shots"),
        (["--form", "fixmatch", "--shots", "1", "--teacher", "x"], "form fixmatch has no use for --teacher"),
        (["--teacher", "x", "--teacher-kind", "logits", "--teacher-mode", "live", "--shots", "1"], "can't look at live views"),
        (["--form", "ce-only", "--shots", "1", "--gradient-checkpointing"], "gradient_checkpointing is for language models"),
        (["--teacher", "nowhere/at/all", "--teacher-kind", "classifier", "--shots", "1"], "no classifier at nowhere/at/all"),
    ],
)
def test_options_that_do_not_fit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert train(photos, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_logits_are_scored_again_where_classes_are_matched_by_other_words(photos: Path, tmp_path: Path) -> None:
    """Who mends a table of names is not taught by what the wrong one gave."""
    about = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "cat", "n2": "hound", "n3": "frog"}}
    source = save_timm(tmp_path / "teacher", 3, input_size=(3, 32, 32), **about)
    found = []
    for words in ('{"cat": "hound", "dog": "cat", "frog": "frog"}', '{"cat": "cat", "dog": "hound", "frog": "frog"}'):
        names = tmp_path / f"names{len(found)}.json"
        names.write_text(words)
        out = tmp_path / f"out{len(found)}"
        teacher = ["--teacher", source, "--teacher-kind", "timm", "--class-names", str(names), "--shots", "2"]
        assert train(photos, out, *teacher, "--cache", str(tmp_path / "cache"), "--max-steps", "1") == 0
        path = max((tmp_path / "cache").glob("teacher-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        found.append(load_file(path)["logits"][0, 0].round().tolist())
    assert found == [[1, 0, 2], [0, 1, 2]]


def test_classifier_of_other_classes_is_no_teacher(photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("zebra", "dog", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        random_image(1).save(tmp_path / "images" / name / "0.png")
    words = ["--teacher", str(trained), "--teacher-kind", "classifier", "--shots", "1"]
    assert train(tmp_path / "images", tmp_path / "out", *words) == 2
    assert "knows classes cat, dog, frog (3) and the data cat, dog, zebra (3)" in capsys.readouterr().err


def save_class_folders(root: Path, **number: int) -> Path:
    """Class folders of noise."""
    for label, (name, images) in enumerate(number.items()):
        (root / name).mkdir(parents=True)
        for i in range(images):
            random_image(10 * label + i).save(root / name / f"{i}.png")
    return root


def ce_only(data: Path, out: Path, *words: str) -> int:
    return train(data, out, "--form", "ce-only", "--shots", "2", *words)


def test_a_test_set_that_lacks_a_class_is_scored_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_class_folders(tmp_path / "data" / "Training", cat=4, dog=4, frog=4)
    save_class_folders(tmp_path / "data" / "Testing", dog=2, frog=3)
    data = tmp_path / "data"
    assert ce_only(data, tmp_path / "out", "--test-data", str(data)) == 0
    assert f"warning: {data} (test) has no image of class cat (1)" in capsys.readouterr().out
    words = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "result.json")]
    assert main(["classifier", "evaluate", str(tmp_path / "out"), *words]) == 0
    assert "warning: the data has no image of class cat (1)" in capsys.readouterr().out
    scores = json.loads((tmp_path / "result.json").read_text())["scores"]
    assert scores["ce_head"] == pytest.approx(json.loads((tmp_path / "out" / "classifier.json").read_text())["test"]["ce_head"])
    # The plain forward on each picture, its class looked up by name.
    model, right = load_dual_head(tmp_path / "out"), 0
    for path in sorted((data / "Testing").rglob("*.png")):
        pixels = torch.from_numpy(to_square(load_image(path.name, root=path.parent), 32).copy())
        logits = model(model.settings.preprocessing.normalize(pixels[None].float() / 255)).ce_logits
        right += model.settings.classes[logits.argmax()] == path.parent.name
    assert scores["ce_head"]["accuracy"] == pytest.approx(right / 5)


@pytest.mark.parametrize("option", ["--test-data", "--validation-data"])
def test_what_is_read_at_the_end_is_looked_at_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    data = save_class_folders(tmp_path / "data", cat=3, dog=3)
    other = save_class_folders(tmp_path / "other", dog=2, zebra=2)
    assert ce_only(data, tmp_path / "out", option, str(other)) == 2
    captured = capsys.readouterr()
    assert "has images of zebra (1), and the classes are cat, dog (2); expected no other class" in captured.err
    assert "training" not in captured.out
    assert ce_only(data, tmp_path / "out", option, str(tmp_path / "nowhere")) == 2
    # The folder was not taken: the same command without the part that can't be read is a new run.
    assert not (tmp_path / "out").exists()
    # Broken images are found before the first step too.
    for path in (other / "zebra").iterdir():
        path.unlink()
    (other / "zebra").rmdir()
    for path in (other / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:90])
    assert ce_only(data, tmp_path / "out", option, str(other)) == 2
    captured = capsys.readouterr()
    assert "2 of 2 rows are broken" in captured.err
    assert "training" not in captured.out


def test_images_that_are_scored_though_trained_on_and_classes_without_a_label_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_class_folders(tmp_path / "data", cat=3, dog=3)
    (tmp_path / "split.json").write_text(json.dumps({"labeled": ["cat/0.png", "cat/1.png"], "unlabeled": ["cat/2.png", "dog/0.png"]}))
    words = ["--form", "ce-only", "--split-file", str(tmp_path / "split.json"), "--validation-data", str(data)]
    assert train(data, tmp_path / "out", *words) == 0
    told = capsys.readouterr().out
    assert "warning: no image of class dog (1) is labelled" in told
    assert "warning: 4 of 6 validation images are training images too, 2 of them labelled there" in told


def test_files_that_are_passed_over_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_class_folders(tmp_path / "data", cat=3, dog=3, empty=0)
    (data / "cat" / "phone.heic").write_bytes(b"")
    assert ce_only(data, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "warning: skipped 1 files (.heic: 1) that mmalign doesn't read as images, such as cat/phone.heic" in told
    assert f"warning: {data} (train) has no image of class empty (1)" in told


def test_prompts_have_the_tables_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of WordNet ids under a CLIP: refused without a table, and with one the same teacher as for folders of names."""
    save_clip(tmp_path / "clip")
    ids = {"n02121620": "cat", "n02084071": "dog", "n01639765": "frog"}
    named, numbered = tmp_path / "named", tmp_path / "numbered"
    for name, words in sorted(ids.items()):
        save_class_folders(numbered, **{name: 3})
        save_class_folders(named, **{words: 3})
    teacher = ["--teacher", str(tmp_path / "clip"), "--shots", "2"]
    assert train(numbered, tmp_path / "refused", *teacher) == 2
    assert "classes are WordNet ids (n01639765, n02084071, n02121620 (3))" in capsys.readouterr().err
    (tmp_path / "classnames.txt").write_text("".join(f"{name} {words}\n" for name, words in ids.items()))
    assert train(numbered, tmp_path / "a", *teacher, "--class-names", str(tmp_path / "classnames.txt")) == 0
    assert train(named, tmp_path / "b", *teacher) == 0
    (a,), (b,) = (list((tmp_path / name / "cache").glob("teacher-*.safetensors")) for name in ("a", "b"))
    one = load_class_logits(a, ids=["n02121620/0.png", "n02084071/0.png"], classes=tuple(ids)).logits
    other = load_class_logits(b, ids=["cat/0.png", "dog/0.png"], classes=tuple(ids.values())).logits
    torch.testing.assert_close(one, other)
    (tmp_path / "classnames.txt").write_text("n02121620 cat\n")
    assert train(numbered, tmp_path / "c", *teacher, "--class-names", str(tmp_path / "classnames.txt")) == 2
    assert "has no name for n01639765, n02084071 (2)" in capsys.readouterr().err


def test_a_teacher_that_reads_images_otherwise_is_scored_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are the same, and its logits are not."""
    save_clip(tmp_path / "clip")
    data = save_class_folders(tmp_path / "data", cat=3, dog=3, frog=3)
    words = ["--teacher", str(tmp_path / "clip"), "--shots", "2", "--cache", str(tmp_path / "cache")]
    assert train(data, tmp_path / "a", *words) == 0
    config = tmp_path / "clip" / "processor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.9"))
    assert train(data, tmp_path / "b", *words) == 0
    found = [load_file(path)["logits"] for path in (tmp_path / "cache").glob("teacher-*.safetensors")]
    assert len(found) == 2
    assert not torch.equal(*found)
    assert train(data, tmp_path / "a", *words) == 2
    assert "holds another run" in capsys.readouterr().err


def test_logits_of_other_pixels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that mmalign wrote says of which pictures it is; one that was brought along is taken with a warning."""
    save_clip(tmp_path / "clip")
    data = save_class_folders(tmp_path / "data", cat=3, dog=3, frog=3)
    assert train(data, tmp_path / "a", "--teacher", str(tmp_path / "clip"), "--shots", "2") == 0
    (file,) = (tmp_path / "a" / "cache").glob("teacher-*.safetensors")
    words = ["--teacher", str(file), "--teacher-kind", "logits", "--shots", "2"]
    assert train(data, tmp_path / "b", *words) == 0
    assert "matched by their ids alone" not in capsys.readouterr().out
    random_image(99).save(data / "dog" / "1.png")
    assert train(data, tmp_path / "c", *words) == 2
    now = digest_images([random_image(99)])
    assert f"'dog/1.png' are of the image {digest_images([random_image(11)])}, and the data's is {now}" in capsys.readouterr().err
    # Nor is the run continued on other pictures.
    assert train(data, tmp_path / "b", *words) == 2
    assert "holds another run" in capsys.readouterr().err
    ids = load_labeled_images(data).ids
    save_class_logits(file, ids=ids, classes=("frog", "cat", "dog"), logits=torch.randn(9, 3), source="elsewhere")
    assert train(data, tmp_path / "d", *words) == 0
    assert "does not say of which pixels its logits are: images are matched by their ids alone" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["cached", "live"])
def test_zero_shot_clip_teaches_its_own_tower(photos: Path, tmp_path: Path, mode: str) -> None:
    """A CLIP tower with both heads at the class names, under the same CLIP: the KD loss starts near 0, in its cosine head exactly there."""
    clip = tmp_path / "clip"
    save_clip(clip)
    words = ["--library", "transformers", "--backbone", str(clip), "--text-init", "--kd-head", "cosine", "--image-size", "28"]
    words += ["--teacher", str(clip), "--teacher-mode", mode, "--shots", "2", "--augmentation", "none", "--resize-size", "28"]
    steps = ["--max-steps", "2", "--batch-size", "4", "--logging-steps", "1", "--learning-rate", "1e-6"]
    assert main(["classifier", "train", "--data", str(photos), "--out", str(tmp_path / "out"), *words, *steps]) == 0
    log = [entry for entry in json.loads((tmp_path / "out" / "train_log.json").read_text()) if "loss" in entry]
    assert log[0]["loss/kd_labeled"] == pytest.approx(0, abs=1e-4)
    assert log[0]["dual_head/teacher_agreement"] == 1.0


def test_few_shot_teacher_is_fitted_on_the_labelled_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip"
    save_clip(clip)
    words = ["--teacher", str(clip), "--teacher-kind", "few-shot", "--shots", "2", "--test-data", str(photos)]
    assert train(photos, tmp_path / "out", *words) == 0
    assert "on its 6 labelled images" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert report["mixing"]["ce_head_weight"] == 0.2
    assert "teacher" in report["test"]


@pytest.mark.slow
def test_two_processes_train_and_report_each_test_image_once(photos: Path, logits: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--data", str(photos), "--out", str(tmp_path / "out"), *STUDENT, *STEPS, "--shots", "4", "--test-data", str(photos)]
    words += ["--teacher", str(logits), "--teacher-kind", "logits", "--trainer", "{use_cpu: true}"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), "-m", "mmalign", "classifier", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launch, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test, 12 images" in done.stdout
    assert json.loads((tmp_path / "out" / "mmalign_run.json").read_text())["steps"] == 3


def test_images_of_some_classes_are_scored_among_those(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test images without one class, under other names, as ImageNet-R is to ImageNet."""
    data = load_labeled_images(photos, split="test")
    for name, image, label in zip(data.ids, data.images, data.labels, strict=True):
        if data.classes[label] != "dog":
            place = tmp_path / "some" / "test" / f"n{label}" / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            load_image(image).save(place)
    names = {f"n{number}": name for number, name in enumerate(data.classes) if name != "dog"}
    (tmp_path / "map.json").write_text(json.dumps(names))
    words = ["classifier", "evaluate", str(trained), "--data", str(tmp_path / "some"), "--cache", str(tmp_path / "cache")]
    assert main([*words, "--class-map", str(tmp_path / "map.json"), "--out", str(tmp_path / "result.json")]) == 0
    assert "accuracy among 2 of the classifier's 3 classes" in capsys.readouterr().out
    model = load_dual_head(trained)
    options = EvaluateClassifierOptions(model=trained, data=photos, cache=tmp_path / "all")
    found = decode_scored(options, load_scored(options), model)
    dog = model.settings.classes.index("dog")
    kept = np.flatnonzero(found.labels != dog)
    ce_logits, _ = compute_logits(model, found, kept)
    ce_logits[:, dog] = -torch.inf
    right = (ce_logits.argmax(-1).numpy() == found.labels[kept]).mean()
    assert json.loads((tmp_path / "result.json").read_text())["scores"]["ce_head"]["accuracy"] == pytest.approx(right)
    # A teacher beside it that is sure of the absent class, and right among the others.
    mapped = load_labeled_images(tmp_path / "some", split="test")
    right_ones = torch.tensor([data.classes.index(names[mapped.classes[label]]) for label in mapped.labels])
    sure = torch.nn.functional.one_hot(right_ones, 3).float()
    sure[:, data.classes.index("dog")] = 9.0
    save_class_logits(tmp_path / "t.safetensors", ids=mapped.ids, classes=data.classes, logits=sure, source="drawn")
    beside = ["--class-map", str(tmp_path / "map.json"), "--out", str(tmp_path / "result.json")]
    assert main([*words, *beside, "--teacher-logits", str(tmp_path / "t.safetensors")]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["scores"]["teacher"]["accuracy"] == 1.0
    (tmp_path / "map.json").write_text(json.dumps(dict.fromkeys(names, "cat")))
    assert main([*words, "--class-map", str(tmp_path / "map.json")]) == 2
    assert "gives several classes the name cat" in capsys.readouterr().err


def test_a_frozen_backbone_stays_as_it_was(photos: Path, logits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher", str(logits), "--teacher-kind", "logits", "--shots", "2"]
    for steps in ("1", "3"):
        assert train(photos, tmp_path / steps, *teacher, "--freeze-backbone", "--max-steps", steps) == 0
    first, third = (load_file(tmp_path / steps / "model.safetensors") for steps in ("1", "3"))
    same = {name for name in first if torch.equal(first[name], third[name])}
    assert {name for name in first if name.startswith("backbone.")} <= same, "batch norms' statistics too"
    assert "ce_head.weight" not in same
    with pytest.raises(SystemExit):
        train(photos, tmp_path / "no", *teacher, "--freeze-backbone", "--form", "pcgrad")
    assert "form pcgrad is about gradients in the backbone" in capsys.readouterr().err
