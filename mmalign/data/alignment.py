"""Where two tokenisations of the same answers meet: the groups of tokens that a cross-tokenizer divergence compares."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby, takewhile
from typing import NamedTuple

from mmalign.data.encode import EncodedPrompt
from mmalign.data.token_bytes import TokenBytes
from mmalign.errors import UserError

NO_GROUP = -1
"""The group of a token that nothing of the other tokenisation stands beside."""


class Aligned(NamedTuple):
    """Answers, cut by two tokenizers."""

    student: list[int]
    """The group of each of the student's tokens, counted from 0, or ``NO_GROUP``."""
    teacher: list[int]
    """The same of the teacher's."""

    @property
    def num_groups(self) -> int:
        """Groups; each has tokens of both."""
        return max(self.student, default=NO_GROUP) + 1


def list_answers(encoded: EncodedPrompt) -> list[list[int]]:
    """The tokens of each answer of a conversation."""
    runs = groupby(zip(encoded.responses[0], encoded.scored[0], strict=True), key=lambda pair: pair[1])
    return [[number for number, _ in run] for scored, run in runs if scored]


def align_answers(
    student: TokenBytes,
    own: Sequence[Sequence[int]],
    teacher: TokenBytes,
    theirs: Sequence[Sequence[int]],
    words: Sequence[str],
    *,
    ended: bool = True,
) -> Aligned:
    """Group the tokens of answers: a group ends where a token of both ends at the same byte.

    What only one template writes before the words is in no group; all that they write behind them, such as end-of-turn tokens, is one.

    Args:
        student: The student's tokens.
        own: Ids of each answer.
        teacher: The teacher's tokens.
        theirs: Ids of each answer.
        words: What the answers say.
        ended: Whether the student ended the last one; else nothing behind its words is compared.

    Raises:
        ValueError: If there are not as many answers, or their tokens don't hold the words.
    """
    if not len(own) == len(theirs) == len(words):
        raise UserError(f"{len(words)} answers are {len(own)} to the student and {len(theirs)} to the teacher; expected as many")
    whole = Aligned([], [])
    for number, said in enumerate(words):
        found = _align(student, own[number], teacher, theirs[number], said, ended=ended or number < len(words) - 1)
        before = whole.num_groups
        for groups, more in zip(whole, found, strict=True):
            groups += [group if group == NO_GROUP else group + before for group in more]
    return whole


def _align(
    student: TokenBytes, own: Sequence[int], teacher: TokenBytes, theirs: Sequence[int], words: str, *, ended: bool
) -> tuple[list[int], list[int]]:
    # Templates trim words, and leave reasoning out.
    for said in dict.fromkeys((words.strip(), words.rpartition("</think>")[2].strip())):
        mine, their = student.place(own, said), teacher.place(theirs, said)
        if mine is not None and their is not None:
            # A space before the words that both have may be a token of its own in one and a part of the first word in the other.
            pairs = zip(reversed(mine.before), reversed(their.before), strict=False)
            common = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            return _meet(mine.ends, their.ends, range(-len(common.encode()), len(said.encode())), ended=ended)
    texts = student.text(own), teacher.text(theirs)
    raise UserError(
        f"the answer reads as {texts[0]!r} to the student and {texts[1]!r} to the teacher; expected {words.strip()!r} in both, byte for "
        "byte: a tokenizer or chat template changes it"
    )


def _meet(own: Sequence[int], theirs: Sequence[int], words: range, *, ended: bool) -> tuple[list[int], list[int]]:
    """From where tokens end to groups; what lies behind the last meeting point in the words is a group too."""
    meeting = sorted(place for place in set(own) & set(theirs) if words.start < place <= words.stop)
    groups = [[NO_GROUP if end <= words.start else bisect_left(meeting, end) for end in ends] for ends in (own, theirs)]
    last = len(meeting)
    if ended and all(last in found for found in groups):
        return groups[0], groups[1]
    mine, their = ([NO_GROUP if group == last else group for group in found] for found in groups)
    return mine, their
