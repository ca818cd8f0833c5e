"""Photographs of four classes in six domains, for the study's teachers without labels: classes from domains, and clusters as their control.

Only how frequent a class is differs between domains: p(class | domain) is drawn (Dirichlet, all ones), and each photograph goes to a domain
at random, by its class.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from scipy.cluster.vq import kmeans2

from mmalign.classifier.class_logits import load_class_logits, save_class_logits
from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.image_cache import cache_images
from mmalign.classifier.label_shift import name_classes, named_logits
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.classifier.metrics import compute_features
from mmalign.classifier.splits import Indices, load_split
from mmalign.data.rejects import Rejects
from mmalign.files import read_json
from scripts.studies.dho_cells import DISCOVERED

CLASSES = ("airplane", "automobile", "frog", "horse")
NUM_DOMAINS = 6


def domain_folder(out: Path, seed: int) -> Path:
    """Where the photographs and the teachers of a seed lie."""
    return out / "domains" / str(seed)


def label_folder(out: Path, labels: str, seed: int) -> Path:
    """Where the teachers of a seed lie that these labels named, and their split."""
    return domain_folder(out, seed) / labels.replace("%", "pc")


def save_domains(options: argparse.Namespace, own: Indices, seed: int) -> None:
    """Deal the student's photographs of four classes out to domains, and keep the test photographs of those classes."""
    folder = domain_folder(options.out, seed)
    if (folder / "train.parquet").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (Dataset.from_parquet(str(options.data / f"{split}.parquet")) for split in ("train", "test"))
    _keep_classes(test).to_parquet(folder / "test.parquet")
    train = _keep_classes(train.select(own))
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(len(CLASSES)), NUM_DOMAINS).T
    by_class = shares / shares.sum(1, keepdims=True)
    domains = [f"domain {rng.choice(NUM_DOMAINS, p=by_class[label])}" for label in train["label"]]
    train.add_column("domain", domains).to_parquet(folder / "train.parquet")


def _keep_classes(rows: Dataset) -> Dataset:
    """The photographs of the four classes, numbered by them."""
    names, labels = rows.features["label"].names, rows["label"]
    kept = [number for number, label in enumerate(labels) if names[label] in CLASSES]
    numbers = [CLASSES.index(names[labels[number]]) for number in kept]
    return rows.select(kept).remove_columns("label").add_column("label", numbers).cast_column("label", ClassLabel(names=list(CLASSES)))


def domain_words(out: Path, seed: int) -> list[str]:
    """What the classifier of domains is trained on: every photograph, its domain the label."""
    folder = domain_folder(out, seed)
    words = ["--label-column", "domain", "--label-share", "1", "--form", "ce-only", "--seed", str(seed)]
    return [*words, "--out", str(folder / "classifier")]


def discover_words(out: Path, labels: str, seed: int) -> list[str]:
    """The command that finds the classes, a tenth of the photographs held out to tune a student's mixing."""
    folder = domain_folder(out, seed)
    words = ["classifier", "discover-classes", str(folder / "classifier"), "--data", str(folder), "--domain-column", "domain"]
    words += ["--label-share", str(float(labels.strip("%")) / 100), "--validation-share", "0.1", "--split-seed", str(seed)]
    return [*words, "--cache", str(out / "cache"), "--out", str(label_folder(out, labels, seed))]


def save_clusters(out: Path, labels: str, seed: int) -> None:
    """The control: k-means on the domain classifier's features, as many clusters as classes, named by the same labels."""
    folder = label_folder(out, labels, seed)
    data = load_labeled_images(domain_folder(out, seed))
    model = load_dual_head(domain_folder(out, seed) / "classifier")
    side = model.settings.preprocessing.resize_size
    images = cache_images(data, out / "cache", side=side, rejects=Rejects(folder / "rejects.jsonl", max_share=0.0))
    features = compute_features(model, images, np.arange(len(images.ids))).double().numpy()
    cluster = kmeans2(features, len(CLASSES), iter=100, minit="++", rng=seed)[1]
    split = load_split(folder / "split.json", images.ids)
    found = np.eye(len(CLASSES))[cluster]
    names = name_classes(found[split.labeled], images.labels[split.labeled], num_names=len(CLASSES))
    logits = torch.from_numpy(named_logits(found.clip(0.02, 0.94), names, num_names=len(CLASSES)))
    path = teacher_file(out, "k-means", labels, seed)
    save_class_logits(path, ids=images.ids, classes=images.classes, logits=logits, source="k-means of features")


def teacher_file(out: Path, teacher: str, labels: str, seed: int) -> Path:
    """The logits of a teacher without labels."""
    return label_folder(out, labels, seed) / {"discovered": "teacher.safetensors", "k-means": "k-means.safetensors"}[teacher]


def measure_teachers(out: Path, labels: str, seed: int) -> dict[str, Any]:
    """Accuracy of both teachers on unlabelled photographs, and how far p(class | domain) is off: its L1, mean over domains."""
    data = load_labeled_images(domain_folder(out, seed))
    domains = load_labeled_images(domain_folder(out, seed), column="domain")
    split = load_split(label_folder(out, labels, seed) / "split.json", data.ids)
    found: dict[str, Any] = {}
    for teacher in DISCOVERED:
        logits = load_class_logits(teacher_file(out, teacher, labels, seed), ids=data.ids, classes=data.classes).logits[:, 0]
        found[teacher] = float((logits.argmax(-1).numpy() == data.labels)[split.unlabeled].mean())
    shares = read_json(label_folder(out, labels, seed) / "discovered.json")["shares"]
    apart = []
    for number, domain in enumerate(domains.classes):
        true = np.bincount(data.labels[domains.labels == number], minlength=len(CLASSES)) / (domains.labels == number).sum()
        apart.append(sum(abs(true[place] - shares[domain].get(name, 0.0)) for place, name in enumerate(data.classes)))
    return {**found, "shares_l1": float(np.mean(apart))}
