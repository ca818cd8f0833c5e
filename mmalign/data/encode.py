"""Text and images to token ids: a prompt once, with the responses that follow it.

Shape legend: P = prefix tokens (image tokens expanded), R = tokens of one response.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from mmalign.data.rows import ChatRow, Message

# "labels": PaliGemma's processor adds them; they are made here.
TEXT_KEYS = frozenset({"input_ids", "attention_mask", "labels"})

# Token type of a response where it isn't 0, that of text: PaliGemma marks by 1 what it attends to causally.
RESPONSE_TOKEN_TYPES = {"PaliGemmaProcessor": 1}


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt with its images, and the responses that continue it."""

    prefix_ids: list[int]
    """(P,) ids of images and prompt."""
    responses: list[list[int]]
    """(R,) ids of each response, its end-of-turn tokens included."""
    scored: list[list[bool]]
    """(R,) for each response: the tokens whose log-probability counts."""
    token_types: dict[str, list[int]]
    """Per-token inputs of the prefix beside ids (``mm_token_type_ids``, ``token_type_ids``), each (P,)."""
    images: dict[str, Tensor]
    """What the image processor returned: ``pixel_values`` and its companions. Empty for text-only prompts."""
    num_images: int = 0
    response_token_type: int = 0
    """What the responses' tokens are in ``token_types``."""

    @property
    def num_tokens(self) -> int:
        """Prefix and all responses."""
        return len(self.prefix_ids) + sum(map(len, self.responses))

    def reverse_responses(self) -> Self:
        """The same prompt with its responses in the opposite order."""
        return replace(self, responses=self.responses[::-1], scored=self.scored[::-1])


def encode_responses(
    processor: Any,
    *,
    images: Sequence[Image.Image],
    prompt: Sequence[Message],
    responses: Sequence[str],
    max_length: int | None = None,
) -> EncodedPrompt:
    """Tokenise one prompt and its responses with a stock processor and its chat template.

    Args:
        processor: A transformers processor with a chat template.
        images: The prompt's images, in the order of their placeholders.
        prompt: The turns before the response.
        responses: Response texts.
        max_length: Longest allowed prefix + response; image tokens count.

    Returns:
        The encoded prompt. Every response token is scored.

    Raises:
        ValueError: If a response is longer than allowed, or the template doesn't continue the prompt.
    """
    prompt_text = render(processor, prompt, add_generation_prompt=True)
    suffixes = [_continuation(processor, prompt, prompt_text, response) for response in responses]
    encoded = _encode_prefix(processor, prompt_text, images)
    ids = [_response_ids(processor, prompt_text, suffix) for suffix in suffixes]
    return _checked(EncodedPrompt(responses=ids, scored=[[True] * len(r) for r in ids], **encoded), max_length)


def encode_chat(processor: Any, row: ChatRow, *, max_length: int | None = None) -> EncodedPrompt:
    """Tokenise a conversation: the first prompt is the prefix, all after it is one response.

    Only assistant turns are scored; the user turns between them are context.

    Raises:
        ValueError: As ``encode_responses``.
    """
    first = next(i for i, message in enumerate(row.messages) if message["role"] == "assistant")
    prompt_text = render(processor, row.messages[:first], add_generation_prompt=True)
    seen, ids, scored = prompt_text, [], []
    for i in range(first, len(row.messages)):
        is_answer = row.messages[i]["role"] == "assistant"
        text = render(processor, row.messages[: i + 1], add_generation_prompt=not is_answer)
        if not text.startswith(seen):
            raise ValueError("the chat template rewrites earlier turns: this conversation can't be trained on turn by turn")
        piece = _text_ids(processor, text[len(seen) :])
        ids += piece
        scored += [is_answer] * len(piece)
        seen = text
    encoded = _encode_prefix(processor, prompt_text, row.images)
    return _checked(EncodedPrompt(responses=[ids], scored=[scored], **encoded), max_length)


def encode_questions(processor: Any, *, images: Sequence[Image.Image], prompts: Sequence[Sequence[Message]]) -> EncodedPrompt:
    """Tokenise several prompts about the same images: what they share, up to the first word that differs, is the prefix.

    Args:
        processor: A transformers processor with a chat template.
        images: The images, in the order of their placeholders.
        prompts: The turns of each prompt.

    Returns:
        The encoded prompt; its ``responses`` are the rest of each question up to where the answer starts, at least one token each.
        The processor sees the images once, unless it rewrites the text behind them.

    Raises:
        ValueError: If an image stands behind the first word that differs.
    """
    texts = [render(processor, prompt, add_generation_prompt=True) for prompt in prompts]
    encoded = _encode_prefix(processor, texts[0], images)
    rows = _expand_all(processor, encoded["prefix_ids"], texts)
    if rows is None:
        rows = [_encode_prefix(processor, text, images)["prefix_ids"] for text in texts]
    common = _shared_length(rows)
    if any(encoded["token_types"].get("mm_token_type_ids", [])[common:]):
        raise ValueError("an image stands behind the first word that differs: these questions can't share their beginning")
    rests = [row[common:] for row in rows]
    types = {key: value[:common] for key, value in encoded["token_types"].items()}
    encoded |= {"prefix_ids": rows[0][:common], "token_types": types, "response_token_type": 0}
    return EncodedPrompt(responses=rests, scored=[[False] * len(rest) for rest in rests], **encoded)


def _expand_all(processor: Any, expanded: list[int], texts: Sequence[str]) -> list[list[int]] | None:
    """Put the first text's expanded beginning before the others' own ends; None where the processor changes the ends too."""
    rows = [_text_ids(processor, text) for text in texts]
    common = _shared_length(rows)
    first_rest = rows[0][common:]
    if expanded[-len(first_rest) :] != first_rest:
        return None
    return [[*expanded[: -len(first_rest)], *row[common:]] for row in rows]


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; each keeps one of its own."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)


def render(processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """Apply the processor's chat template.

    Raises:
        ValueError: If the processor has none.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"{type(processor).__name__} has no chat template; save one beside it as chat_template.jinja (docs/families.md has "
            "PaliGemma's) or recompose the model"
        )
    return processor.apply_chat_template(list(messages), add_generation_prompt=add_generation_prompt, tokenize=False)


def _continuation(processor: Any, prompt: Sequence[Message], prompt_text: str, response: str) -> str:
    # Content in parts, because templates of multimodal models iterate over it.
    turn = Message(role="assistant", content=[{"type": "text", "text": response}])
    full = render(processor, [*prompt, turn], add_generation_prompt=False)
    if not full.startswith(prompt_text):
        raise ValueError("the chat template renders the prompt differently once it is answered; response tokens can't be told apart")
    return full[len(prompt_text) :]


def _encode_prefix(processor: Any, text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    out = processor(text=[text], images=[list(images)] if images else None, return_tensors="pt")
    length = out["input_ids"].shape[1]
    rest = {key: value for key, value in out.items() if key not in TEXT_KEYS}
    token_types = {key: value[0].tolist() for key, value in rest.items() if key.endswith("token_type_ids") and value.shape == (1, length)}
    image_inputs = {key: torch.as_tensor(value) for key, value in rest.items() if key not in token_types}
    return {
        "prefix_ids": out["input_ids"][0].tolist(),
        "token_types": token_types,
        "images": image_inputs,
        "num_images": len(images),
        "response_token_type": RESPONSE_TOKEN_TYPES.get(type(processor).__name__, 0),
    }


def _response_ids(processor: Any, prompt_text: str, suffix: str) -> list[int]:
    """Ids of the response as they follow the prompt, in the text's own segmentation where it leaves the prompt alone."""
    prompt_ids, both = _text_ids(processor, prompt_text), _text_ids(processor, prompt_text + suffix)
    if both[: len(prompt_ids)] == prompt_ids:
        return both[len(prompt_ids) :]
    # A merge reaches over the boundary. At inference the prompt's ids are fixed first, so they are here.
    return _text_ids(processor, suffix)


def _text_ids(processor: Any, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _checked(encoded: EncodedPrompt, max_length: int | None) -> EncodedPrompt:
    for response, scored in zip(encoded.responses, encoded.scored, strict=True):
        if not any(scored):
            raise ValueError("a response has no token to score")
        length = len(encoded.prefix_ids) + len(response)
        if max_length is not None and length > max_length:
            raise ValueError(f"prompt and response take {length} tokens (images included), more than max_length {max_length}")
    return encoded
