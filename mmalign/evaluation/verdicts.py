"""What a judge decides, read as a careful reader would: whole words and numbers, from the end of its reply.

The words before the last decision are a judge's way to it. Markdown, code fences, JSON and negations are no obstacle.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmalign.errors import UserError

BEST = 6
"""The highest rating of MMHal-Bench."""
SCALE = range(BEST + 1)


class UnreadableError(UserError):
    """A judge's replies that a mode can't read at all."""


# Verdicts: correct, incorrect, unclear.

_VERDICT = re.compile(r"(?<![\w'-])(?:(?P<wrong>incorrect|in-correct|non-correct)|(?P<right>correct)|(?P<unclear>unclear))(?![\w'-])")
_KEYS = ("verdict", "judgement", "judgment", "reply", "result", "label", "conclusion", "correctness", "is_correct", "correct")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LABEL = re.compile(
    r"\b(?:verdict|judge?ment|reply|conclusion|final answer|evaluation|assessment)\b\s*(?:is|:|=|-)*\s*\W*"
    r"(?=(?:in-?|non-)?correct\b|unclear\b)"
)
# "Correct: no", "Is it correct? Yes."
_FLAG = re.compile(r"(?<![\w'-])(?:is_)?correct(?:ness)?\W*[:=?]\W*(true|false|yes|no)\W*$", re.MULTILINE)
# Words that turn the verdict behind them; "not only correct" is correct, "without doubt" is no negation, and "no doubt" neither.
_NEGATION = re.compile(
    r"\b(?:(?P<verb>(?:not|\w+n't)(?! (?:only|just|merely|simply)\b)|cannot)|never|hardly|nothing|neither|none of|without|nowhere"
    r"|no (?:reason|grounds?|basis|way|part|longer)|far from|unable to|(?<!no )(?<!beyond )(?<!beyond a )(?<!beyond any )doubt(?:s|ed|ful)?"
    r"|fail(?:s|ed)? to|(?:contradict|lack|miss)(?:s|es|ed)?(?= the \Z))\b"
)
# What a verb that is negated says itself, before the verdict's own: "the claim that it is not red is". Not so of "I don't think it is".
_OWN_WORDS = re.compile(
    r"\s+(?!(?:think|believe|say|sure|certain|agree|consider|convinced|clear|mean|imply|call|claim|find|feel|true|the case)\b)"
    r"(?:(?!that\b|which\b|what\b)[\w-]+\s+)+(?:is|are|was|were)\s*"
)
# Where a thought ends; what stands before it does not negate what stands behind.
_BREAK = re.compile(r"[.!?;:,\n\u2014()\"]|\b(?:and|but|so|hence|therefore|thus|because|since|as|yet|while|whereas|although)\b")
# Not said of the prediction: asked, supposed, or weighed.
_SUPPOSED = re.compile(
    r"\b(?:whether|if|unless|would(?: not|n't)? (?:have )?be(?:en)?|instead of|rather than|either)\b"
    r"|^\s*(?:in order )?to be\b"
)
_OFFER_BEHIND = re.compile(r"\"?(?:,|/| or| nor|, or)\s*\"?(?:incorrect|correct|unclear)\b")
_OFFER_BEFORE = re.compile(r"\b(?:incorrect|correct|unclear)\"?(?:,|/| or| nor|, or)\s*\"?$")
# Neither correct nor incorrect.
_HALF = re.compile(r"\b(?:partially|partly|half|somewhat)[\s-]*$")
_THE, _ANY = re.compile(r"\bthe (?:\w+ )?$"), re.compile(r"\ban? $")
_OTHER_THING = re.compile(r"\s+[\w-]+(?: [\w-]+){0,3} (?:is|was|are|were|would|should|being)\b")
_WOULD = re.compile(r"\s+[\w-]+(?: [\w-]+){0,3} (?:would|should|could|must)\b")
# "Correct is 3", "the reference is correct".
_NAMES_IT = re.compile(r"\s+(?:is|are|was|would be|should be)\b")
_REFERENCE = re.compile(r"^\W*the (?:reference|ground[ -]truth|standard|gold|expected)(?: answer)? (?:is|was)(?: \w+)? $")
# A reply that begins with its verdict gives reasons behind it, unless it takes the verdict back.
_FIRST = re.compile(r"\W*(?P<verdict>(?:in-?|non-)?correct|unclear)\s*(?:[.,:;!\n\u2013\u2014]|-\s|because\b|since\b|as\b|\Z)")
_TAKEN_BACK = re.compile(r"\b(?:wait|actually|however|on second thoughts?|correction|reconsider\w*)\b")
_REACH = 5  # Words between a negation and what it negates.


def find_verdict(reply: str) -> bool | None:
    """Return whether a judge calls an answer correct; None where it says unclear, or neither.

    A verdict in JSON or behind a label ("Verdict:") comes first, then one that the reply begins with; else it is the last of the words
    correct, incorrect and unclear that is said of the answer: "not correct" is incorrect, and "the correct answer is no", a question or a
    supposition say nothing.
    """
    for table in _tables(reply):
        name = next((name for name in _KEYS if name in table), None)
        if name is not None:
            value = str(table[name]).strip().lower()
            return _FLAGS[value] if value in _FLAGS else find_verdict(value)
    text = _plain(reply)
    found = list(_VERDICT.finditer(text))
    labelled = [match for match in found if any(label.end() == match.start() for label in _LABEL.finditer(text))]
    said = [match for match in labelled or found if _is_said(text, match)]
    flag = next(reversed(list(_FLAG.finditer(text))), None)
    if flag is not None and not labelled and not any(match.start() > flag.end() for match in said):
        return _FLAGS[flag[1]]
    first = _FIRST.match(text)
    if first is not None and not labelled and _is_said(text, found[0]) and not _TAKEN_BACK.search(text):
        return None if found[0].lastgroup == "unclear" else found[0].lastgroup == "right"
    # "It is the correct answer" decides where nothing else does.
    strong = [match for match in said if not _THE.search(text[: match.start()])]
    last = next(reversed(strong or said), None)
    if last is None or last.lastgroup == "unclear":
        return None
    return (last.lastgroup == "right") != _is_negated(text[: last.start()])


def _is_said(text: str, match: re.Match[str]) -> bool:
    """Whether a verdict is said of the answer: not asked, supposed, offered ("correct or incorrect"), half meant, or of another thing."""
    before, behind = text[: match.start()], text[match.end() :]
    if re.match(r"[^.!\n]{0,60}\?", behind) or _SUPPOSED.search(_clause(before)):
        return False
    if _OFFER_BEHIND.match(behind) or _OFFER_BEFORE.search(before):
        return False
    if match.lastgroup == "unclear" and _is_negated(before):
        return False
    if match.lastgroup == "right" and (_HALF.search(before) or _NAMES_IT.match(behind) or _REFERENCE.search(_clause(before))):
        return False
    return not ((_THE.search(before) and _OTHER_THING.match(behind)) or (_ANY.search(before) and _WOULD.match(behind)))


def _is_negated(before: str) -> bool:
    clause = _clause(before)
    near = " ".join(clause.split()[-_REACH - 1 :]) + " "
    directly = re.search(r"\bno\s*$", clause) is not None
    found = [word for word in _NEGATION.finditer(near) if not (word["verb"] and _OWN_WORDS.fullmatch(near, word.end()))]
    return (len(found) + directly) % 2 == 1


def _clause(before: str) -> str:
    # A quote that opens before the verdict itself ends nothing.
    return _BREAK.split(before.rstrip('"').replace("anything but", "not"))[-1]


def _plain(reply: str) -> str:
    """Lower case, straight apostrophes, double quotes, no Markdown."""
    text = re.sub("[\u2018\u2019]", "'", re.sub("[\u201c\u201d]", '"', reply.lower()))
    text = re.sub(r"(?<![a-z0-9])'|'(?![a-z0-9])", '"', text)
    return re.sub(r"[*`#]|(?<![a-z0-9])_+|_+(?![a-z0-9])", "", text)


# Ratings: a whole number from 0 to 6, or of another scale.

_RATING = re.compile(
    r"\b(?:rating|score)\b(?:\s?\([^)\n]*\)|\s?\[[^\]\n]*\d\s?(?:-|to)\s?\d[^\]\n]*\])?"
    r"(?:on (?:a|the) scale [^:=\n]*?[:=]|is|of|as|(?:would|should) be|therefore|\W|(?:of|for) [^:=\n\d]{0,60}?(?:[:=]| is)){0,40}?"
    r"(?P<number>(?<![\d.])-?\d+(?:\.\d+)?)(?=(?P<rest>[^\n]{0,12}))"
)
# A rating that is given, and not one that is talked about: "A rating of 6 would need more".
_GIVEN = re.compile(r"[^.]*[:=\uff1a]|(?<=final )|(?<=overall )|(?<=\bmy )")
# One that this response does not get: "A rating of 6 would need more", where no other is given.
_MISSED = re.compile(r"\s*(?:would|could|might)\s+(?:need|require|have|take)\b")
# One that would be given in another case.
_UNREAL = re.compile(r"\b(?:would|could|might)\b|\w'd\b")
_ALONE = re.compile(r"\W*(?P<number>\d+(?:\.\d+)?)(?P<rest>\s*(?:/|out of)\s*\d+)?\W*")


def find_rating(reply: str, *, scale: range = SCALE) -> int | None:
    """Return the last rating that a reply gives: "Rating: 5", "**Rating:** 5/6", JSON, or a number alone; None where not on the scale."""
    for table in _tables(reply):
        value = next((table[name] for name in ("rating", "score") if name in table), None)
        if value is not None:
            # "4: somewhat informative" stands there too.
            return find_rating(f"Rating: {value}", scale=scale)
    text = _plain(reply)
    found = [match for match in _RATING.finditer(text) if not _MISSED.match(text, match.end("number"))]
    if found:
        given = [match for match in found if _GIVEN.match(text, match.start(), match.start("number"))]
        real = [match for match in found if not _UNREAL.search(_clause(text[: match.start()]))]
        last = (given or real or found)[-1]
        return _whole(last["number"], last["rest"], scale)
    lines = [line for line in text.splitlines() if line.strip()]
    alone = _ALONE.fullmatch(lines[-1]) if lines else None
    return None if alone is None else _whole(alone["number"], alone["rest"] or "", scale)


def _whole(number: str, rest: str, scale: range) -> int | None:
    """A rating in range; "5/10" is of another scale than that up to 6, and "3 or 4" is none."""
    other = re.match(r"\s*(?:/|out of)\s*(\d+)", rest)
    if (other is not None and int(other.group(1)) != scale[-1]) or re.match(r"\s*(?:or|to|-|\u2013)\s*\d", rest):
        return None
    return int(float(number)) if float(number) in scale else None


# Lists of texts.

_FENCE = re.compile(r"(?:```|~~~)[\w-]*\s*\n(.*?)(?:```|~~~)", re.DOTALL)
_BULLET = re.compile(r"\s*(?:[-*\u2022]|\d+[.)])\s+(?P<name>\S.*?)\s*$")


def parse_list(reply: str) -> list[str] | None:
    """Return the list of texts that a reply holds, or None.

    As JSON it may be fenced, the whole reply or its last line, which is how the original reads it; or stand over several lines with words
    around it, be written as Python does, be the one list of an object, or stand as bullets.
    """
    fenced = re.search(r"```json\n(.*?)\n```", reply, re.DOTALL)
    for text in (fenced.group(1) if fenced else "", reply, reply.strip().split("\n")[-1]):
        names = _texts(_load(text))
        if names is not None:
            return names
    fences = [match.group(1) for match in _FENCE.finditer(reply)]
    for text in (*reversed(fences), reply):
        # The last one: what stands before it may be an example.
        names = next((names for value in find_values(text, "[{") if (names := _texts(value)) is not None), None)
        if names is not None:
            return names
    return _bullets(fences[-1] if fences else reply)


def _texts(value: Any) -> list[str] | None:
    if isinstance(value, Mapping):
        lists = [one for one in value.values() if isinstance(one, list)]
        value = lists[0] if len(lists) == 1 else None
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def _bullets(text: str) -> list[str] | None:
    """Items of a list of bullets or numbers; words before it end in a colon, and nothing follows."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].rstrip().rstrip("*").endswith(":"):
        lines = lines[1:]
    found = [_BULLET.match(line) for line in lines]
    return [match["name"].strip("*`\"'.") for match in found if match is not None] if lines and all(found) else None


# JSON in a text.

# Opening brackets that begin nothing readable: a judge that repeats one to its longest length would be read for minutes.
_MOST_FAILED = 100


def _tables(reply: str) -> Iterator[dict[str, Any]]:
    """JSON objects in a reply, the last one first; their keys in lower case."""
    for value in find_values(reply, "{"):
        if isinstance(value, dict):
            yield {str(key).strip().lower().replace(" ", "_"): item for key, item in value.items()}


def find_values(text: str, brackets: str) -> Iterable[Any]:
    """Read whatever stands in these opening brackets as JSON or Python, the last first; what stands within another is part of it."""
    values: list[Any] = []
    place, failed = 0, 0
    while place < len(text) and failed < _MOST_FAILED:
        end = _matching(text, place) if text[place] in brackets else None
        value = None if end is None else _load(text[place:end])
        if end is not None and value is not None:
            values.append(value)
            place = end
        else:
            failed += text[place] in brackets
            place += 1
    return reversed(values)


def _matching(text: str, start: int) -> int | None:
    """The end of what opens at ``start``; brackets within quotes count for nothing."""
    depth, quote = 0, ""
    for i in range(start, min(len(text), start + 20_000)):
        letter = text[i]
        if quote:
            quote = "" if letter == quote and text[i - 1] != "\\" else quote
        elif letter == '"':
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return None


def _load(text: str) -> Any:
    """Read JSON, or the same as Python writes it; None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip()) if text.strip()[:1] in ("[", "{") else None
    # What its documentation names.
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
