"""What the yes-or-no benchmarks share: the strict reading, what an answer adds, and constant answers as baselines."""

import re

from mmalign.evaluation.answers import Question
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Metric, count

# A model that looks at nothing: always-No has a higher F1 on AMBER than LLaVA-1.5, so no yes-or-no score stands alone.
BASELINES = {"always_yes": "Yes", "always_no": "No"}
UNKNOWN = Metric("Answers neither yes nor no", "lower", formula=count("unknown"), resampled=None)


def parse_strict(answer: str) -> bool | None:
    """Return the first whole word that is yes or no, in any case; None where there is neither."""
    found = re.search(r"\b(yes|no)\b", answer.lower())
    return None if found is None else found.group() == "yes"


def parse_anywhere(answer: str) -> bool | None:
    """Return yes where the letters "yes" stand anywhere, else no where "no" does, as in "cannot"; None where neither (RePOPE, DASH-B)."""
    text = answer.lower()
    return True if "yes" in text else False if "no" in text else None


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
