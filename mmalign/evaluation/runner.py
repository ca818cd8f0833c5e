"""Ask a model: each image is encoded once for all the questions about it, answers are saved as they come.

Shape legend: B = questions in a batch, N = longest prompt.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmalign.data.encode import render
from mmalign.data.images import load_image
from mmalign.data.rejects import Rejects
from mmalign.data.rows import Message
from mmalign.engine.vision import repeat_image_features
from mmalign.evaluation.answers import Question, read_jsonl


def generate_answers(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    *,
    image_root: Path,
    out: Path,
    rejects: Rejects,
    max_new_tokens: int = 64,
    batch_size: int = 64,
) -> Path:
    """Answer questions greedily and save them as JSON lines in the questions' order.

    Answers are appended to ``out`` with ``.partial`` behind its name as they come; a stopped run goes on from there.

    Args:
        model: A multimodal LLM in eval mode.
        processor: Its processor.
        questions: Questions with unique ids.
        image_root: Folder of the images.
        out: JSONL file of the answers.
        rejects: Where questions about broken images go.
        max_new_tokens: Longest answer.
        batch_size: Questions at once.

    Returns:
        ``out``.

    Raises:
        ValueError: If too many images are broken.
    """
    partial = out.with_name(out.name + ".partial")
    answered = {row["id"]: row for row in _complete_rows(partial)}
    with partial.open("a", encoding="utf-8") as file, tqdm(total=len(questions), desc="answering", unit="question", leave=False) as bar:
        for batch in _batches(questions, batch_size):
            todo = [question for question in batch if question.id not in answered]
            good, images = _load_images(todo, image_root, rejects)
            if good:
                responses = _answer(model, processor, good, images, max_new_tokens)
                for question, response in zip(good, responses, strict=True):
                    answered[question.id] = {**question._asdict(), "response": response}
                    file.write(json.dumps(answered[question.id]) + "\n")
                file.flush()
            bar.update(len(batch))
    rejects.check(len(questions), final=True)
    rows = [answered[question.id] for question in questions if question.id in answered]
    ready = out.with_name(out.name + ".ready")
    ready.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ready.rename(out)
    partial.unlink()
    return out


def _complete_rows(partial: Path) -> list[dict[str, Any]]:
    """Rows of a stopped run. Its last line may have been cut off: it is dropped from the file too."""
    if not partial.is_file():
        return []
    text = partial.read_text(encoding="utf-8")
    partial.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return read_jsonl(partial)


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Questions on one image together, and about the same length of question in a batch."""
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    groups = sorted(by_image.values(), key=lambda group: (max(len(q.prompt) for q in group), group[0].image))
    ordered = list(itertools.chain(*groups))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _load_images(questions: Sequence[Question], root: Path, rejects: Rejects) -> tuple[list[Question], dict[str, Any]]:
    images: dict[str, Any] = {}
    good = []
    for question in questions:
        try:
            if question.image not in images:
                images[question.image] = load_image(question.image, root=root)
            good.append(question)
        except ValueError as error:
            rejects.add(question.id, str(error))
    return good, images


@torch.no_grad()
def _answer(model: Any, processor: Any, questions: Sequence[Question], images: dict[str, Any], max_new_tokens: int) -> list[str]:
    prompts = [_prompt(processor, question.prompt) for question in questions]
    # The processor sees the image of every question, so that it expands the placeholders; pixels are kept once an image.
    encoded = processor(
        text=prompts, images=[[images[q.image]] for q in questions], return_tensors="pt", padding=True, padding_side="left"
    ).to(model.device)
    names = [question.image for question in questions]
    first = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    repeats = torch.tensor([*first[1:], len(names)]) - torch.tensor(first)
    pixels = {"pixel_values": encoded.pop("pixel_values")[first].to(model.dtype)}
    features = repeat_image_features(model, pixels, repeats)
    length = encoded["input_ids"].shape[1]
    out = model.generate(**encoded, **features, max_new_tokens=max_new_tokens, do_sample=False)
    return [text.strip() for text in processor.batch_decode(out[:, length:], skip_special_tokens=True)]


def _prompt(processor: Any, text: str) -> str:
    message = Message(role="user", content=[{"type": "image"}, {"type": "text", "text": text}])
    return render(processor, [message], add_generation_prompt=True)
