"""The reward of a response: what a multimodal LLM's logits say when it is asked whether the response is right.

r(x, y) = logit(yes) - logit(no) at the answer's place behind (images, prompt x, response y, question). No head of its own: the model
stays a stock checkpoint, and before any training it is a verifier (ours, after MADPO's reward model, arXiv:2510.05342).

Shape legend: R = responses, D = hidden width.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.data.messages import Message
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.engine.batch import collate_prompts
from mmalign.engine.head import LogitTransform, linear_token_logits
from mmalign.engine.logps import OutputHead, run_with_head
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.files import find_run_file, read_json_object
from mmalign.models.load import best_device, load_mllm
from mmalign.options.precision import Dtype, Quantization
from mmalign.options.rows import WordingOptions


class Prompted(Protocol):
    """What responses are given to; every row of ``data/rows.py`` with a prompt is one."""

    @property
    def images(self) -> Sequence[Image.Image]:
        """In the order of their placeholders."""

    @property
    def prompt(self) -> Sequence[Message]:
        """The turns before the response."""


def compute_rewards(model: nn.Module, batch: dict[str, Any], answers: tuple[int, int]) -> Tensor:
    """Compute the rewards of a batch in one forward pass, with gradient where grad mode is on.

    Args:
        model: A multimodal LLM, possibly wrapped by PEFT, DDP or FSDP.
        batch: From ``collate_prompts``, of prompts that ``RewardPrompts`` encoded.
        answers: Ids of the tokens for right and for wrong.

    Returns:
        (R,) float32, in the order of the batch's responses. The output head runs for two tokens at R places.
    """
    index = batch["layout"]["index"]

    def read(hidden: Tensor, head: OutputHead, transform: LogitTransform) -> Tensor:
        asked = hidden.index_select(0, index)
        right, wrong = (linear_token_logits(asked, head.weight, head.bias, torch.full_like(index, i), transform) for i in answers)
        return right - wrong

    return run_with_head(model, batch, read)


@torch.no_grad()
def score_rewards(model: nn.Module, encoded: Sequence[EncodedPrompt], prompts: RewardPrompts, *, shared: bool) -> list[list[float]]:
    """Score the responses of encoded prompts in one batch.

    Args:
        model: In eval mode.
        encoded: From ``prompts``.
        prompts: How they are asked about.
        shared: Whether responses share their prompt's row; see ``probe_rows``.
    """
    batch = collate_prompts(encoded, pad_token_id=prompts.processor.tokenizer.pad_token_id, shared=shared)
    rewards = iter(compute_rewards(model, send_to_device(batch, next(model.parameters()).device), prompts.answers).tolist())
    return [[next(rewards) for _ in prompt.responses] for prompt in encoded]


def read_wording(source: str, *, question: str | None = None, answers: Sequence[str] = ()) -> WordingOptions:
    """Say how a reward model is asked: as given, else as its training run was, else as a stock model is.

    Args:
        source: Its folder or hub id.
        question: Another question.
        answers: Other answers.
    """
    path = find_run_file(source)
    record = {} if path is None else read_json_object(path)
    recorded = {name: record["options"][name] for name in ("question", "answers")} if record.get("method") == "reward" else {}
    given = ({} if question is None else {"question": question}) | ({"answers": list(answers)} if answers else {})
    return WordingOptions(**{**recorded, **given})


class RewardModel:
    """Scores responses with a model that is not trained; the images and prompt of a row are run once for all its responses."""

    def __init__(self, model: Any, prompts: RewardPrompts, *, batch_size: int = 8, max_length: int | None = None) -> None:
        """Hold a model in eval mode; whether responses share their prompt's row is asked at the first rows."""
        self.model, self.prompts, self.batch_size, self.max_length = model, prompts, batch_size, max_length
        self.shared: bool | None = None

    @classmethod
    def load(cls, source: str, *, dtype: Dtype = "auto", quantization: Quantization = "none", batch_size: int = 8) -> Self:
        """Load a reward model that ``mmalign train reward`` has left, or any multimodal LLM; it is asked as ``read_wording`` says."""
        model, processor = load_mllm(source, dtype=dtype, quantization=quantization)
        return cls(model.to(best_device()), RewardPrompts(processor, read_wording(source)), batch_size=batch_size)

    def __call__(self, rows: Sequence[Prompted], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score the responses of each row.

        Args:
            rows: What was asked, with its images.
            responses: Texts, one or more for each row.

        Returns:
            The reward of each response, higher is better.
        """
        encoded = [
            self.prompts.encode(images=row.images, prompt=row.prompt, responses=texts, max_length=self.max_length)
            for row, texts in zip(rows, responses, strict=True)
        ]
        if self.shared is None and encoded:
            pad = self.prompts.processor.tokenizer.pad_token_id
            self.shared = probe_rows(self.model, encoded[:PROBED_ROWS], pad_token_id=pad).shared
        parts = [encoded[i : i + self.batch_size] for i in range(0, len(encoded), self.batch_size)]
        return [found for part in parts for found in score_rewards(self.model, part, self.prompts, shared=bool(self.shared))]
