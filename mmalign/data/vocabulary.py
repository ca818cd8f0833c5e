"""Which token ids mean the same to two models: the part of the vocabulary that a divergence may compare."""

import copy
from typing import Any

import torch
from PIL import Image

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.messages import Message
from mmalign.data.rows import ChatRow
from mmalign.errors import UserError


def count_shared_tokens(student: Any, teacher: Any, *, student_size: int, teacher_size: int) -> int:
    """Count the ids, from 0 on, that stand for the same token in both tokenizers.

    Behind them either model may have what no response holds: padding rows of its head, and special tokens such as image
    placeholders.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's.
        student_size: Rows of the student's output head.
        teacher_size: Rows of the teacher's.

    Returns:
        The size to which both heads can be cut.

    Raises:
        ValueError: If an ordinary token stands behind the shared part, with both sizes and the first id that differs.
    """
    names = [_names(tokenizer, size) for tokenizer, size in ((student, student_size), (teacher, teacher_size))]
    size = min(student_size, teacher_size)
    # An id that neither tokenizer knows is a padding row of both.
    shared = next((i for i in range(size) if names[0].get(i) != names[1].get(i)), size)
    for mine, tokenizer in zip(names, (student, teacher), strict=True):
        special = set(tokenizer.added_tokens_decoder)
        ordinary = [i for i in mine if i >= shared and i not in special]
        if ordinary:
            first = shared if shared < size else min(ordinary)
            raise UserError(
                f"student and teacher don't share their tokens: of {student_size:,} and {teacher_size:,} rows of their output heads the "
                f"first {shared:,} agree, and id {first} is {names[0].get(first)!r} to the student, {names[1].get(first)!r} to the "
                "teacher. Distil from a model with the same tokenizer, or compare sorted probabilities (--divergence uld)"
            )
    return shared


def _names(tokenizer: Any, size: int) -> dict[int, str]:
    """Tokens by id, those beyond the head left out: no response can be made of them."""
    return {i: name for name, i in tokenizer.get_vocab().items() if i < size}


def check_same_tokens(student: list[list[int]], teacher: list[list[int]], *, vocabulary: int, what: str = "answer") -> None:
    """Check that parts of a conversation are the same tokens to both, and shared ones.

    Raises:
        ValueError: With the first place that differs, or the first token that is not shared.
    """
    for mine, theirs in zip(student, teacher, strict=True):
        if mine != theirs:
            at = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), min(len(mine), len(theirs)))
            ids = [tokens[at] if at < len(tokens) else "none" for tokens in (mine, theirs)]
            raise UserError(
                f"token {at} of the {what} is {ids[0]} to the student and {ids[1]} to the teacher: their chat templates differ; give both "
                "the same one (mmalign compose --chat-template, or the file chat_template.jinja beside the weights)"
            )
        if max(mine, default=0) >= vocabulary:
            raise UserError(f"the {what} holds token {max(mine)}, and student and teacher share only the first {vocabulary:,}")


def same_text(student: Any, teacher: Any) -> bool:
    """Tell whether two processors turn every conversation into the same tokens, but for those of images."""
    mine, theirs = (getattr(processor.tokenizer, "backend_tokenizer", None) for processor in (student, teacher))
    if mine is None or theirs is None:
        return False
    return bool(student.chat_template == teacher.chat_template and mine.to_str() == theirs.to_str())


def same_inputs(student: Any, teacher: Any) -> bool:
    """Tell whether two processors make the very same inputs, pixels and image tokens included."""
    return type(student) is type(teacher) and same_text(student, teacher) and student.to_dict() == teacher.to_dict()


def check_same_reading(policy: Any, reference: Any, *, source: str) -> None:
    """Check that two processors make the same tokens and pixels of a conversation: a reference is run on the policy's inputs.

    Args:
        policy: The policy's processor, whose chat template both are given.
        reference: The reference's.
        source: Where the reference comes from.

    Raises:
        ValueError: With what differs.
    """
    if same_inputs(policy, reference):
        return
    reference = copy.copy(reference)
    reference.chat_template = policy.chat_template
    asked = [{"type": "image"}, {"type": "text", "text": "What is in this picture? Name 3 things, and say where."}]
    said = [{"type": "text", "text": "A red square, left of two dogs; nothing else."}]
    chat = [Message(role="user", content=asked), Message(role="assistant", content=said)]
    row = ChatRow("", [Image.merge("RGB", [Image.radial_gradient("L")] * 3).resize((96, 80))], chat)
    if other := _compare(encode_chat(policy, row), reference, row):
        raise UserError(
            f"the reference {source} makes other {other} of a conversation than the policy, whose inputs it is given; name one with the "
            "policy's tokenizer and image processor, or learn from it with mmalign train mimic"
        )


def _compare(mine: EncodedPrompt, reference: Any, row: ChatRow) -> str | None:
    """Name what a processor makes otherwise."""
    try:
        theirs = encode_chat(reference, row)
    except UserError:
        # Such as a placeholder of images that is not its own.
        return "tokens"
    if (mine.prefix_ids, mine.responses) != (theirs.prefix_ids, theirs.responses):
        return "tokens"
    same = mine.images.keys() == theirs.images.keys() and all(torch.equal(value, theirs.images[key]) for key, value in mine.images.items())
    return None if same else "images"
