"""Ask a model: image and shared words run once for all the questions about an image, answers are saved as they come."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmalign.data.encode import EncodedPrompt, encode_questions
from mmalign.data.images import load_image
from mmalign.data.rejects import Rejects
from mmalign.data.rows import Message
from mmalign.engine.generation import generate_greedy, probe_prefix
from mmalign.engine.logps import unwrap
from mmalign.engine.probe import RowChoice
from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, Question, strip_own
from mmalign.evaluation.reasoning import decode_answer
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import check_same, write_whole


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
    source: str = "",
) -> list[Answer]:
    """Answer questions greedily and save them as JSON lines in the questions' order.

    A line says in ``ended`` whether the answer ended by itself, or at its longest length. Special tokens that mark reasoning are kept, and
    where the template opens the reasoning, so does the answer.

    Answers are appended to ``out`` with ``.partial`` behind its name as they come; a stopped run goes on from there, batch by batch, so
    that it ends with the same bytes. Its first line says what the answers come from.

    Args:
        model: A multimodal LLM in eval mode.
        processor: Its processor.
        questions: Questions with unique ids.
        image_root: Folder of the images.
        out: JSONL file of the answers.
        rejects: Where questions about broken images go.
        max_new_tokens: Longest answer, instead of what each question says.
        batch_size: Questions at once.
        source: What the model is, such as the fingerprint of its weights: unfinished answers of another one are refused.

    Returns:
        The answers without their reasoning, in that order.

    Raises:
        ValueError: If too many images are broken, or unfinished answers come from something else.
    """
    if max_new_tokens is not None:
        questions = [question._replace(max_new_tokens=max_new_tokens) for question in questions]
    partial = out.with_name(out.name + ".partial")
    pad = processor.tokenizer.pad_token_id
    choice: RowChoice | None = None
    lengths = sorted({question.max_new_tokens for question in questions})
    origin = {"source": source, "max_new_tokens": lengths, "batch_size": batch_size, "questions": _digest(questions)}
    answered = resume_answers(partial, origin)
    with partial.open("a", encoding="utf-8") as file, tqdm(total=len(questions), desc="answering", unit="question", leave=False) as bar:
        for batch in _batches(questions, batch_size):
            good, images = _load_images(batch, image_root, rejects)
            # A batch that a stop cut off is answered again as a whole: in another batch an answer could differ in its last bits.
            done = all(question.id in answered for question in good)
            if good and not (done and choice is not None):
                encoded, groups = _encode(processor, good, images)
                if choice is None:
                    choice = probe_prefix(unwrap(model), encoded[0], pad_token_id=pad)
                    if not choice.shared:
                        bar.write(choice.reason)
            if not done and choice is not None:
                length = good[0].max_new_tokens
                answers = generate_greedy(unwrap(model), encoded, max_new_tokens=length, pad_token_id=pad, shared=choice.shared)
                rests = ([*prompt.prefix_ids[-16:], *rest] for prompt in encoded for rest in prompt.responses)
                for question, rest, ids in zip(itertools.chain(*groups), rests, itertools.chain(*answers), strict=True):
                    # The token that ends an answer is not among its ids.
                    row = {"response": decode_answer(processor, ids, prompt=rest), "ended": len(ids) < length}
                    answered[question.id] = {"id": question.id, "image": question.image, "prompt": question.prompt, **row}
                file.write("".join(json.dumps(answered[question.id]) + "\n" for question in good))
                file.flush()
            bar.update(len(batch))
    rejects.check(len(questions), final=True)
    rows = [answered[question.id] for question in questions if question.id in answered]
    write_whole(out, "".join(json.dumps(row) + "\n" for row in rows))
    partial.unlink()
    return strip_own(rows)


def resume_answers(partial: Path, origin: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a stopped run's answers by id; begin the file where there is none."""
    rows = read_unfinished(partial)
    if not rows:
        partial.write_text(json.dumps(origin) + "\n", encoding="utf-8")
        return {}
    held, *answers = rows
    next_step = "finish that run, remove the file, or choose another --out"
    check_same(partial, held, origin, what="unfinished answers of another run", next_step=next_step)
    if any(not isinstance(row.get("id"), str) or not isinstance(row.get("response"), str) for row in answers):
        raise UserError(f"{partial} is damaged: a line has no id and response; remove the file and run again")
    return {row["id"]: row for row in answers}


def read_unfinished(partial: Path) -> list[dict[str, Any]]:
    """Rows of a stopped run. Its last line may have been cut off: it is dropped from the file too."""
    if not partial.is_file():
        return []
    data = partial.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with partial.open("r+b") as file:
            file.truncate(end)
    return read_jsonl(partial)


def _digest(questions: Sequence[Question]) -> str:
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16]


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
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


def _encode(processor: Any, questions: Sequence[Question], images: dict[str, Any]) -> tuple[list[EncodedPrompt], list[list[Question]]]:
    """One prompt an image, with the questions about it; they stand together in a batch."""
    groups = [list(group) for _, group in itertools.groupby(questions, key=_group)]
    encoded = []
    for group in groups:
        shown = [] if group[0].image is None else [images[group[0].image]]
        encoded.append(encode_questions(processor, images=shown, prompts=[_prompt(question) for question in group]))
    return encoded, groups


def _prompt(question: Question) -> list[Message]:
    image = [] if question.image is None else [{"type": "image"}]
    return [Message(role="user", content=[*image, {"type": "text", "text": question.prompt}])]
