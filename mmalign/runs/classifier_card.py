"""The card of a classifier: its run's record and report, written as the folder's README.md."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.classifier.dual_head import DualHead
from mmalign.models.parameters import count_parameters
from mmalign.reports.model_card import CardFacts, CardResult, write_model_card

LIMITS = (
    "It knows its classes and no other: an image of something else gets one of them all the same.",
    "What its teacher gets wrong, it was taught.",
    "One run with one seed: the spread between seeds is not in this card.",
)


def write_classifier_card(folder: Path, model: DualHead, record: Mapping[str, Any], report: Mapping[str, Any]) -> Path:
    """Write the card of a finished run."""
    options, settings = record["options"], model.settings
    mixing = settings.mixing
    how = (
        f"mixed as {mixing.ce_head_weight:g} CE head + {1 - mixing.ce_head_weight:g} KD head at temperature {mixing.kd_head_temperature:g}"
    )
    heads = f"two heads, {how} ({mixing.source})" if model.kd_head is not None else "one head"
    made, command, how_long = "trained", "mmalign classifier train", f"{record.get('steps', 0):,} optimiser steps"
    if record["method"] == "fit-head":
        made, command, how_long = "fitted", "mmalign classifier fit-head", "in closed form on frozen features"
    results = [
        CardResult(
            benchmark=f"{part} images",
            mode=head,
            metric=metric,
            value=value,
            num_answers=report[f"num_{part}"],
            data_hash=record.get(f"{part}_images") or next(iter(record["data"].values())),
        )
        for part in ("validation", "test")
        for head, scores in report.get(part, {}).items()
        for metric, value in scores.items()
        if metric in ("accuracy", "ece")
    ]
    facts = CardFacts(
        model_name=folder.resolve().name,
        summary=f"This is an image classifier of {len(settings.classes)} classes with {heads}, {made} as {report['form']}.",
        kind="classifier",
        license=options.get("license") or "unknown",
        language="en",
        started_from=_starting_point(options),
        architecture=f"{settings.architecture} ({settings.library}), {settings.preprocessing.image_size} pixels",
        parameters=count_parameters(model),
        data_description=f"{report['num_labeled']:,} labelled and {report['num_unlabeled']:,} unlabelled images of {options['data']}.",
        data=record["data"],
        recipe=f"`{command}`, {how_long}; teacher: {options['teacher'] or 'none'}.",
        config=options,
        version=record["mmalign"],
        commit=record["commit"] or "none (installed package)",
        intended_use="To classify images of its classes where a large vision-language model is too slow.",
        limits=LIMITS,
        evaluation=[dataclasses.replace(result, mode=result.mode.replace("_", " ")) for result in results],
        tags=["dual-head"],
    )
    return write_model_card(folder, facts)


def _starting_point(options: Mapping[str, Any]) -> str:
    if options.get("classifier"):
        return f"the backbone of the classifier {options['classifier']}"
    if options.get("backbone_weights"):
        return f"{options['backbone']} with the weights of {options['backbone_weights']}"
    return options["backbone"] if options["pretrained"] else f"random weights of {options['backbone']}"
