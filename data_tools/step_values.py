"""How true is an answer so far, and how right is a whole one? By what is known, or by a model that is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Protocol

from PIL import Image

from data_tools.read_prompts import PromptReader
from data_tools.scoring import Sampled
from data_tools.tree import Step
from mmalign.data.encode import EncodedPrompt, encode_questions, encode_responses
from mmalign.data.rows import Message
from mmalign.engine.choosing import Given
from mmalign.engine.generation import Generated
from mmalign.engine.rewards import RewardModel
from mmalign.errors import UserError
from mmalign.evaluation.object_words import find_mentions
from mmalign.evaluation.wording import fill_prompt
from mmalign.rewards.exact import score_answer, score_objects

YES, NO = ("yes", "Yes"), ("no", "No")
_DIFFERENT = ("a", "The", "1", ".", "\n")
"""Answers that share no beginning: what prompts with them share, prompts with all answers do."""

Turns = Callable[[str, str], list[Message]]
"""From a question and an answer so far to the conversation that asks about the answer; the first turn shows the image."""


class Values(Protocol):
    """Values answers to the questions of a chunk."""

    def see(self, items: Sequence[Sampled], images: Sequence[Image.Image]) -> None:
        """Look at the questions of a chunk, each with its image."""

    def __call__(self, steps: Sequence[tuple[int, Step]]) -> list[tuple[float, float]]:
        """Return confidence and outcome for steps, each behind its question's number."""


class TruthValues:
    """Knows which objects are there, or the right answers."""

    def __init__(self, words: Mapping[str, str] | None) -> None:
        """Hold the word table, where objects are known."""
        self._words = words
        self._items: Sequence[Sampled] = []

    def see(self, items: Sequence[Sampled], images: Sequence[Image.Image]) -> None:
        """See ``Values``."""
        self._items = items

    def __call__(self, steps: Sequence[tuple[int, Step]]) -> list[tuple[float, float]]:
        """Confidence: (objects named and there - named and absent) / objects there; with known answers 0, which says nothing.

        Right is a whole answer that names objects and none that is absent, or one of the right answers.
        """
        return [self._value(self._items[number], step.text) for number, step in steps]

    def _value(self, item: Sampled, text: str) -> tuple[float, float]:
        if self._words is None:
            return 0.0, 1.0 if score_answer(text, item.answers) else -1.0
        there, named = item.truth or frozenset(), {mention.name for mention in find_mentions(text, self._words)}
        return score_objects(text, there, self._words), 1.0 if named and named <= there else -1.0


@dataclass(frozen=True)
class _Asked:
    """A question about an image, as a reward model reads it."""

    images: Sequence[Image.Image]
    prompt: Sequence[Message]


class RewardValues:
    """Asks a reward model for the answer so far; whole answers have no outcome."""

    def __init__(self, model: RewardModel) -> None:
        """Hold the model."""
        self._model = model
        self._rows: list[_Asked] = []

    def see(self, items: Sequence[Sampled], images: Sequence[Image.Image]) -> None:
        """See ``Values``."""
        turns = [Message(role="user", content=[{"type": "image"}, {"type": "text", "text": item.question.prompt}]) for item in items]
        self._rows = [_Asked([image], [turn]) for image, turn in zip(images, turns, strict=True)]

    def __call__(self, steps: Sequence[tuple[int, Step]]) -> list[tuple[float, float]]:
        """Confidence: sigmoid of the reward, which is P(yes) of yes and no. The steps of a question share its row."""
        texts: dict[int, list[str]] = {}
        for number, step in steps:
            texts.setdefault(number, []).append(step.text)
        scored = self._model([self._rows[number] for number in texts], list(texts.values()))
        found = {number: iter(rewards) for number, rewards in zip(texts, scored, strict=True)}
        return [(1 / (1 + exp(-next(found[number]))), 0.0) for number, _ in steps]


class AskedValues:
    """Asks a multimodal model about the answer so far while it sees the image; whole answers have no outcome."""

    def __init__(self, model: Any, processor: Any, *, turns: Turns) -> None:
        """Hold the model and how it is asked."""
        self._reader, self._processor, self._turns = PromptReader(model, processor), processor, turns
        self._yes, self._no = (answer_tokens(processor, words) for words in (YES, NO))
        self._items: Sequence[Sampled] = []
        self._images: Sequence[Image.Image] = []

    def see(self, items: Sequence[Sampled], images: Sequence[Image.Image]) -> None:
        """See ``Values``: what all that can be asked of an image has in common is read here."""
        self._items, self._images = items, images
        self._reader.read([self._encode(number, _DIFFERENT) for number in range(len(items))])

    def __call__(self, steps: Sequence[tuple[int, Step]]) -> list[tuple[float, float]]:
        """Confidence: P(yes) of yes and no, in small letters and with a capital."""
        rests: list[list[list[int]]] = [[] for _ in self._items]
        for number, step in steps:
            rests[number].append(self._rest(number, step.text))
        answers = self._reader.go_on(rests, Given([*self._yes, *self._no]), max_new_tokens=1)
        found = [iter(one) for one in answers]
        return [(self._share(next(found[number])), 0.0) for number, _ in steps]

    def _encode(self, number: int, texts: Sequence[str]) -> EncodedPrompt:
        question = self._items[number].question.prompt
        prompts = [self._turns(question, text) for text in texts]
        return encode_questions(self._processor, images=[self._images[number]], prompts=prompts)

    def _rest(self, number: int, text: str) -> list[int]:
        """What stands behind the tokens that were read."""
        encoded, read = self._encode(number, [text]), self._reader.prefix_ids(number)
        ids = [*encoded.prefix_ids, *encoded.responses[0]]
        if ids[: len(read)] != read:
            raise UserError(
                f"the tokenizer joins the beginning of the answer {text[:80]!r} with the words before it; put a line break there"
            )
        return ids[len(read) :]

    def _share(self, answers: Sequence[Generated]) -> float:
        chances = [exp(answer.model_logps[0]) for answer in answers if answer.model_logps]
        return sum(chances[: len(self._yes)]) / sum(chances)


def asking(wording: str) -> Turns:
    """Ask in one turn beside the image; ``{response}`` is the answer so far, ``{question}`` what it answers.

    Raises:
        ValueError: If there is no place for the answer.
    """
    if "{response}" not in wording:
        raise UserError(f"check is {wording!r}; expected a question with {{response}}, the place of the answer so far")

    def turns(question: str, response: str) -> list[Message]:
        text = fill_prompt(wording, {"response": response, "question": question})
        return [Message(role="user", content=[{"type": "image"}, {"type": "text", "text": text}])]

    return turns


def answer_tokens(processor: Any, words: Sequence[str]) -> list[int]:
    """The first tokens of answers of one word, as the chat template writes them, for words that are one token.

    Raises:
        ValueError: If none is.
    """
    prompt, found = [Message(role="user", content=[{"type": "text", "text": "?"}])], set[int]()
    for word in words:
        encoded = encode_responses(processor, images=[], prompt=prompt, responses=[f"{word}."])
        token = encoded.responses[0][encoded.scored[0].index(True)]
        if processor.tokenizer.decode([token]).strip() == word:
            found.add(token)
    if not found:
        raise UserError(f"the tokenizer writes none of {', '.join(words)} as one token at the beginning of an answer")
    return sorted(found)
