"""The trees of a chunk, searched side by side: in each round every tree asks for the steps of one node."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from data_tools.scoring import Sampled
from data_tools.step_sampling import StepSampler
from data_tools.step_values import Values
from data_tools.tree import Node, Step, StepPair, TreeSearch, step_pairs
from mmalign.data.encode import EncodedPrompt
from mmalign.data.images import load_image
from mmalign.errors import UserError


def search_chunk(
    items: Sequence[Sampled], sampler: StepSampler, values: Values, search: TreeSearch, *, image_root: Path, seeds: Sequence[int]
) -> list[list[dict[str, Any]]]:
    """Search the answers to some questions.

    Args:
        items: The questions.
        sampler: Draws steps.
        values: Tells how true they are.
        search: How trees are searched.
        image_root: Folder of the images.
        seeds: Of the questions.

    Returns:
        For each item one line for each of its pairs, or one without a pair, or one with the ``reason`` why its image can't be used.
    """
    images: dict[int, Image.Image] = {}
    read: dict[int, EncodedPrompt] = {}
    lines: dict[int, list[dict[str, Any]]] = {}
    for i, item in enumerate(items):
        try:
            image = load_image(item.question.image, root=image_root)
            read[i] = sampler.read(item.question.prompt, image)
            images[i] = image
        except UserError as error:
            lines[i] = [{"reason": str(error)}]
    if images:
        sampler.see(list(read.values()))
        values.see([items[i] for i in images], list(images.values()))
        paths = _search_all(sampler, values, search, seeds=[seeds[i] for i in images])
        for number, i in enumerate(images):
            told = {"answer": paths[number][-1].text, "tokens": sampler.tokens[number]}
            lines[i] = [{**told, **_line(pair)} for pair in step_pairs(paths[number])] or [told]
    return [lines[i] for i in range(len(items))]


def _search_all(sampler: StepSampler, values: Values, search: TreeSearch, *, seeds: Sequence[int]) -> dict[int, list[Node]]:
    """The path of each tree."""
    trees = [search.search() for _ in seeds]
    asked = {number: next(tree) for number, tree in enumerate(trees)}
    paths: dict[int, list[Node]] = {}
    while asked:
        steps = _valued(sampler(asked, seeds), values)
        for number in list(asked):
            try:
                asked[number] = trees[number].send(steps[number])
            except StopIteration as stop:
                paths[number] = stop.value
                del asked[number]
    return paths


def _valued(steps: Mapping[int, Sequence[Step]], values: Values) -> dict[int, list[Step]]:
    """The steps with their confidence and outcome, asked for at once."""
    flat = [(number, step) for number, own in steps.items() for step in own]
    found: dict[int, list[Step]] = {number: [] for number in steps}
    for (number, step), (confidence, outcome) in zip(flat, values(flat), strict=True):
        found[number].append(replace(step, confidence=confidence, outcome=outcome))
    return found


def _line(pair: StepPair) -> dict[str, Any]:
    sides = (pair.chosen, pair.rejected)
    texts = {"chosen": pair.chosen.text, "rejected": pair.rejected.text}
    return {"depth": pair.depth, **texts, "ends": [side.ended for side in sides], "visits": pair.visits, "quality": pair.quality}
