"""Distinct next steps of an answer that has begun, drawn from a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from data_tools.read_prompts import PromptReader, encode_question
from data_tools.tree import Node, Step
from mmalign.data.encode import EncodedPrompt, image_token_ids
from mmalign.engine.choosing import Among, Sampling, fold_in
from mmalign.engine.generation import Generated, end_tokens
from mmalign.losses.reasoning_steps import StepKind
from mmalign.methods.listwise import find_step_ends

ATTEMPTS = 3
"""Rounds of draws in which steps of one text are replaced; then there are fewer."""


class StepSampler:
    """Draws the next steps of answers about the images of a chunk."""

    def __init__(self, model: Any, processor: Any, *, sampling: Sampling, steps: StepKind, depth: int, max_new_tokens: int) -> None:
        """Prepare.

        Args:
            model: Multimodal LLM to draw from.
            processor: Its own.
            sampling: How, with as many answers as steps are wanted.
            steps: What a step is.
            depth: Number of the step that is the rest of the answer; one is drawn.
            max_new_tokens: Longest answer.
        """
        self._reader, self._processor = PromptReader(model, processor), processor
        self._depth, self._longest = depth, max_new_tokens
        barred, size = image_token_ids(processor), len(processor.tokenizer)
        self._many, self._one = (
            Among(Sampling(sampling.temperature, sampling.top_p, sampling.top_k, answers=answers), size, barred)
            for answers in (sampling.answers, 1)
        )
        self._ends = end_tokens(model)
        ids = torch.arange(size)
        self._step_ends = sorted({*self._ends, *ids[find_step_ends(processor.tokenizer, ids, steps)].tolist()})
        self.tokens = Counter[int]()
        """Drawn for each question of the chunk."""
        self._draws = Counter[int]()
        self._rests: list[list[int]] = []

    def read(self, prompt: str, image: Image.Image) -> EncodedPrompt:
        """Make a question ready. Raises ``UserError`` where the processor refuses it."""
        return encode_question(self._processor, prompt, image)

    def see(self, questions: Sequence[EncodedPrompt]) -> None:
        """Take the questions of a chunk, as they were read."""
        self._rests = [question.responses[0] for question in questions]
        self._reader.read(questions)
        self.tokens, self._draws = Counter(), Counter()

    def __call__(self, nodes: Mapping[int, Node], seeds: Sequence[int]) -> dict[int, list[Step]]:
        """Draw the steps of a node for some questions of the chunk.

        Args:
            nodes: By the question's number.
            seeds: Of all questions.

        Returns:
            By number, steps of different texts and without confidence; a text without words is none.
        """
        found: dict[int, dict[str, Step]] = {number: {} for number in nodes}
        wanted = {number: 1 if node.depth + 1 >= self._depth else self._many.answers for number, node in nodes.items()}
        for _ in range(ATTEMPTS):
            for last in (False, True):
                short = {n: node for n, node in nodes.items() if len(found[n]) < wanted[n] and last == (node.depth + 1 >= self._depth)}
                for number, steps in self._draw(short, seeds, last=last).items():
                    for step in steps:
                        if step.text and len(found[number]) < wanted[number]:
                            found[number].setdefault(step.text, step)
        return {number: list(steps.values()) for number, steps in found.items()}

    def _draw(self, nodes: Mapping[int, Node], seeds: Sequence[int], *, last: bool) -> dict[int, list[Step]]:
        """Draw as many steps for each node as are wanted of it, whatever they are."""
        if not nodes:
            return {}
        own: list[list[int]] = [[] for _ in self._rests]
        rests: list[list[list[int]]] = [[] for _ in self._rests]
        for number, node in nodes.items():
            own[number] = [_seed(seeds[number], self._draws[number])]
            rests[number] = [[*self._rests[number], *node.ids]]
            self._draws[number] += 1
        longest = max(self._longest - len(node.ids) for node in nodes.values())
        ends = self._ends if last else self._step_ends
        answers = self._reader.go_on(rests, self._one if last else self._many, max_new_tokens=longest, seeds=own, ends=ends)
        return {number: [self._step(number, node, answer) for answer in answers[number][0]] for number, node in nodes.items()}

    def _step(self, number: int, node: Node, answer: Generated) -> Step:
        assert answer.model_logps is not None
        room = self._longest - len(node.ids)
        tokens, logps = answer.tokens[:room], answer.model_logps[:room]
        self.tokens[number] += len(tokens)
        ended = tokens[-1] in self._ends
        ids = tuple(tokens[:-1] if ended else tokens)
        return Step(
            ids=ids,
            text=self._processor.decode([*node.ids, *ids], skip_special_tokens=True).strip(),
            logp=sum(logps),
            tokens=len(logps),
            confidence=0.0,
            last=ended or len(tokens) == room,
            ended=ended,
        )


def _seed(seed: int, draw: int) -> int:
    """The seed of a question's draw."""
    return int(fold_in(torch.tensor([seed]), draw)) & (2**63 - 1)
