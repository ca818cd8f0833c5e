"""The study on photographs: its parts, its data and its pairs say what is true."""

import importlib.util
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor, AutoTokenizer

from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.cli import main
from mmalign.errors import UserError
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.object_words import find_mentions, read_synonyms
from mmalign.evaluation.pope import load_pope
from scripts.real import dho
from scripts.real.data import DataOptions, write_data
from scripts.real.pairs import put_object, write_pairs
from scripts.real.parts import PARTS, find_source, make_llm, make_scorer, make_text, make_tower, rename_lite0
from scripts.real.photos import Photo, read_photo_row, read_photos, small_jpeg
from scripts.real.words import Company, plural
from tests.odd_images import tagged

SMALL = {"num_train": 240, "num_val": 80, "num_pair_photos": 60, "num_chair": 30, "num_existence": 40}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def package(name: str) -> str:
    """A part's file in its package; skips the test where that is not installed."""
    if importlib.util.find_spec(PARTS[name].package) is None:
        pytest.skip(f"the package {PARTS[name].package} is not installed: pip install {PARTS[name].install}")
    return find_source(name, None)


@pytest.fixture(autouse=True)
def nltk_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "data"
    write_data(DataOptions(photos=shared_data / "coco", benchmarks=shared_data / "benchmarks", out=out, **SMALL))
    return out


@pytest.fixture(scope="module")
def photos(data: Path) -> dict[str, list[Photo]]:
    parts: dict[str, list[Photo]] = {}
    for row in rows_of(data / "photos.jsonl"):
        parts.setdefault(row["part"], []).append(read_photo_row(row))
    return parts


class TestData:
    def test_parts_share_no_training_photograph(self, photos: dict[str, list[Photo]]) -> None:
        names = [photo.image for part in ("sft", "pairs", "existence") for photo in photos[part]]
        assert len(names) == len(set(names))
        assert {part: len(found) for part, found in photos.items()} == {"sft": 143, "pairs": 60, "existence": 40, "val": 80}

    def test_questions_of_chats_are_truly_answered(self, data: Path, photos: dict[str, list[Photo]]) -> None:
        known = {photo.image: photo for photo in photos["sft"]}
        classes = frozenset(json.loads((data / "data.json").read_text())["classes"])
        answers: Counter[str] = Counter()
        for row in rows_of(data / "sft" / "chats.jsonl"):
            if row["id"].endswith("/questions"):
                photo = known[row["images"][0]]
                for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
                    name = re.fullmatch(r"Is there an? (.*) in the image\?", question["content"])[1]  # type: ignore[index]
                    assert (name in photo.present(classes)) == (answer["content"] == "Yes.")
                    assert (name in (photo.objects or ())) or answer["content"] == "No."
                    answers[answer["content"]] += 1
        assert answers["Yes."] == answers["No."] > 200

    def test_a_word_of_a_caption_is_no_object_where_instances_are_known(self) -> None:
        photo = Photo("1", "1.jpg", "train", ("A dog looks at a toy car.",), frozenset({"dog", "car", "chair"}), frozenset({"dog"}))
        assert photo.present(frozenset({"dog", "car"})) == {"dog", "chair"}

    def test_benchmarks_are_read_by_evaluation(self, data: Path) -> None:
        pope, repope, existence = (load_pope(data / name) for name in ("pope", "repope", "existence"))
        assert Counter(one.split for one in pope.records) == {"random": 336, "popular": 336, "adversarial": 336}
        assert {one.id for one in repope.records} < {one.id for one in pope.records}
        labels = Counter((one.split, one.is_yes) for one in existence.records)
        assert len(set(labels.values())) == 1
        assert len(load_chair(data / "chair").questions()) == 30
        names = {path.name for path in (data / "images").iterdir()}
        evaluated = {question.image for bench in (pope, existence, load_chair(data / "chair_instances")) for question in bench.questions()}
        assert evaluated <= names
        assert evaluated <= {path.name for path in (data / "blank").iterdir()}

    def test_existence_agrees_with_instances(self, data: Path, photos: dict[str, list[Photo]]) -> None:
        known = {photo.image: photo for photo in photos["existence"]}
        for split in ("random", "popular", "adversarial"):
            for row in rows_of(data / "existence" / f"coco_pope_{split}.json"):
                photo, name = known[row["image"]], re.split(r"Is there an? | in the image", row["text"])[1]
                assert (name in (photo.instances or ())) == (row["label"] == "yes")
                assert row["label"] == "yes" or name not in (photo.objects or ())

    def test_human_captions_are_scored(self, data: Path, tmp_path: Path) -> None:
        words = ["evaluate", "chair", "--data", str(data / "chair"), "--answers", str(data / "human" / "chair.jsonl")]
        assert main([*words, "--out", str(tmp_path)]) == 0
        metrics = json.loads((tmp_path / "chair.json").read_text())["metrics"]
        # CHAIR's sets hold what human captions name.
        assert metrics["chair/sentence"] == 0
        assert 0.3 < metrics["chair/recall"] < 0.9

    def test_seed_decides(self, shared_data: Path, data: Path, tmp_path: Path) -> None:
        files = ("photos.jsonl", "sft/chats.jsonl", "existence/coco_pope_random.json", "human/chair.jsonl")
        for name, seed in (("same", 0), ("other", 1)):
            options = DataOptions(
                photos=shared_data / "coco", benchmarks=shared_data / "benchmarks", out=tmp_path / name, **SMALL, seed=seed
            )
            write_data(options)
            equal = [(tmp_path / name / file).read_bytes() == (data / file).read_bytes() for file in files]
            assert all(equal) if seed == 0 else not any(equal)

    def test_too_few_photographs_are_refused(self, shared_data: Path, tmp_path: Path) -> None:
        options = {"photos": shared_data / "coco", "benchmarks": shared_data / "benchmarks", "out": tmp_path / "data"}
        with pytest.raises(UserError, match="none with known objects is left for SFT"):
            write_data(DataOptions(**options, num_train=20, num_val=5, num_pair_photos=100, num_existence=0))
        assert not (tmp_path / "data").exists()

    def test_a_folder_without_photographs_is_refused(self, shared_data: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no photographs at .* expected COCO's annotations/"):
            write_data(DataOptions(photos=tmp_path, benchmarks=shared_data / "benchmarks", out=tmp_path / "data"))


@pytest.fixture(scope="module")
def coco(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in COCO's own folders, twice as large as they are stored."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for split, file in (("train", "train-0"), ("val", "val")):
        rows = parquet.read_table(shared_data / "coco" / f"{file}.parquet").slice(0, 60).to_pylist()
        rows = [row for row in rows if row["coco_id"] and row["objects_instances"] not in (None, [None])]
        names = sorted({name for row in rows for name in row["objects_instances"]})
        numbers = {name: i for i, name in enumerate(names)}
        images, captions, instances = [], [], []
        (folder / f"{split}2014").mkdir()
        for row in rows:
            name = f"COCO_{split}2014_{row['coco_id']:012d}.jpg"
            picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            picture.resize((picture.width * 2, picture.height * 2)).save(folder / f"{split}2014" / name)
            images.append({"id": row["coco_id"], "file_name": name})
            captions += [{"image_id": row["coco_id"], "caption": caption} for caption in row["captions"]]
            instances += [{"image_id": row["coco_id"], "category_id": numbers[name]} for name in row["objects_instances"]]
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        files = {"captions": {"annotations": captions}}
        files["instances"] = {"images": images, "annotations": instances, "categories": categories}
        for kind, content in files.items():
            (folder / "annotations" / f"{kind}_{split}2014.json").write_text(json.dumps(content))
    return folder


class TestCocosOwnFolders:
    def test_photographs_are_those_of_the_parquet_files(self, coco: Path, shared_data: Path) -> None:
        words = shared_data / "benchmarks" / "chair" / "synonyms.txt"
        most = {"train": 12_000, "val": 3_000}
        own, stored = (
            {photo.image: photo for photo in read_photos(source, words=words, most=most, preferred=frozenset(), seed=0).photos}  # type: ignore[arg-type]
            for source in (coco, shared_data / "coco")
        )
        assert len(own) > 30
        for name, photo in own.items():
            assert (photo.id, photo.captions, photo.instances) == (stored[name].id, stored[name].captions, stored[name].instances)
            # One caption of five stands in the training files, so that the sets there may hold more.
            assert photo.instances <= photo.objects <= stored[name].objects  # type: ignore[operator]

    def test_all_is_written_with_smaller_images(self, coco: Path, shared_data: Path, tmp_path: Path) -> None:
        sizes = {"num_pair_photos": 10, "num_chair": 2, "num_existence": 8}
        write_data(DataOptions(photos=coco, benchmarks=shared_data / "benchmarks", out=tmp_path / "data", **sizes))
        sides = {max(Image.open(path).size) for path in (tmp_path / "data" / "images").iterdir()}
        assert max(sides) == 256
        assert len(load_chair(tmp_path / "data" / "chair").questions()) == 2

    def test_missing_annotations_are_named(self, coco: Path, shared_data: Path, tmp_path: Path) -> None:
        (tmp_path / "annotations").mkdir()
        with pytest.raises(UserError, match="no instances_train2014.json, captions_train2014.json"):
            write_data(DataOptions(photos=tmp_path, benchmarks=shared_data / "benchmarks", out=tmp_path / "data"))


class TestPairs:
    def test_rejected_answers_are_wrong_and_chosen_ones_not(self, data: Path, photos: dict[str, list[Photo]], tmp_path: Path) -> None:
        known = {photo.image: photo for photo in photos["pairs"]}
        words = read_synonyms((data / "pair_photos" / "synonyms.txt").read_text(), strip=True)
        write_pairs(data, tmp_path / "pairs", sampled=None, injected=True, label_noise=0.0, seed=0)
        rows = rows_of(tmp_path / "pairs" / "pairs.jsonl")
        assert set(Counter(row["truth_kind"] for row in rows)) == {"replace", "add", "wrong-yes", "wrong-no"}
        for row in rows:
            photo, (wrong,) = known[row["images"][0]], row["truth_objects"]
            chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
            assert 0 <= row["truth_difficulty"] <= 1
            assert (wrong in photo.objects) == (row["truth_kind"] == "wrong-no")
            if row["truth_kind"] in ("replace", "add"):
                named = [{mention.name for mention in find_mentions(text, words)} for text in (chosen, rejected)]
                assert named[1] - named[0] == {wrong}
                assert chosen.startswith(tuple(caption.rstrip(" .") for caption in photo.captions))
            else:
                assert {chosen, rejected} == {"Yes.", "No."}

    def test_label_noise_swaps_its_share_and_nothing_else(self, data: Path, tmp_path: Path) -> None:
        for name, noise in (("clean", 0.0), ("noisy", 0.3)):
            write_pairs(data, tmp_path / name, sampled=None, injected=True, label_noise=noise, seed=0)
        clean, noisy = (rows_of(tmp_path / name / "pairs.jsonl") for name in ("clean", "noisy"))
        flipped = [row["truth_flipped"] for row in noisy]
        assert 0.15 < sum(flipped) / len(flipped) < 0.45
        for a, b in zip(clean, noisy, strict=True):
            sides = ("rejected", "chosen") if b["truth_flipped"] else ("chosen", "rejected")
            assert (a["chosen"], a["rejected"]) == (b[sides[0]], b[sides[1]])

    @pytest.mark.parametrize(
        ("caption", "name", "wrong", "expected"),
        [
            ("An umbrella on a beach.", "umbrella", "dog", "A dog on a beach."),
            ("Two dogs near a dog house.", "dog", "bus", "Two buses near a dog house."),
            ("A man on a horse", "horse", "elephant", "A man on an elephant"),
            ("many people in a park", "person", "sheep", "many sheep in a park"),
            ("Cars, parked", "car", "knife", "Knives, parked"),
            ("a car", "car", "skis", "a skis"),
        ],
    )
    def test_an_object_is_put_in_its_place(self, caption: str, name: str, wrong: str, expected: str) -> None:
        words = {"umbrella": "umbrella", "dog": "dog", "horse": "horse", "people": "person", "man": "person", "car": "car"}
        mention = next(mention for mention in find_mentions(caption, words) if mention.name == name)
        assert put_object(caption, mention, wrong, words=words) == expected

    def test_plurals(self) -> None:
        assert [plural(name) for name in ("wine glass", "couch", "person", "mouse", "skis", "dog")] == [
            *("wine glasses", "couches", "people", "mice", "skis", "dogs")
        ]

    def test_likelihood_is_the_share_of_less_likely_company(self) -> None:
        company = Company(
            [frozenset({"cup", "table"})] * 3 + [frozenset({"cup", "fork"})] + [frozenset({"dog"})], {"cup", "table", "fork", "dog"}
        )
        # Beside a cup stand a table three times, a fork once, a dog never, and a cup itself never.
        assert company.likelihood("table", {"cup"}) == 1.0
        assert company.likelihood("fork", {"cup"}) == pytest.approx(2 / 3)
        assert company.likelihood("dog", {"cup"}) == pytest.approx(1 / 6)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = package("tower")
    folder = tmp_path_factory.mktemp("parts") / "tower"
    make_tower(source, folder)
    return folder


class TestParts:
    def test_tower_names_what_photographs_show(self, tower: Path, shared_data: Path) -> None:
        """The names of ImageNet's classes must fit: weights in another order would give any."""
        wanted = {"airplane": "airliner|wing|warplane|airship", "cat": "cat|tabby|lynx", "elephant": "elephant|tusker", "zebra": "zebra"}
        model, processor = AutoModelForImageClassification.from_pretrained(tower).eval(), AutoImageProcessor.from_pretrained(tower)
        rows = parquet.read_table(shared_data / "coco" / "train-0.parquet", columns=["image", "objects"]).to_pylist()
        rows = [row for row in rows if row["objects"] is not None and len(row["objects"]) == 1 and row["objects"][0] in wanted][:48]
        pixels = processor([Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows], return_tensors="pt")
        with torch.no_grad():
            likeliest = model(**pixels).logits.topk(3).indices
        found = [" ".join(model.config.id2label[int(label)] for label in labels) for labels in likeliest]
        right = [re.search(wanted[row["objects"][0]], labels) is not None for row, labels in zip(rows, found, strict=True)]
        assert len(right) > 30
        assert sum(right) / len(right) > 0.7

    def test_tower_weights_of_other_shapes_are_refused(self) -> None:
        with pytest.raises(UserError, match="holds 1 tensors"):
            rename_lite0({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})

    def test_scorer_reads_photographs_and_sentences(self, tower: Path, shared_data: Path) -> None:
        make_text(package("text"), tower.parent / "text")
        text, tokenizer = AutoModel.from_pretrained(tower.parent / "text").eval(), AutoTokenizer.from_pretrained(tower.parent / "text")
        encoded = tokenizer(["A dog runs.", "A puppy is running.", "The stock market fell."], return_tensors="pt", padding=True)
        with torch.no_grad():
            hidden = text(**encoded).last_hidden_state * encoded["attention_mask"].unsqueeze(-1)
        means = F.normalize(hidden.sum(1), dim=-1)
        # Pretrained: as the sentence encoder's own pooling sees it.
        assert means[0] @ means[1] > means[0] @ means[2] + 0.3
        make_scorer(tower.parent, tower.parent / "scorer", image_size=192, projection_dim=32, seed=0)
        model, processor = AutoModel.from_pretrained(tower.parent / "scorer").eval(), AutoProcessor.from_pretrained(tower.parent / "scorer")
        image = Image.open(next((shared_data / "photos" / "images").glob("*.jpg"))).convert("RGB")
        pixels = processor.image_processor(images=[image], return_tensors="pt")
        with torch.no_grad():
            assert model.get_image_features(**pixels).pooler_output.shape == (1, 32)
            assert model.get_text_features(**encoded).pooler_output.shape == (3, 32)
            features = AutoModel.from_pretrained(tower).eval()(**pixels).pooler_output
            assert torch.allclose(model.vision_model(**pixels).pooler_output, features, atol=1e-5)

    @pytest.mark.slow
    def test_language_model_answers_and_is_composed(self, tower: Path, tmp_path: Path) -> None:
        make_llm(package("llm"), tmp_path / "llm")
        assert "quantization_config" not in json.loads((tmp_path / "llm" / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
        assert tokenizer.eos_token == "<|im_end|>"
        assert not [token for token in tokenizer.get_vocab() if re.search(r"\d\d", token)], "the model splits numbers into digits"
        words = ["--vision", str(tower), "--llm", str(tmp_path / "llm"), "--chat-template", "chatml", "--image-size", "192"]
        assert main(["compose", *words, "--out", str(tmp_path / "mllm")]) == 0
        model, processor = AutoModel.from_pretrained(tmp_path / "llm"), AutoProcessor.from_pretrained(tmp_path / "mllm")
        assert model.config.num_hidden_layers == 30
        kept = model.layers[2].mlp.down_proj.weight
        make_llm(package("llm"), tmp_path / "half", keep_every=2)
        half = AutoModel.from_pretrained(tmp_path / "half")
        assert len(half.layers) == 15
        assert torch.equal(half.layers[1].mlp.down_proj.weight, kept)
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        text = processor.apply_chat_template(asked, add_generation_prompt=True)
        assert text.endswith("<|im_start|>assistant\n")


def test_photographs_with_one_object_are_labelled_by_it(data: Path, photos: dict[str, list[Photo]], tmp_path: Path) -> None:
    lines = (data / "photos.jsonl").read_text()
    twice = next(line for line in lines.splitlines() if json.loads(line)["part"] == "existence" and len(json.loads(line)["instances"]) == 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos.jsonl").write_text(lines + json.dumps({**json.loads(twice), "part": "val"}) + "\n")
    (tmp_path / "data" / "images").symlink_to(data / "images")
    dho.write_coco(tmp_path / "data", tmp_path / "one", fewest=1)
    for split, parts in dho.PARTS.items():
        known = {photo.image: photo for part in parts for photo in photos[part]}
        images = load_labeled_images(tmp_path / "one", split=split)  # type: ignore[arg-type]
        assert len(set(images.ids)) == len(images.ids)
        for name, label in zip(images.ids, images.labels, strict=True):
            assert known[name].instances == {images.classes[label]}
        counts = np.bincount(images.labels, minlength=len(images.classes))
        assert 1 <= counts.min() <= counts.max() <= dho.MOST
    with pytest.raises(SystemExit, match="photographs have [01] classes that 1000 or more show alone"):
        dho.write_coco(data, tmp_path / "none", fewest=1000)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photo_that_is_made_small_stands_upright(kind: str) -> None:
    """12 x 8 pixels that lie on their side; the saved file has no tag."""
    small = Image.open(io.BytesIO(small_jpeg(tagged(6, kind), long_side=6)))
    assert small.size == (4, 6)
    assert not small.getexif()
