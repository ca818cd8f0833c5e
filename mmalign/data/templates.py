"""Chat templates: a conversation to the text that the tokenizer reads, and where in it the answers stand.

Spans are character offsets into the rendered text.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import Emu3Processor, JanusProcessor, Molmo2Processor
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from mmalign.data.messages import Message, text_of
from mmalign.errors import UserError
from mmalign.options.rows import AnswerEnd

Span = tuple[int, int]

# Stands for an answer while the text around it is looked at; private-use letters occur in no template.
_STAND_IN = "\ue000{}\ue001"

_TEXT_ALONE = "it is a text model's; save a multimodal one, which places images, as chat_template.jinja beside the processor"

_IN_TOKENIZER = "; the tokenizer has one (tokenizer_config.json): where that places images, copy it there"


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as the chat template writes it."""

    text: str
    answers: list[Span]
    """What is scored of each answer asked for: from behind the generation prompt to the end of the turn."""


def render(processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """Apply the processor's chat template.

    A conversation that ends with an assistant's words is left open there where a generation prompt is asked for: it is continued.

    Raises:
        ValueError: If the processor has none, or its template refuses the conversation or leaves out its words.
    """
    if not getattr(processor, "chat_template", None):
        own = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
        raise UserError(
            f"{type(processor).__name__} has no chat template; save one beside it as chat_template.jinja (docs/families.md has "
            f"PaliGemma's) or recompose the model{_IN_TOKENIZER if own else ''}"
        )
    begun = add_generation_prompt and messages[-1]["role"] == "assistant"
    text = _apply(processor, messages, add_generation_prompt=add_generation_prompt and not begun, continue_final_message=begun)
    if add_generation_prompt:
        _check_words(text, messages)
    return text


def _check_words(text: str, messages: Sequence[Message]) -> None:
    """Refuse a template that leaves out what is asked, as one does that looks for a part's words under another key."""
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else []
        lost = [part["text"] for part in parts if part["type"] == "text" and part["text"].strip() not in text]
        if lost and message["role"] != "assistant":
            raise UserError(f"the chat template leaves out words of the {message['role']}, or changes them: {lost[0][:80]!r}")


def _apply(processor: Any, messages: Sequence[Message], **options: bool) -> str:
    try:
        text = processor.apply_chat_template(list(messages), tokenize=False, **options)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template refuses this conversation: {error}") from error
    except TypeError as error:
        raise UserError(f"the chat template can't read messages in parts ({error}): {_TEXT_ALONE}") from error
    if any(isinstance(message["content"], list) and str(message["content"]) in text for message in messages):
        raise UserError(f"the chat template writes a message's parts as source text ({str(messages[0]['content'])[:60]}): {_TEXT_ALONE}")
    return _with_begin(processor, text)


def _with_begin(processor: Any, text: str) -> str:
    """Put in front what the processor itself would put there: Molmo-2's writes the begin token where the template has not."""
    if not isinstance(processor, Molmo2Processor):
        return _always_written(processor) + text
    begin = processor.tokenizer.bos_token or processor.tokenizer.eos_token
    return text if text.startswith(begin) else begin + text


def given_text(processor: Any, text: str) -> str:
    """What a processor is given, so that it makes a rendered text of it: that without what it always writes in front."""
    return text.removeprefix(_always_written(processor))


def _always_written(processor: Any) -> str:
    if isinstance(processor, Emu3Processor):
        # Also where it is told to add no special tokens.
        return str(processor.tokenizer.bos_token)
    return DEFAULT_SYSTEM_PROMPT if isinstance(processor, JanusProcessor) and processor.use_default_system_prompt else ""


def render_answers(
    processor: Any, messages: Sequence[Message], answers: Sequence[int], *, begun: str = "", ends: bool = True, end: AnswerEnd = "token"
) -> RenderedChat:
    """Render a conversation once, as a whole, and find the answers in it.

    Args:
        processor: A transformers processor with a chat template.
        messages: The conversation; it ends with an assistant turn.
        answers: Which of the messages are scored, in order; the last one is among them.
        begun: Words of the last turn that belong to the prompt; the answer is what follows them.
        ends: Whether the last answer ends its turn; otherwise the text is cut behind its words.
        end: What to do where the template writes no end.

    Raises:
        ValueError: If the template changes an answer's words, so that they can't be told apart, or leaves out what is asked.
    """
    text = render(processor, messages, add_generation_prompt=False)
    around = _render_around(processor, messages, answers)
    tail = around[-1]
    spans = []
    at = 0
    for number, i in enumerate(answers):
        words = _find_words(text, at, text_of(messages[i]), around[number], around[number + 1], tail)
        start = _answer_start(processor, messages, i, text)
        following = around[number + 1]
        spans.append((words[0] if start is None else min(start, words[0]), words[1] + len(_shared(following, tail))))
        at = words[1]
    _check_words(text, messages)
    start, _ = spans.pop()
    if begun:
        start = words[0] + _begun_length(text[slice(*words)], begun)
    text = text[: words[1]] + (_written_end(processor, tail, end) if ends else "")
    return RenderedChat(text, [*spans, (start, len(text))])


def _begun_length(written: str, begun: str) -> int:
    """How many characters of a turn as it is written are the words that it was begun with, which the template may trim."""
    for words in (begun, begun.lstrip()):
        if written.startswith(words):
            return len(words)
    raise UserError("the chat template changes the words that the answer continues")


def describe_end(processor: Any, model_ends: Sequence[int], end: AnswerEnd) -> str | None:
    """Say what ends an answer, where that is not an end token that the chat template writes.

    Args:
        processor: A transformers processor with a chat template.
        model_ends: Ids of the tokens that end the model's generation.
        end: What to do where the template writes none.

    Returns:
        A sentence for the log and the card; None where the template's own end is one of the model's.
    """
    asked = Message(role="user", content=[{"type": "text", "text": "What is it?"}])
    messages = [asked, Message(role="assistant", content=[{"type": "text", "text": "It."}])]
    tail = _render_around(processor, messages, [1])[-1]
    tokenizer = processor.tokenizer
    names = ", ".join(tokenizer.convert_ids_to_tokens(list(model_ends))) or "none"
    if not _has_special_token(processor, tail):
        none = "The chat template writes no end token behind an answer"
        if tokenizer.eos_token is None:
            return f"{none}, and the tokenizer has none: a model trained so does not stop by itself."
        if end == "template":
            return f"{none}: a model trained so does not stop by itself (answer-end token puts {tokenizer.eos_token} there)."
        other = "" if tokenizer.eos_token_id in model_ends else f" It is none of the tokens that end the model's generation ({names})."
        return f"{none}: {tokenizer.eos_token} is put behind the last one of each conversation (answer-end template leaves it out).{other}"
    if set(tokenizer(tail, add_special_tokens=False)["input_ids"]) & set(model_ends):
        return None
    return (
        f"The chat template ends answers with {tail.strip()!r}, which holds none of the tokens that end the model's generation ({names}): "
        "add its id to eos_token_id in generation_config.json."
    )


def _written_end(processor: Any, tail: str, end: AnswerEnd) -> str:
    """What stands behind the last answer: the template's own end, or in its place the tokenizer's end token."""
    if end == "template" or _has_special_token(processor, tail) or processor.tokenizer.eos_token is None:
        return tail
    return (tail if tail.strip() else "") + processor.tokenizer.eos_token


def _has_special_token(processor: Any, text: str) -> bool:
    return any(token in text for token in processor.tokenizer.all_special_tokens)


def _render_around(processor: Any, messages: Sequence[Message], answers: Sequence[int]) -> list[str]:
    """What the template writes before, between and behind the answers."""
    others = list(messages)
    for i in answers:
        others[i] = replace_text(messages[i], _STAND_IN.format(i))
    text = render(processor, others, add_generation_prompt=False)
    around = []
    for i in answers:
        before, found, text = text.partition(_STAND_IN.format(i))
        if not found:
            raise UserError("the chat template leaves out an answer, or changes its words")
        around.append(before)
    return [*around, text]


def replace_text(message: Message, text: str) -> Message:
    """The same turn with other words."""
    return Message(role=message["role"], content=[{"type": "text", "text": text}])


def _find_words(text: str, at: int, words: str, before: str, behind: str, tail: str) -> Span:
    """Find an answer's words between what the template writes before and behind them, as they are or trimmed.

    Where it treats the words otherwise than others (reasoning, which it moves or leaves out), what stands behind ``</think>`` is found.
    """
    is_last = behind == tail
    if text.startswith(before, at):
        start = at + len(before)
        for written in dict.fromkeys((words, words.rstrip(), words.lstrip(), words.strip())):
            stop = start + len(written)
            if text.startswith(written, start) and (text[stop:] == tail if is_last else text.startswith(behind[:1], stop)):
                return start, stop
    said = words.rpartition("</think>")[2].strip()
    start = len(text) - len(tail) - len(said) if is_last else text.find(said + _shared(behind, tail), at)
    if start < at or not text.startswith(said, start):
        raise UserError("the chat template changes an answer's words, so that its tokens can't be told apart")
    return start, start + len(said)


def _answer_start(processor: Any, messages: Sequence[Message], i: int, text: str) -> int | None:
    """Where the generation prompt before an answer ends; a thinking template's may continue otherwise than the answered conversation.

    None where the template writes what stands before the answer differently once more follows: then the answer starts with its words.
    """
    prompt = _apply(processor, messages[:i], add_generation_prompt=True)
    if text.startswith(prompt):
        return len(prompt)
    if not text.startswith(render(processor, messages[:i], add_generation_prompt=False)):
        return None
    return len(_shared(prompt, text))


def _shared(first: str, second: str) -> str:
    return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
