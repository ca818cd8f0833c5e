"""What a reward model reads: a response, and behind it the question whether it is right, answered with one of two words."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from transformers import PaliGemmaProcessor

from mmalign.data.encode import EncodedPrompt, check_lengths, check_text, encode_questions
from mmalign.data.messages import Message, text_of
from mmalign.errors import UserError
from mmalign.options.rows import WordingOptions


class RewardPrompts:
    """Tokenises responses for a reward model; it knows the two tokens that its reward is read from."""

    def __init__(self, processor: Any, wording: WordingOptions) -> None:
        """Find the two tokens.

        Raises:
            ValueError: If an answer is not one token behind the chat template, both are the same, or the family has no second turn.
        """
        if isinstance(processor, PaliGemmaProcessor):
            raise UserError("PaliGemma has no second turn to ask about a response; take a reward model of another family")
        self.processor, self.wording = processor, wording
        self.answers = self._find_answers()
        """Ids of the tokens for right and for wrong."""

    def _find_answers(self) -> tuple[int, int]:
        # As the template writes them, with the space before them; a word's token without it would be another one.
        asked = _turn("user", self.wording.question)
        rests = encode_questions(
            self.processor, images=[], prompts=[[asked, _turn("assistant", word)] for word in self.wording.answers]
        ).responses
        words = " and ".join(self.wording.answers)
        if any(len(rest) != 1 for rest in rests):
            pieces = ", ".join(" ".join(self.processor.tokenizer.convert_ids_to_tokens(rest)) for rest in rests)
            raise UserError(f"the answers {words} are not one token each behind the chat template ({pieces}); choose others with --answers")
        (right,), (wrong,) = rests
        if right == wrong:
            raise UserError(f"the answers {words} are the same token behind the chat template; choose others with --answers")
        return right, wrong

    def encode(
        self, *, images: Sequence[Image.Image], prompt: Sequence[Message], responses: Sequence[str], max_length: int | None = None
    ) -> EncodedPrompt:
        """Tokenise one prompt with its responses, each with the question behind it.

        Args:
            images: The prompt's images, in the order of their placeholders.
            prompt: The turns before the response. Ends it with an assistant's words, the responses continue them.
            responses: Response texts.
            max_length: Longest allowed row; image tokens, question and answer count.

        Returns:
            The encoded prompt. Each of its responses ends with the token for right, the only one that is scored: what predicts it is
            what the reward is read from.

        Raises:
            ValueError: If a row is longer than allowed, or the processor refuses it.
        """
        begun = text_of(prompt[-1]) if prompt[-1]["role"] == "assistant" else ""
        before = list(prompt[:-1] if begun else prompt)
        said = [_turn("assistant", begun + response) for response in responses]
        check_text(self.processor, [*before, *said])
        asked = [_turn("user", self.wording.question), _turn("assistant", self.wording.answers[0])]
        encoded = encode_questions(self.processor, images=images, prompts=[[*before, turn, *asked] for turn in said])
        if any(rest[-1] != self.answers[0] for rest in encoded.responses):
            raise UserError("the chat template writes the answer behind this response otherwise than behind a question alone")
        scored = [[False] * (len(rest) - 1) + [True] for rest in encoded.responses]
        return check_lengths(replace(encoded, scored=scored), max_length)


def _turn(role: str, text: str) -> Message:
    return Message(role=role, content=[{"type": "text", "text": text}])
