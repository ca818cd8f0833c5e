"""The last answer of a tokenised conversation: what it answers, and another one in its place."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from mmalign.data.encode import EncodedPrompt


def answer_start(encoded: EncodedPrompt) -> int:
    """Where the last answer starts in the response, which ends with it: nothing of a conversation stands behind its last answer."""
    scored = encoded.scored[0]
    return len(scored) - sum(1 for _ in takewhile(bool, reversed(scored)))


def question_of(encoded: EncodedPrompt) -> EncodedPrompt:
    """The conversation up to its last answer, as the sampler takes questions: the last token is the question's own."""
    start, types = answer_start(encoded), _response_types(encoded)
    before = [*encoded.prefix_ids, *encoded.responses[0][:start]]
    kinds = {key: [*encoded.token_types.get(key, [0] * len(encoded.prefix_ids)), *values[:start]] for key, values in types.items()}
    return replace(
        encoded,
        prefix_ids=before[:-1],
        responses=[before[-1:]],
        scored=[[False]],
        token_types={key: values[:-1] for key, values in kinds.items()},
        response_types=[{key: values[-1:] for key, values in kinds.items()}],
    )


def with_answer(encoded: EncodedPrompt, ids: Sequence[int]) -> EncodedPrompt:
    """The same conversation with other tokens as its last answer, all of them scored."""
    start = answer_start(encoded)
    types = {key: [*values[:start], *[values[start]] * len(ids)] for key, values in _response_types(encoded).items()}
    return replace(
        encoded,
        responses=[[*encoded.responses[0][:start], *ids]],
        scored=[[*encoded.scored[0][:start], *[True] * len(ids)]],
        response_types=[types],
    )


def _response_types(encoded: EncodedPrompt) -> Mapping[str, Sequence[int]]:
    """The response's own token types; text where it has none."""
    own = encoded.response_types[0] if encoded.response_types else {}
    return {key: own.get(key, [0] * len(encoded.responses[0])) for key in encoded.token_types}
