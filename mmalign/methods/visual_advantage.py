"""The teacher asked twice, with the row's image and with a weakened one: tokens that hang on the image weigh more.

Shape legend: K = scored tokens of a batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import ChatRow
from mmalign.data.weaken import weaken_turns
from mmalign.engine.aligned import Alignment
from mmalign.engine.batch import NUM_IMAGES, collate_prompts
from mmalign.engine.divergence import Prediction, TeacherStates
from mmalign.engine.head import linear_token_logps
from mmalign.losses.visual_advantage import answer_weights, group_weights
from mmalign.methods.teachers import LiveTeacher
from mmalign.options.methods import VisualAdvantageOptions
from mmalign.training.method import Sum


class Weighed(NamedTuple):
    """What the image says of each token."""

    advantage: Tensor
    """(K,) in nats."""
    weights: Tensor
    """(K,) 1 on average over an answer, or times its answer's own."""
    top: Tensor
    """(K,) bool: the tokens that are averaged apart, of answers about an image."""
    seen: Tensor
    """(K,) bool: tokens of answers about an image; the others weigh 1."""

    def metrics(self, divergence: Tensor) -> dict[str, Sum]:
        """Mean advantage, and the mean divergence of the top tokens and of the other ones."""
        rest = self.seen & ~self.top
        groups = {"mean": (self.advantage, self.seen), "top": (self.advantage, self.top)}
        groups |= {"kl_top": (divergence, self.top), "kl_rest": (divergence, rest)}
        return {f"visual_advantage/{name}": Sum(values[kept].sum(), kept.sum()) for name, (values, kept) in groups.items()}


class VisualAdvantage:
    """Weakens images as the teacher reads them, and weighs tokens by what the teacher loses."""

    def __init__(self, options: VisualAdvantageOptions, teacher: LiveTeacher) -> None:
        """Keep how images are weakened, and who is asked."""
        self._options, self._teacher = options, teacher

    def encode(self, row: ChatRow) -> EncodedPrompt:
        """Tokenise the conversation about weakened images as the teacher's processor does."""
        images, messages = weaken_turns(row.images, row.messages, self._options)
        weakened = replace(row, images=images, messages=messages)
        return encode_chat(self._teacher.processor, weakened, answer_end=self._teacher.answer_end)

    def collate(self, rows: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """The teacher's batch of them."""
        return collate_prompts(rows, pad_token_id=self._teacher.processor.tokenizer.pad_token_id)

    @torch.no_grad()
    def weigh(self, student: nn.Module, inputs: dict[str, Any], weakened: dict[str, Any], taught: Prediction | Alignment) -> Weighed:
        """Weigh the scored tokens of a batch.

        Args:
            student: The model in training.
            inputs: Its batch.
            weakened: The teacher's, with weakened images.
            taught: What it says with the rows' own.
        """
        assert isinstance(taught, TeacherStates), "the options refuse teachers that are cached, or of other tokens"
        layout = inputs["layout"]
        told = [_logps(states, layout["target"]) for states in (taught, self._teacher.ask(student, inputs, weakened, shift=0))]
        advantage, answer, number = told[0] - told[1], layout["response"], len(layout["repeats"])
        seen = (layout["image_blocks"][NUM_IMAGES] > 0)[answer]
        by_token, top = group_weights(advantage, answer, num_answers=number, share=self._options.visual_share)
        weights = torch.ones_like(advantage)
        if self._options.visual_advantage in ("tokens", "both"):
            weights = by_token
        if self._options.visual_advantage in ("answers", "both"):
            weights = weights * answer_weights(advantage, answer, num_answers=number)
        return Weighed(advantage, torch.where(seen, weights, 1.0), top & seen, seen)


def _logps(states: TeacherStates, target: Tensor) -> Tensor:
    """(K,) log p of the tokens themselves, under the whole vocabulary."""
    head, transform = states.head, states.head.transform
    return linear_token_logps(states.hidden, head.weight, head.bias, target, scale=transform.scale, softcap=transform.softcap)
