"""``mmalign classifier discover-classes``: a teacher from the domains of unlabelled images, a few labels for the names."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmalign.classifier.class_logits import save_class_logits
from mmalign.classifier.dual_head import DualHead, load_dual_head
from mmalign.classifier.image_cache import CachedImages, cache_images
from mmalign.classifier.label_shift import (
    Array,
    assign_cells,
    balance_domains,
    class_probabilities,
    count_cells,
    factorise,
    name_classes,
    named_logits,
    within_domain,
)
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.classifier.metrics import compute_logits
from mmalign.classifier.splits import Indices, LabelSplit
from mmalign.classifier.training_images import SPLIT_FILE, check_label_choice, choose_split
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.files import read_json, write_whole
from mmalign.models.load import best_device
from mmalign.options.discover import DiscoverClassesOptions
from mmalign.runs.classifier_teacher import hash_source
from mmalign.runs.run_record import build_record, claim_folder, claiming, is_first_process
from mmalign.tables import text_table

METHOD = "discover-classes"
# On average, where the number of cells is not given: counts of fewer are mostly noise.
_IMAGES_OF_A_CELL = 20
LOGITS_FILE, REPORT_FILE = "teacher.safetensors", "discovered.json"


def run(options: DiscoverClassesOptions) -> None:
    """Write the logits that a student distils, the split that named the classes, and a report. One process does it.

    Raises:
        ValueError: If options don't fit together, the domains don't tell the classes, or ``out`` holds another run.
    """
    if is_first_process():
        check_label_choice(options)
        with claiming(options.out, SPLIT_FILE):
            find_and_save(options)


def find_and_save(options: DiscoverClassesOptions) -> None:
    """The same, in the one process."""
    model = load_dual_head(options.model)
    data = load_labeled_images(options.data, name=options.set, column=options.label_column)
    by_domain = load_labeled_images(options.data, name=options.set, column=options.domain_column)
    by_domain = by_domain.with_classes(model.settings.classes, what=f"column {options.domain_column}")
    num_classes = check_numbers(options, classes=len(data.classes), domains=len(by_domain.classes))
    hashes = {"data": data.fingerprint(), "domains": by_domain.fingerprint(), "model": hash_source(str(options.model))}
    claim_folder(options.out, build_record(options, method=METHOD, data=hashes))
    rejects = Rejects(options.out / "rejects.jsonl", max_share=options.max_reject_share)
    side = model.settings.preprocessing.resize_size
    decoded = cache_images(by_domain, options.cache or options.out / "cache", side=side, rejects=rejects)
    truth = dict(zip(data.ids, data.labels, strict=True))
    images = replace(decoded, labels=np.array([truth[one] for one in decoded.ids], dtype=np.int64), classes=data.classes)
    split = choose_split(options, images, options.out / SPLIT_FILE)
    domains = look_at_domains(model, decoded, options)
    found, report = discover(domains, decoded, images, split, options, num_classes=num_classes)
    save(options, images, found, report)


def check_numbers(options: DiscoverClassesOptions, *, classes: int, domains: int) -> int:
    """How many classes are looked for.

    Raises:
        ValueError: If there are fewer domains, fewer names, or too few cells.
    """
    wanted = options.num_classes or classes
    if wanted > classes:
        raise UserError(f"num_classes is {wanted} and the data have {classes} classes; expected no more, so that each has a name")
    if wanted > domains:
        raise UserError(f"there are {domains} domains for {wanted} classes; expected as many or more: fewer don't tell the classes apart")
    if options.num_cells is not None and options.num_cells < 2 * wanted:
        raise UserError(f"num_cells is {options.num_cells} for {wanted} classes; expected twice as many, {2 * wanted}, or more")
    return wanted


def look_at_domains(model: DualHead, images: CachedImages, options: DiscoverClassesOptions) -> Array:
    """p(domain | x) of every image, (N, D), as the classifier mixes its heads, with equally frequent domains."""
    model = model.to(best_device())
    ce_logits, kd_logits = compute_logits(model, images, batch_size=options.batch_size)
    one_head = model.kd_head is None
    found = (ce_logits.softmax(-1) if one_head else model.settings.mixing.mix(ce_logits, kd_logits)).double().numpy()
    split = options.model / SPLIT_FILE
    if not split.is_file():
        return found
    trained = np.isin(images.ids, read_json(split)["labeled"])
    return balance_domains(found, np.bincount(images.labels[trained], minlength=found.shape[1]))


def discover(
    looks: Array, by_domain: CachedImages, images: CachedImages, split: LabelSplit, options: DiscoverClassesOptions, *, num_classes: int
) -> tuple[Array, dict[str, Any]]:
    """Find classes in what the domain classifier says, and their names on the labelled images: logits (N, C) and the report."""
    domains = by_domain.labels
    number = options.num_cells or max(2 * num_classes, min(10 * num_classes, len(domains) // _IMAGES_OF_A_CELL))
    shares, sizes = count_cells(assign_cells(looks, num_cells=number, seed=options.seed), domains, num_domains=looks.shape[1])
    mixture = factorise(shares, num_classes, sizes=sizes)
    found = within_domain(class_probabilities(looks, mixture.shares), mixture.shares, domains)
    names = name_classes(found[split.labeled], images.labels[split.labeled], num_names=len(images.classes))
    logits = named_logits(found, names, num_names=len(images.classes))
    right = logits.argmax(1) == images.labels
    seen = np.bincount(domains, minlength=looks.shape[1])
    by_name = [{images.classes[name]: share for name, share in zip(names, column, strict=True)} for column in mixture.shares.T.tolist()]
    report = {
        "num_images": len(images.ids),
        "num_labeled": len(split.labeled),
        "num_cells": len(sizes),
        "singular_values": np.linalg.svd(shares, compute_uv=False).tolist(),
        "residual": float(np.linalg.norm(shares - mixture.cells @ mixture.shares) / np.linalg.norm(shares)),
        "domain_accuracy": float((looks.argmax(1) == domains).mean()),
        "images": dict(zip(by_domain.classes, seen.tolist(), strict=True)),
        "shares": dict(zip(by_domain.classes, by_name, strict=True)),
        "accuracy_labeled": _mean(right[split.labeled]),
        "accuracy_unlabeled": _mean(right[split.unlabeled]),
    }
    return logits, report


def save(options: DiscoverClassesOptions, images: CachedImages, logits: Array, report: dict[str, Any]) -> None:
    """Save what a student distils, and say what was found."""
    save_class_logits(
        options.out / LOGITS_FILE,
        ids=images.ids,
        classes=images.classes,
        logits=torch.from_numpy(logits),
        source=f"{METHOD} {options.model}",
        digests=images.digests,
    )
    write_whole(options.out / REPORT_FILE, json.dumps(report, indent=1))
    shares = report["shares"]
    names = list(next(iter(shares.values())))
    print(text_table([("domain", *names), *((domain, *(f"{100 * one[name]:.0f}%" for name in names)) for domain, one in shares.items())]))
    print(
        f"saved in {options.out}: {len(names)} classes of {report['num_images']:,} images in {len(shares)} domains, "
        f"{report['accuracy_labeled']:.1%} right on the {report['num_labeled']:,} labelled images that named them"
    )


def _mean(right: Indices) -> float | None:
    return float(right.mean()) if len(right) else None
