"""What a model says before its answer: reasoning between marks, in the dresses that models have.

A reasoning model's words inside ``<think>`` hold "yes", "no", absent objects and ratings that it then gives up. The answer is what stands
behind the last closing mark, and an answer that ended inside the marks is none. Every reader of answers and of a judge's replies asks
``strip_reasoning``.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# "seed:think", "longcat_think", "internal_reasoning", "rethink" and "thought_process" are among them.
_NAMES = (
    r"(?:(?!(?:no|begin|start|end)_)[a-z]+[:_])?"
    r"(?:(?:re)?think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad|cot)(?:_(?:process|steps?))?|chain_of_thought"
)
# Tags (DeepSeek-R1, Qwen, GLM, EXAONE), brackets (Magistral), tokens of OpenThinker, Command A, Kimi-VL, MedGemma, a channel of Gemma.
_OPEN = (
    rf"<\|?\s*(?:{_NAMES})(?:\s[^<>]*)?\|?>|\[THINK(?:ING)?\]|<\|?(?:begin|start)_of_(?:{_NAMES})\|?>|<\|START_THINKING\|>|\u25c1think\u25b7|<\|channel>thought"
    r"|<unused94>(?:thought)?"
    # A channel of gpt-oss; of its special tokens dropped, the channel's name stays fused with the first word.
    r"|<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>|(?-i:\Aanalysis(?=[A-Z]))"
    # Plain words of Granite, and the first of LLaVA-CoT's four stages.
    r"|\AHere(?:'s| is) my thought process:|(?-i:\A\s*<SUMMARY>)"
)
_CLOSE = (
    rf"<\|?\s*/\s*(?:{_NAMES})\s*\|?>|\[/THINK(?:ING)?\]|<\|?end_of_(?:{_NAMES})\|?>|<\|END_THINKING\|>|\u25c1/think\u25b7|<channel\|>|<unused95>"
    # Apriel's, whose template begins the reasoning in plain words; and gpt-oss's, which may name a format.
    r"|\[BEGIN FINAL RESPONSE\]|<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|(?-i:assistantfinal)"
    r"|Here(?:'s| is) my response:"
)
# What a text begins with whose reasoning ends in plain words.
_PLAIN = re.compile(r"analysis|Here(?:'s| is) my thought process:")
_MARK = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
# What some models put around the answer itself.
_ANSWER_NAMES = "answer|final[_ ]?answer|final|conclusion|solution|response|output|verdict|judge?ment"
_ANSWER = re.compile(
    rf"<\s*({_ANSWER_NAMES})\s*>(.*?)(?:<\s*/\s*\1\s*>|\Z)"
    r"|<\|begin_of_(solution|box)\|>(.*?)(?:<\|end_of_\3\|>|\Z)|<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_ANSWER_END = re.compile(rf"(?:<\s*/\s*(?:{_ANSWER_NAMES})\s*>|<\|end_of_(?:solution|box)\|>|<\|END_RESPONSE\|>)\s*\Z", re.IGNORECASE)
_TURN_END = re.compile(r"(?:(?:<\|(?:return|end|im_end|eot_id|endoftext)\|>|</s>|\[END FINAL RESPONSE\])\s*)+\Z")
_BOXED = re.compile(r"\\boxed\s*\{")
_STYLED = re.compile(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}")


class Stripped(NamedTuple):
    """An answer without its reasoning.

    Attributes:
        text: The answer; empty where the model ended before it came to one.
        reasoned: Whether anything was taken away. Without, the text is as it was, to the letter.
        headless: Whether reasoning was closed that was not opened: the template had opened it.
    """

    text: str
    reasoned: bool = False
    headless: bool = False


def strip_reasoning(text: str) -> Stripped:
    """Return what stands behind the reasoning of an answer, and out of the dress of the answer itself (``<answer>``, a box)."""
    marks = [mark for mark in _MARK.finditer(text) if not mark.group()[0].isalpha() or _PLAIN.match(text)]
    if not marks:
        bare = _undress(text)
        return Stripped(text) if bare is None else Stripped(bare, reasoned=True)
    headless = marks[0].lastgroup == "close" and not marks[0].group().startswith("<|channel|>")
    if marks[-1].lastgroup == "open":
        # Not closed. Some models forget to, and an answer that is whole in its own marks is one all the same.
        answer = _undress(text) if _ANSWER_END.search(text[marks[-1].end() :]) else None
        return Stripped(answer or "", reasoned=True, headless=headless)
    rest = _TURN_END.sub("", text[marks[-1].end() :])
    bare = _undress(rest)
    return Stripped((rest if bare is None else bare).strip(), reasoned=True, headless=headless)


def _undress(text: str) -> str | None:
    """The last answer in marks of its own, or in a box; None where there is neither."""
    inner = None
    for found in _ANSWER.finditer(text):
        inner = next(group for group in found.group(2, 4, 5) if group is not None)
    boxed = _last_box(text if inner is None else inner)
    if boxed is not None:
        return boxed
    if inner is None:
        return None
    deeper = _undress(inner)
    return (inner if deeper is None else deeper).strip()


def _last_box(text: str) -> str | None:
    """What stands in the last box (boxed, of LaTeX) whose braces close."""
    for found in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for i, letter in enumerate(text[found.end() :], start=found.end()):
            depth += (letter == "{") - (letter == "}")
            if depth == 0:
                return _STYLED.sub(r"\1", text[found.end() : i]).strip()
    return None


def opened_mark(prompt: str) -> str:
    """Return the opening mark that a prompt ends with, as templates of reasoning models do; empty where it ends otherwise."""
    marks = list(_MARK.finditer(prompt))
    last = marks[-1] if marks else None
    return last.group() if last is not None and last.lastgroup == "open" and not prompt[last.end() :].strip() else ""


def decode_answer(processor: Any, ids: Sequence[int], *, prompt: Sequence[int]) -> str:
    """Decode an answer's tokens so that its reasoning can be told from it.

    Special tokens are dropped, save those that mark reasoning. Where the prompt ends in an opened mark, the text begins with it.

    Args:
        processor: Or a tokenizer.
        ids: New tokens.
        prompt: The prompt's last tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    kept = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens if _marks(token)}
    pieces: list[str] = []
    start = 0
    for place, token_id in enumerate(ids):
        if token_id in kept.values():
            pieces += [processor.decode(list(ids[start:place]), skip_special_tokens=True), tokenizer.convert_ids_to_tokens(token_id)]
            start = place + 1
    text = "".join([*pieces, processor.decode(list(ids[start:]), skip_special_tokens=True)]).strip()
    opened = opened_mark(tokenizer.decode(list(prompt[-16:]), skip_special_tokens=False))
    return f"{opened}\n{text}" if opened else text


def _marks(token: str) -> bool:
    channel = token in ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|channel>", "<channel|>")
    return channel or _MARK.fullmatch(token) is not None or _ANSWER.fullmatch(token) is not None
