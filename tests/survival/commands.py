"""Every command that works for long, as a table: how it is run on tiny models, and what it ends with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from mmalign.classifier.class_logits import save_class_logits
from mmalign.classifier.labeled_images import load_labeled_images
from tests.data_files import chat_rows, question_rows, save_rows, scored_rows
from tests.pictures.conftest import picture_pairs, save_pictures
from tests.tiny_classifiers import save_part
from tests.tiny_families import janus
from tests.tiny_models import build_tiny_llava, pair_rows, random_image


class Inputs(NamedTuple):
    """Models and data that the commands share."""

    model: Path
    clip: Path
    chats: Path
    questions: Path
    pairs: Path
    many_pairs: Path
    pope: Path
    photos: Path
    logits: Path
    janus: Path
    drawings: Path


class Case(NamedTuple):
    """One command.

    Attributes:
        words: Its command line, from the inputs and the output folder.
        read: What it ends with: equal values are the same result, bit for bit.
    """

    words: Callable[[Inputs, Path], list[str]]
    read: Callable[[Path], Any]


def make_inputs(folder: Path) -> Inputs:
    """Build and save the models and data."""
    model, processor = build_tiny_llava()
    model.save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    build_clip(processor.tokenizer, folder / "clip")
    chats = save_rows(folder / "chats.parquet", chat_rows(8))
    questions = save_rows(folder / "questions.parquet", question_rows(8))
    (folder / "reward.py").write_text("def words(prompt, responses, row):\n    return [len(text.split()) for text in responses]\n")
    pairs = save_rows(folder / "pairs.parquet", scored_rows(8))
    many_pairs = save_rows(folder / "many.parquet", pair_rows(40))
    pope = folder / "pope"
    (pope / "images").mkdir(parents=True)
    for i in range(6):
        random_image(i).save(pope / "images" / f"{i}.png")
    rows = [{"question_id": i, "image": f"{i % 6}.png", "text": f"Is there a dog {i}?", "label": "yes"} for i in range(24)]
    (pope / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    photos, logits = folder / "photos", folder / "teacher.safetensors"
    photos.mkdir()
    save_part(photos / "train.parquet", 30, 0)
    images = load_labeled_images(photos)
    sure = 4 * functional.one_hot(torch.from_numpy(images.labels), 3).float()
    save_class_logits(logits, ids=images.ids, classes=images.classes, logits=sure, source="the truth")
    model, processor = janus()
    model.save_pretrained(folder / "janus")
    processor.save_pretrained(folder / "janus")
    drawings = save_pictures(folder / "drawings.parquet", picture_pairs(8))
    made = (folder / "llava", folder / "clip", chats, questions, pairs, many_pairs, pope, photos, logits)
    return Inputs(*made, folder / "janus", drawings)


def build_clip(tokenizer: Any, folder: Path) -> None:
    """Save a tiny random CLIP."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
    text |= {"max_position_embeddings": 32, "eos_token_id": 3, "bos_token_id": 1, "pad_token_id": 0}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def train(method: str, *more: str) -> Callable[[Inputs, Path], list[str]]:
    """A training run of ten steps that saves every third; the learning rate never falls to 0, so that every step counts."""

    def words(inputs: Inputs, out: Path) -> list[str]:
        data = {"sft": inputs.chats, "mimic": inputs.chats, "online": inputs.questions}.get(method, inputs.pairs)
        run = [
            "train",
            method,
            "--model",
            str(inputs.model),
            "--data",
            str(data),
            "--out",
            str(out),
            "--max-steps",
            "10",
            "--batch-size",
            "2",
        ]
        run += ["--save-steps", "3", "--learning-rate", "1e-3", "--schedule", "constant", "--logging-steps", "1"]
        if method == "mimic":
            run += ["--teacher", str(inputs.model)]
        if method == "online":
            run += ["--reward", f"function:{inputs.questions.parent / 'reward.py'}:words", "--samples", "4", "--max-new-tokens", "8"]
        return [*run, *more]

    return words


def train_pictures(inputs: Inputs, out: Path) -> list[str]:
    """The same on pairs of pictures."""
    words = train("preference", "--pictures", "--objective", "ddo")(inputs, out)
    words[words.index("--model") + 1], words[words.index("--data") + 1] = str(inputs.janus), str(inputs.drawings)
    return words


def read_run(out: Path) -> Any:
    """The weights and what was logged at each step."""
    (path,) = out.glob("*model.safetensors")
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    log = json.loads((out / "train_log.json").read_text())
    record = json.loads((out / "mmalign_run.json").read_text())
    return weights, [entry for entry in log if "loss" in entry], record["parameters"], record["steps"], record["num_rejected"]


def score(inputs: Inputs, out: Path) -> list[str]:
    """Scoring of forty pairs in shards of SHARD_SIZE."""
    return ["score-difficulty", str(inputs.many_pairs), "--clip", str(inputs.clip), "--mllm", str(inputs.model), "--out", str(out)]


def read_scores(out: Path) -> Any:
    """Every file's bytes."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and "partial" not in path.name}


def evaluate(inputs: Inputs, out: Path) -> list[str]:
    """POPE, two questions at once, so that there are many moments to be killed at."""
    return ["evaluate", "pope", "--data", str(inputs.pope), "--model", str(inputs.model), "--out", str(out), "--batch-size", "2"]


def train_classifier(inputs: Inputs, out: Path) -> list[str]:
    """A classifier with two heads, and a moving average of its weights."""
    run = ["classifier", "train", "--data", str(inputs.photos), "--teacher", str(inputs.logits), "--teacher-kind", "logits"]
    run += ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
    run += ["--image-size", "32", "--augmentation", "pad-crop", "--shots", "2", "--ema-decay", "0.9", "--out", str(out)]
    run += ["--max-steps", "10", "--batch-size", "4", "--save-steps", "3", "--logging-steps", "1", "--learning-rate", "1e-3"]
    return [*run, "--schedule", "constant"]


def read_classifier(out: Path) -> Any:
    """The weights, the losses and the report."""
    log = json.loads((out / "train_log.json").read_text())
    weights = (out / "model.safetensors").read_bytes()
    return weights, [entry for entry in log if "loss" in entry], json.loads((out / "classifier.json").read_text())


def distill_images(inputs: Inputs, out: Path) -> list[str]:
    """A synthetic set that is learned in ten steps, from photographs whose target is the tiny CLIP's tower."""
    run = ["classifier", "distill-images", "--data", str(inputs.photos), "--target", str(inputs.clip), "--target-kind", "transformers"]
    run += ["--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}", "--num-images", "6", "--batch-size", "8", "--pool-size", "2"]
    return [*run, "--online-steps", "2", "--steps", "10", "--save-steps", "3", "--logging-steps", "1", "--out", str(out)]


def read_set(out: Path) -> Any:
    """The images, their features, and the loss of each step."""
    with safe_open(out / "targets.safetensors", "pt") as file:
        features = file.get_tensor("features").numpy().tobytes()
    return (out / "train.parquet").read_bytes(), features, (out / "distill_log.json").read_text()


CASES = {
    "train sft": Case(train("sft"), read_run),
    "train sft, dropout and accumulation": Case(
        train("sft", "--lora-rank", "4", "--lora-dropout", "0.3", "--gradient-accumulation-steps", "2"), read_run
    ),
    "train mimic": Case(train("mimic", "--ce-weight", "1", "--teacher-quantization", "nf4"), read_run),
    "train preference": Case(train("preference", "--difficulty-mode", "paper"), read_run),
    "train preference, adapter": Case(train("preference", "--lora-rank", "4", "--lora-dropout", "0.3"), read_run),
    "train preference, pictures": Case(train_pictures, read_run),
    "train online": Case(train("online", "--objective", "grpo", "--temperature", "0.7"), read_run),
    "train online, two passes": Case(train("online", "--objective", "disco:score=ratio", "--correct", "5", "--passes", "2"), read_run),
    "train online, pairs and an adapter": Case(train("online", "--objective", "dno", "--win-rates", "--lora-rank", "4"), read_run),
    "classifier train": Case(train_classifier, read_classifier),
    "classifier distill-images": Case(distill_images, read_set),
    "score-difficulty": Case(score, read_scores),
    "evaluate": Case(evaluate, read_scores),
}
