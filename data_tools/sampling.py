"""Questions about images, and responses that a model samples to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data_tools.response_scores import Sampled, Scorer
from mmalign.data.encode import batch_prompts
from mmalign.data.images import SUFFIXES, load_image
from mmalign.data.rows import Message
from mmalign.engine.generation import continue_rows
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import hash_file

Source = tuple[list[Sampled], Path, Mapping[str, str] | None, dict[str, str]]


def load_source(source: Path, *, prompts: Sequence[str], image_root: Path | None) -> Source:
    """Read what to ask.

    Returns:
        Items without responses, the folder of their images, the word table where the truth is known, and the hashes of the files.

    Raises:
        ValueError: If there is nothing to ask, or the images' folder is not known.
    """
    if (source / "chair.jsonl").is_file():
        chair = load_chair(source)
        items = [Sampled(question, chair.truths[question.id], None, []) for question in chair.questions()]
        return items, image_root or source / "images", chair.words, {path.name: hash_file(path) for path in chair.files}
    if source.is_dir():
        if not prompts:
            raise UserError(f"{source} is a folder of images; say what to ask about each with --prompts")
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"no images in {source}")
        names = [path.relative_to(source).as_posix() for path in paths]
        questions = [Question(f"{name}/{i}", name, prompt) for name in names for i, prompt in enumerate(prompts)]
        hashes = {name: hash_file(path) for name, path in zip(names, paths, strict=True)}
        return [Sampled(question, None, None, []) for question in questions], source, None, hashes
    if image_root is None:
        raise UserError(f"name the folder that the images of {source} lie in with --image-root")
    rows = read_jsonl(source)
    if not rows:
        raise UserError(f"{source} has no questions")
    return [_item(row, number, source) for number, row in enumerate(rows, start=1)], image_root, None, {source.name: hash_file(source)}


def _item(row: Mapping[str, Any], number: int, source: Path) -> Sampled:
    if not isinstance(row.get("image"), str) or not isinstance(row.get("prompt"), str):
        raise UserError(f"{source}, row {number} has keys {', '.join(row)}; expected image and prompt (text), and perhaps id, reference")
    return Sampled(Question(str(row.get("id", number)), row["image"], row["prompt"]), None, row.get("reference"), [])


def sample_chunk(
    model: Any, processor: Any, items: Sequence[Sampled], scorer: Scorer, *, image_root: Path, folder: Path, seed: int, **sampling: Any
) -> list[dict[str, Any]]:
    """Sample and score the responses of a chunk.

    Args:
        model: A multimodal LLM in eval mode.
        processor: Its processor.
        items: The questions.
        scorer: Scores the responses.
        image_root: Folder of the images.
        folder: The chunk's own, for the scorer's work in progress.
        seed: Of sampling.
        **sampling: As ``sample_responses`` takes them.

    Returns:
        For each item ``responses`` and ``scores``, or the ``reason`` why its image can't be used.
    """
    images: dict[int, Image.Image] = {}
    lines: dict[int, dict[str, Any]] = {}
    for i, item in enumerate(items):
        try:
            images[i] = load_image(item.question.image, root=image_root)
        except UserError as error:
            lines[i] = {"reason": str(error)}
    if images:
        prompts = [items[i].question.prompt for i in images]
        answers = sample_responses(model, processor, prompts, list(images.values()), seed=seed, **sampling)
        good = [Sampled(items[i].question, items[i].truth, items[i].reference, a) for i, a in zip(images, answers, strict=True)]
        for i, item, scores in zip(images, good, scorer(good, folder=folder), strict=True):
            lines[i] = {"responses": item.responses, "scores": scores}
    return [lines[i] for i in range(len(items))]


def sample_responses(
    model: Any,
    processor: Any,
    prompts: Sequence[str],
    images: Sequence[Image.Image],
    *,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[str]]:
    """Sample responses to each prompt about its image, with stock ``generate``; the caller's random state is left as it was."""
    parts = [[{"type": "image"}, {"type": "text", "text": prompt}] for prompt in prompts]
    turns = [[Message(role="user", content=content)] for content in parts]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        new = continue_rows(
            model,
            batch_prompts(processor, turns, [[image] for image in images]),
            do_sample=True,
            num_return_sequences=samples,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            num_beams=1,
            max_new_tokens=max_new_tokens,
        )
    decoded = [processor.decode(ids, skip_special_tokens=True).strip() for ids in new]
    return [decoded[start : start + samples] for start in range(0, len(decoded), samples)]
