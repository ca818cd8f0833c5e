"""What the yes-or-no benchmarks share: the strict reading, what an answer adds, and constant answers as baselines."""

import re

from mmalign.evaluation.answers import Question
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Metric, count

# A model that looks at nothing: always-No has a higher F1 on AMBER than LLaVA-1.5, so no yes-or-no score stands alone.
BASELINES = {"always_yes": "Yes", "always_no": "No"}
UNKNOWN = Metric("Answers neither yes nor no", "lower", formula=count("unknown"), resampled=None)


# A request that is repeated: "yes or no", "(yes/no)"; and a no that denies nothing: "no doubt, yes".
_OFFER = re.compile(r"\b(?:yes\s*(?:or|/)\s*no|no\s*(?:or|/)\s*yes|no (?:doubt|problem|question|wonder))\b")
# Underscores are Markdown's.
_WORD = re.compile(r"(?<![^\W_])(yes|no)(?![^\W_])")
# An answer, and the next question of a model that does not stop.
_NEXT_TURN = re.compile(r"(\W*(?:yes|no)\b.*?)\n\W*(?:question|q|user|human)\W*:.*", re.DOTALL)
_BEHIND_LABEL = re.compile(r"\b(?:answer|conclusion)\b(?: is)?(?:(?![.!?])[\W_])*" + _WORD.pattern)


def parse_strict(answer: str) -> bool | None:
    """Return the last yes or no behind the word "answer", else the first whole word that is one, in any case; None where neither is.

    A question that the model goes on with once it has answered ends its answer.
    """
    text = _OFFER.sub(" ", answer.lower())
    if first := _NEXT_TURN.fullmatch(text):
        text = first[1]
    found = _BEHIND_LABEL.findall(text)[-1:] or _WORD.findall(text)[:1]
    return found[0] == "yes" if found else None


def parse_anywhere(answer: str) -> bool | None:
    """Return yes where the letters "yes" stand anywhere, else no where "no" does, as in "cannot"; None where neither (RePOPE, DASH-B)."""
    text = answer.lower()
    return True if "yes" in text else False if "no" in text else None


# Punctuation that VLMEvalKit takes for a space, or for nothing where one of the same stands beside a space.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def parse_vlmevalkit(answer: str) -> bool | None:
    """Return yes or no where exactly one of them is a word of the answer, by VLMEvalKit's rule without a judge; None is wrong there."""
    text = lowered = answer.lower()
    between_digits = re.search(r"\d,\d", lowered) is not None
    for mark in _MARKS:
        text = text.replace(mark, "" if between_digits or f"{mark} " in lowered or f" {mark}" in lowered else " ")
    # It removes 32 full stops at most: its flag stands in the place of a count.
    words = re.sub(r"\.(?!\d)", "", text, count=32).split()
    return None if ("yes" in words) == ("no" in words) else "yes" in words


def parse_lmms_eval(answer: str) -> bool | None:
    """Return yes or no where the answer is that word alone, in any case and with spaces around, as lmms-eval's ``pope`` wants it."""
    return {"yes": True, "no": False}.get(answer.lower().strip())


def binary_values(*, is_yes: bool, reply: bool | None) -> dict[str, float]:
    """What an answer adds. An unknown reply is wrong: it lowers accuracy, and recall of what the label is."""
    return {
        "answers": 1,
        "right": int(reply is is_yes),
        "are_yes": int(is_yes),
        "are_no": int(not is_yes),
        "said_yes": int(reply is True),
        "said_no": int(reply is False),
        "right_yes": int(is_yes and reply is True),
        "right_no": int(not is_yes and reply is False),
        "unknown": int(reply is None),
    }


def binary_item(
    question: Question, response: str, *, is_yes: bool, reply: bool | None, group: str, values: dict[str, float] | None = None
) -> Item:
    """Return the item of an answer, whose values are ``binary_values`` unless others are given."""
    values = binary_values(is_yes=is_yes, reply=reply) if values is None else values
    return make_item(question, response, label="yes" if is_yes else "no", correct=reply is is_yes, group=group, values=values)
