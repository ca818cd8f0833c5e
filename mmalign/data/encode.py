"""Text and images to token ids: a prompt once, with the responses that follow it.

A conversation is rendered and tokenised as a whole, as ``processor.apply_chat_template(tokenize=True)`` does it, and answers are found by
their characters. Tokens are never made turn by turn: at a seam, many tokenizers write a space or a begin token of their own.

Shape legend: P = prefix tokens (image tokens expanded), R = tokens of one response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Ovis2Processor, PaliGemmaProcessor

from mmalign.data.images import digest_images
from mmalign.data.messages import Message, text_of
from mmalign.data.rows import ChatRow, ItemsRow, ListRow, PairRow
from mmalign.data.templates import AnswerEnd, RenderedChat, Span, given_text, render, render_answers, replace_text
from mmalign.data.token_texts import find_items
from mmalign.errors import UserError

# "labels": PaliGemma's processor adds them; they are made here.
_TEXT_KEYS = frozenset({"input_ids", "attention_mask", "labels", "offset_mapping", "text_replacement_offsets"})


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
    response_types: list[dict[str, list[int]]] = field(default_factory=list)
    """The same as ``token_types`` of each response, each (R,)."""
    scored_prefix: list[bool] = field(default_factory=list)
    """(P,) the prefix's own tokens that count too, with the first response; empty: none do."""
    items: list[list[int]] = field(default_factory=list)
    """(R,) for each response: the number of the item that each token belongs to, -1 where none; empty: nobody asked."""
    image_digest: str = ""
    """Of the decoded images, by which caches know them; see ``digest_images``."""
    pictures: bool = False
    """Whether the responses are pictures: ids of ``models/picture_tokens.py``."""

    @property
    def num_tokens(self) -> int:
        """Prefix and all responses."""
        return len(self.prefix_ids) + sum(map(len, self.responses))

    def only(self, number: int) -> Self:
        """The same prompt with one of its responses."""
        one = slice(number, number + 1)
        return replace(self, responses=self.responses[one], scored=self.scored[one], response_types=self.response_types[one])

    def reverse_responses(self) -> Self:
        """The same prompt with its responses in the opposite order."""
        return replace(self, responses=self.responses[::-1], scored=self.scored[::-1], response_types=self.response_types[::-1])


@dataclass(frozen=True)
class _Tokens:
    """One text with its images as the processor reads them."""

    text: str
    ids: list[int]
    stops: np.ndarray
    """Where each token ends in the text with its images expanded."""
    types: dict[str, list[int]]
    places: list[tuple[Span, str]]
    """Where images stand in the text, and what is written there instead."""
    images: dict[str, Tensor]

    @property
    def placeholder(self) -> str:
        """What the template writes for an image."""
        start, end = self.places[0][0]
        return self.text[start:end]

    def move(self, place: int) -> int:
        """From a place in the text to that in the text with its images expanded."""
        return place + sum(len(written) - (end - start) for (start, end), written in self.places if end <= place)

    def scored(self, answers: Sequence[Span]) -> list[bool]:
        """The tokens that end inside an answer: a token that reaches from the prompt into it is the answer's."""
        scored = np.zeros(len(self.ids), dtype=bool)
        for start, end in answers:
            scored |= (self.stops > self.move(start)) & (self.stops <= self.move(end))
        return scored.tolist()

    def told(self) -> list[bool]:
        """The tokens of text that something stands before: what a language model predicts."""
        images = self.scored([span for span, _ in self.places])
        return [number > 0 and not image for number, image in enumerate(images)]


def encode_row(processor: Any, row: PairRow | ListRow, *, answer_end: AnswerEnd = "token", max_length: int | None = None) -> EncodedPrompt:
    """Tokenise a pair, chosen response first, or a list: see ``encode_responses``.

    Raises:
        ValueError: As there, and if the template makes one text of two responses that were not sampled.
    """
    responses = [row.chosen, row.rejected] if isinstance(row, PairRow) else row.responses
    encoded = encode_responses(
        processor,
        images=row.images,
        prompt=row.prompt,
        responses=responses,
        ends=row.ends if isinstance(row, PairRow) else [row.ends] * len(responses),
        answer_end=answer_end,
        max_length=max_length,
    )
    if not (isinstance(row, ListRow) and row.sampled):
        refuse_same_responses(encoded)
    return encoded


def encode_items(processor: Any, row: ItemsRow, *, answer_end: AnswerEnd = "token", max_length: int | None = None) -> EncodedPrompt:
    """Tokenise a response with its items.

    Raises:
        ValueError: As ``encode_responses``, and if an item's tokens can't be told.
    """
    encoded = encode_responses(
        processor,
        images=row.images,
        prompt=row.prompt,
        responses=[row.response],
        ends=[row.ends],
        answer_end=answer_end,
        max_length=max_length,
    )
    return replace(encoded, items=[find_items(processor.tokenizer, encoded.responses[0], row.response, row.items)])


def refuse_same_responses(encoded: EncodedPrompt, *, first: int | None = None) -> None:
    """Refuse responses, or the first few, that the template made one text of.

    Raises:
        ValueError: If there are such.
    """
    responses = [tuple(ids) for ids in encoded.responses[:first]]
    if len(set(responses)) < len(responses):
        raise UserError("two responses are the same text once the chat template has trimmed them")


def encode_responses(
    processor: Any,
    *,
    images: Sequence[Image.Image],
    prompt: Sequence[Message],
    responses: Sequence[str],
    ends: Sequence[bool] | None = None,
    answer_end: AnswerEnd = "token",
    max_length: int | None = None,
) -> EncodedPrompt:
    """Tokenise one prompt and its responses with a stock processor and its chat template.

    Args:
        processor: A transformers processor with a chat template.
        images: The prompt's images, in the order of their placeholders.
        prompt: The turns before the response. Ends it with an assistant's words, the responses continue them.
        responses: Response texts.
        ends: For each response, whether it ends the assistant's turn; None: all do. One that does not has no end-of-turn token.
        answer_end: What to do where the template writes no end behind an answer.
        max_length: Longest allowed prefix + response; image tokens count.

    Returns:
        The encoded prompt. Every response token is scored.

    Raises:
        ValueError: If a response is longer than allowed, or the processor refuses the row.
    """
    begun = text_of(prompt[-1]) if prompt[-1]["role"] == "assistant" else ""
    before = list(prompt[:-1] if begun else prompt)
    texts = []
    for response, closes in zip(responses, ends or [True] * len(responses), strict=True):
        turn = replace_text(Message(role="assistant", content=""), begun + response)
        texts.append(render_answers(processor, [*before, turn], [len(before)], begun=begun, ends=closes, end=answer_end))
    check_text(processor, [*prompt, *(replace_text(Message(role="assistant", content=""), response) for response in responses)])
    if isinstance(processor, PaliGemmaProcessor):
        prompt_text = render(processor, before, add_generation_prompt=True)
        return check_lengths(_encode_pali_gemma(processor, prompt_text, texts, images), max_length)
    first = _tokenize(processor, texts[0].text, images)
    rows = [first, *(_tokenize_again(processor, chat.text, first) for chat in texts[1:])]
    flags = [row.scored(chat.answers) for row, chat in zip(rows, texts, strict=True)]
    start = min(_shared_length([row.ids for row in rows]), *(flag.index(True) if True in flag else len(flag) for flag in flags))
    return check_lengths(_cut(rows, flags, start, images), max_length)


def encode_chat(
    processor: Any, row: ChatRow, *, answer_end: AnswerEnd = "token", max_length: int | None = None, every_token: bool = False
) -> EncodedPrompt:
    """Tokenise a conversation: the first prompt is the prefix, all after it is one response.

    Only assistant turns are scored; the user turns between them, and their images, are context. With ``every_token`` all text is scored,
    the prompt's too (``scored_prefix``); the tokens of images are not.

    Raises:
        ValueError: As ``encode_responses``.
    """
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    chat = render_answers(processor, row.messages, answers, end=answer_end)
    check_text(processor, row.messages)
    if isinstance(processor, PaliGemmaProcessor):
        if every_token:
            raise UserError("PaliGemma's prompt is read in both directions, so that no token of it is predicted; score responses alone")
        prompt_text = render(processor, row.messages[: answers[0]], add_generation_prompt=True)
        return check_lengths(_encode_pali_gemma(processor, prompt_text, [chat], row.images), max_length)
    tokens = _tokenize(processor, chat.text, row.images)
    scored = tokens.scored(chat.answers)
    start = scored.index(True) if True in scored else len(scored)
    encoded = check_lengths(_cut([tokens], [scored], start, row.images), max_length)
    told = tokens.told()
    return replace(encoded, scored=[told[start:]], scored_prefix=told[:start]) if every_token else encoded


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
        ValueError: If an image stands behind the first word that differs, or the processor refuses a prompt.
    """
    for prompt in prompts:
        check_text(processor, prompt)
    texts = [render(processor, prompt, add_generation_prompt=True) for prompt in prompts]
    first = _tokenize(processor, texts[0], images)
    rewrites = isinstance(processor, PaliGemmaProcessor)
    rows = [first, *(_tokenize(processor, text, images) if rewrites else _tokenize_again(processor, text, first) for text in texts[1:])]
    start = _shared_length([row.ids for row in rows])
    if any(first.types.get("mm_token_type_ids", [])[start:]):
        raise UserError("an image stands behind the first word that differs: these questions can't share their beginning")
    return _cut(rows, [[False] * len(row.ids) for row in rows], start, images)


def answer_type(processor: Any) -> int:
    """Token type of an answer's tokens: PaliGemma marks what is read from left to right, others mark images alone."""
    return int(isinstance(processor, PaliGemmaProcessor))


def batch_prompts(processor: Any, prompts: Sequence[Sequence[Message]], images: Sequence[Sequence[Image.Image]] | None = None) -> Any:
    """Tokenise several prompts for stock ``generate``, padded on the left.

    Args:
        processor: A transformers processor, or the tokenizer of a text model.
        prompts: The turns of each.
        images: Those of each prompt; None for text alone.
    """
    texts = [render(processor, prompt, add_generation_prompt=True) for prompt in prompts]
    given = {} if images is None else {"images": [list(row) for row in images]}
    texts = [given_text(processor, text) for text in texts]
    return processor(text=texts, **given, return_tensors="pt", padding=True, padding_side="left", **text_options(processor, texts[0]))


def text_options(processor: Any, text: str) -> dict[str, bool]:
    """How a rendered text is tokenised, as ``apply_chat_template`` does it: no begin token where the template has written one.

    A tokenizer alone adds none at all.
    """
    if not hasattr(processor, "tokenizer"):
        return {"add_special_tokens": False}
    begin = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if begin is not None and text.startswith(begin) else {}


def _tokenize(processor: Any, text: str, images: Sequence[Image.Image]) -> _Tokens:
    _check_unicode(text)
    options = {"return_tensors": "pt", "return_offsets_mapping": True, "return_text_replacement_offsets": True}
    try:
        given = {"text": [given_text(processor, text)], "images": [list(images)] if images else None}
        out = processor(**given, **options, **text_options(processor, text))
    except (ValueError, StopIteration) as error:
        raise UserError(f"{type(processor).__name__} refuses the row: {error or 'more image placeholders than images'}") from error
    length = out["input_ids"].shape[1]
    rest = {key: value for key, value in out.items() if key not in _TEXT_KEYS}
    types = {key: value[0].tolist() for key, value in rest.items() if key.endswith("token_type_ids") and value.shape == (1, length)}
    found = out["text_replacement_offsets"][0] if images else []
    return _Tokens(
        text=text,
        ids=out["input_ids"][0].tolist(),
        stops=out["offset_mapping"][0, :, 1].numpy(),
        types=types,
        places=[(tuple(place["span"]), place["replacement"]) for place in found],
        images={key: torch.as_tensor(value) for key, value in rest.items() if key not in types},
    )


def _tokenize_again(processor: Any, text: str, first: _Tokens) -> _Tokens:
    """Tokenise another text about the same images, which the processor has read already; behind them all is of type text."""
    expanded, places, at = "", [], 0
    for _, written in first.places:
        start = text.find(first.placeholder, at)
        if start < 0:
            raise UserError(f"the chat template writes fewer than {len(first.places)} images")
        end = start + len(first.placeholder)
        expanded += text[at:start] + written
        places.append(((start, end), written))
        at = end
    out = _tokenize_text(processor, expanded + text[at:], **text_options(processor, text))
    ids = out["input_ids"]
    types = {key: [*_until_last_image(values), *[0] * len(ids)][: len(ids)] for key, values in first.types.items()}
    return replace(first, text=text, ids=ids, stops=_stops(out), types=types, places=places)


def _tokenize_text(processor: Any, text: str, **options: bool) -> Any:
    _check_unicode(text)
    try:
        return processor.tokenizer(text, return_offsets_mapping=True, **options)
    except ValueError as error:
        raise UserError(f"{type(processor.tokenizer).__name__} refuses the text: {error}") from error


def _check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair, which Python's text can hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds half of a surrogate pair, {error.object[error.start : error.end]!r}: no file can hold it"
        ) from error


def _stops(out: Any) -> np.ndarray:
    return np.array([stop for _, stop in out["offset_mapping"]], dtype=np.int64)


def _until_last_image(types: Sequence[int]) -> Sequence[int]:
    return types[: max((i for i, value in enumerate(types) if value), default=-1) + 1]


def _cut(rows: Sequence[_Tokens], flags: Sequence[list[bool]], start: int, images: Sequence[Image.Image]) -> EncodedPrompt:
    """The rows' common beginning and what is left of each."""
    return EncodedPrompt(
        prefix_ids=rows[0].ids[:start],
        responses=[row.ids[start:] for row in rows],
        scored=[flag[start:] for flag in flags],
        token_types={key: values[:start] for key, values in rows[0].types.items()},
        images=rows[0].images,
        num_images=len(images),
        image_digest=digest_images(images),
        response_types=[{key: values[start:] for key, values in row.types.items()} for row in rows],
    )


def _encode_pali_gemma(processor: Any, prompt_text: str, chats: Sequence[RenderedChat], images: Sequence[Image.Image]) -> EncodedPrompt:
    """PaliGemma's own form: images, begin token, prompt and a line break, which see each other; then the answer, a text of its own.

    Its processor takes the answer as ``suffix`` and ends it with the end token; token type 1 marks what is read from left to right.
    """
    if not all(chat.text.startswith(prompt_text) for chat in chats):
        raise UserError("the chat template renders the prompt differently once it is answered")
    if any(processor.image_token in chat.text[len(prompt_text) :] for chat in chats):
        raise UserError("an image stands behind the first answer; PaliGemma reads images of the first prompt alone")
    prefix = _tokenize(processor, prompt_text, images)
    rows, flags = [], []
    for chat in chats:
        suffix = chat.text[len(prompt_text) :]
        out = _tokenize_text(processor, suffix, add_special_tokens=False)
        answers = [(start - len(prompt_text), end - len(prompt_text)) for start, end in chat.answers]
        alone = _Tokens(suffix, out["input_ids"], _stops(out), {}, [], {})
        types = {key: [*values, *[1] * len(alone.ids)] for key, values in prefix.types.items()}
        rows.append(replace(prefix, ids=[*prefix.ids, *alone.ids], types=types))
        flags.append([*[False] * len(prefix.ids), *alone.scored(answers)])
    return _cut(rows, flags, len(prefix.ids), images)


def image_token_ids(processor: Any) -> list[int]:
    """List the tokens that stand for images, and for video and sound: a model takes them for the place of one."""
    given = [number for kind in ("image", "video", "audio") for number in getattr(processor, f"{kind}_token_ids", None) or []]
    # Ovis-2's processor does not name the token that it writes for the place that it names.
    written = ["<IMG_ATOM>"] if isinstance(processor, Ovis2Processor) else []
    named = processor.tokenizer.convert_tokens_to_ids([*processor.all_special_multimodal_tokens, *written])
    return sorted({number for number in (*given, *named) if number is not None})


def check_text(processor: Any, messages: Sequence[Message]) -> None:
    """Refuse words that the processor would take for the place of an image."""
    tokens = processor.tokenizer.convert_ids_to_tokens(image_token_ids(processor))
    for message in messages:
        found = next((token for token in sorted(tokens) if token in text_of(message)), None)
        if found:
            raise UserError(f"the text of the {message['role']} holds {found}, which {type(processor).__name__} reads as an image's place")


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; each keeps one of its own."""
    length = min(map(len, rows)) - 1
    columns = np.array([row[:length] for row in rows])
    differing = np.flatnonzero((columns != columns[0]).any(0))
    return int(differing[0]) if len(differing) else length


def check_lengths(encoded: EncodedPrompt, max_length: int | None) -> EncodedPrompt:
    """Refuse responses without a scored token, and rows longer than allowed."""
    for response, scored in zip(encoded.responses, encoded.scored, strict=True):
        if not any(scored):
            raise UserError("a response has no token to score")
        length = len(encoded.prefix_ids) + len(response)
        if max_length is not None and length > max_length:
            raise UserError(f"prompt and response take {length} tokens (images included), more than max_length {max_length}")
    return encoded
