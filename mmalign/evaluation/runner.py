"""Ask a model: image and shared words run once for all the questions about an image, answers are saved as they come."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mmalign.data.encode import EncodedPrompt, encode_questions
from mmalign.data.images import load_image
from mmalign.data.rejects import Rejects
from mmalign.data.rows import Message
from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Greedy
from mmalign.engine.generation import generate
from mmalign.engine.logps import unwrap
from mmalign.engine.prefix import probe_prefix
from mmalign.engine.probe import RowChoice
from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, Question, strip_own
from mmalign.evaluation.reasoning import decode_answer
from mmalign.evaluation.rows import drop_cut_line, read_jsonl
from mmalign.files import check_same, write_whole, writing


def generate_answers(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    *,
    image_root: Path,
    out: Path,
    rejects: Rejects,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    beams: Beams | None = None,
    source: str = "",
    keep: bool = False,
) -> list[Answer]:
    """Answer questions, greedily or with beams, and save them as JSON lines in the questions' order.

    A line says in ``ended`` whether the answer ended by itself, or at its longest length. Special tokens that mark reasoning are kept, and
    where the template opens the reasoning, so does the answer.

    Answers are appended to ``out`` with ``.partial`` behind its name as they come; a stopped run is resumed, batch by batch, so
    that it ends with the same bytes. Its first line says what the answers come from.

    Args:
        model: A multimodal LLM in eval mode.
        processor: Its processor.
        questions: Questions with unique ids.
        image_root: Folder of the images.
        out: JSONL file of the answers.
        rejects: Where questions about broken images go, and those that the processor refuses.
        max_new_tokens: Longest answer, instead of what each question says.
        batch_size: Rows at once: questions, or the beams of fewer questions.
        beams: How to search; None is greedy.
        source: What the model is, such as the fingerprint of its weights: unfinished answers of another one are refused.
        keep: Whether the unfinished answers stay, for a caller that may still fail: called again, it asks nothing twice.

    Returns:
        The answers without their reasoning, in that order.

    Raises:
        ValueError: If too many images are broken, or unfinished answers come from something else.
    """
    if max_new_tokens is not None:
        questions = [question._replace(max_new_tokens=max_new_tokens) for question in questions]
    model = unwrap(model)
    partial = find_unfinished(out)
    lengths = sorted({question.max_new_tokens for question in questions})
    origin = {"source": source, "max_new_tokens": lengths, "batch_size": batch_size, "questions": _digest(questions)}
    if beams is not None:
        origin |= {"beams": beams.beams, "length_penalty": beams.length_penalty}
    answered = resume_answers(partial, origin)
    choice: RowChoice | None = None
    with partial.open("a", encoding="utf-8") as file, tqdm(total=len(questions), desc="answering", unit="question", leave=False) as bar:
        for batch in batches(questions, max(1, batch_size // (beams.beams if beams else 1))):
            good, images = _load_images(batch, image_root, rejects)
            if choice is not None and all(question.id in answered for question in good):
                bar.update(len(batch))
                continue
            encoded = encode_batch(processor, good, images, rejects=rejects)
            if encoded.prompts and choice is None:
                # A run that is resumed asks about the same questions as one that was not stopped.
                choice = choose_rows(model, processor, encoded)
                if not choice.shared:
                    bar.write(choice.reason)
            # A batch that a stop cut off is answered again as a whole: in another batch an answer could differ in its last bits.
            if choice is not None and any(question.id not in answered for question in encoded.questions):
                rows = answer_batch(model, processor, encoded, beams=beams, shared=choice.shared)
                with writing(partial):
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
                    file.flush()
                answered |= {row["id"]: row for row in rows}
            bar.update(len(batch))
    rejects.check(len(questions), final=True)
    rows = [answered[question.id] for question in questions if question.id in answered]
    write_whole(out, "".join(json.dumps(row) + "\n" for row in rows))
    if not keep:
        partial.unlink()
    return strip_own(rows)


def find_unfinished(out: Path) -> Path:
    """Where answers are appended until they are finished."""
    return out.with_name(out.name + ".partial")


def resume_answers(partial: Path, origin: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a stopped run's answers by id; begin the file where there is none."""
    if partial.is_file():
        with partial.open("r+b") as file:
            drop_cut_line(file)
    if not partial.is_file() or partial.stat().st_size == 0:
        partial.write_text(json.dumps(origin) + "\n", encoding="utf-8")
        return {}
    held, *answers = read_jsonl(partial)
    next_step = "finish that run, remove the file, or choose another --out"
    check_same(partial, held, origin, what="unfinished answers of another run", next_step=next_step)
    return {row["id"]: row for row in answers}


def _digest(questions: Sequence[Question]) -> str:
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16]


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Questions on one image together, about the same length of question in a batch, and one longest answer."""
    for length in sorted({question.max_new_tokens for question in questions}):
        by_image: dict[str, list[Question]] = {}
        for question in questions:
            if question.max_new_tokens == length:
                by_image.setdefault(_group(question), []).append(question)
        groups = sorted(by_image.values(), key=lambda group: (max(len(q.prompt) for q in group), _group(group[0])))
        ordered = list(itertools.chain(*groups))
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]


def _group(question: Question) -> str:
    """Questions on one image are answered together; one without an image stands alone."""
    return f"image {question.image}" if question.image is not None else f"question {question.id}"


def _load_images(questions: Sequence[Question], root: Path, rejects: Rejects) -> tuple[list[Question], dict[str, Any]]:
    images: dict[str, Any] = {}
    good = []
    for question in questions:
        try:
            if question.image is not None and question.image not in images:
                images[question.image] = load_image(question.image, root=root)
            good.append(question)
        except UserError as error:
            rejects.add(question.id, str(error))
    return good, images


class EncodedBatch(NamedTuple):
    """Questions, and a prompt for each image with the questions about it, in the same order."""

    questions: list[Question]
    prompts: list[EncodedPrompt]


def encode_batch(
    processor: Any, questions: Sequence[Question], images: Mapping[str, Any], *, rejects: Rejects | None = None
) -> EncodedBatch:
    """Tokenise a batch, in which questions about one image stand together.

    Args:
        processor: The model's.
        questions: The batch.
        images: Decoded images by name.
        rejects: Where questions go that the processor refuses; without, they are raised.
    """
    encoded = EncodedBatch([], [])
    waiting = [list(group) for _, group in itertools.groupby(questions, key=_group)]
    while waiting:
        about = waiting.pop(0)
        try:
            encoded.prompts.append(_encode(processor, about, images))
            encoded.questions.extend(about)
        except UserError as error:
            if rejects is None:
                raise
            if len(about) == 1:
                rejects.add(about[0].id, str(error))
            else:
                # One of them may be at fault alone.
                waiting[:0] = [[question] for question in about]
    return encoded


def choose_rows(model: Any, processor: Any, encoded: EncodedBatch) -> RowChoice:
    """Ask whether the questions about the first image may share its cache."""
    return probe_prefix(model, encoded.prompts[0], pad_token_id=processor.tokenizer.pad_token_id)


def answer_batch(model: Any, processor: Any, encoded: EncodedBatch, *, beams: Beams | None, shared: bool) -> list[dict[str, Any]]:
    """Answer a batch; returns a row for each question."""
    questions = encoded.questions
    length, pad = questions[0].max_new_tokens, processor.tokenizer.pad_token_id
    answers = generate(model, encoded.prompts, max_new_tokens=length, pad_token_id=pad, decoding=beams or Greedy(), shared=shared)
    prompts = ([*prompt.prefix_ids[-16:], *rest] for prompt in encoded.prompts for rest in prompt.responses)
    return [
        {
            "id": question.id,
            "image": question.image,
            "prompt": question.prompt,
            "response": decode_answer(processor, best.ids, prompt=prompt),
            "ended": best.end is not None,
        }
        for question, prompt, (best,) in zip(questions, prompts, itertools.chain(*answers), strict=True)
    ]


def _encode(processor: Any, about: Sequence[Question], images: Mapping[str, Any]) -> EncodedPrompt:
    shown = [] if about[0].image is None else [images[about[0].image]]
    return encode_questions(processor, images=shown, prompts=[_prompt(question) for question in about])


def _prompt(question: Question) -> list[Message]:
    image = [] if question.image is None else [{"type": "image"}]
    return [Message(role="user", content=[*image, {"type": "text", "text": question.prompt}])]
