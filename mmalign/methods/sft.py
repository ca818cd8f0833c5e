"""Supervised fine-tuning: cross-entropy on the assistant's tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import CHAT_COLUMNS, read_chat
from mmalign.data.verdicts import describe_reading
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.methods.policy import load_policy
from mmalign.options.methods import ChatOptions, SftOptions
from mmalign.training.method import Method, MethodOutput, Sum


class SupervisedMethod(Method):
    """Mean negative log-likelihood of assistant tokens, over all tokens of the step."""

    name = "sft"
    summary = "a multimodal LLM, fine-tuned on chats about images"
    intended_use = "As the start and the reference of preference training, and as the baseline that its results are compared with."
    columns: Sequence[str] = CHAT_COLUMNS

    def __init__(self, processor: Any, options: ChatOptions | None = None) -> None:
        """Keep the processor, and how chats are read."""
        self.processor = processor
        self.options = options or ChatOptions()

    @classmethod
    def build(cls, options: SftOptions) -> tuple[nn.Module, Any, Method]:
        """Load the model."""
        model, processor = load_policy(options)
        return model, processor, cls(processor, options)

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        row = read_chat(raw, index=index, image_root=self.options.image_root)
        return encode_chat(self.processor, row, answer_end=self.options.answer_end, max_length=self.options.max_length)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row and tokenise it."""
        self._encode(raw, index)

    def check_inputs(self) -> Mapping[str, Any]:
        """How chats are read."""
        return describe_reading(self.processor, self.options, answer_end=self.options.answer_end)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Compare with the model's own forward: see ``check_rows``.

        Raises:
            ValueError: If the numbers differ.
        """
        encoded, packed = [self._encode(row) for row in rows[:PROBED_ROWS]], self.options.row_tokens is not None
        return check_rows(model, encoded, pad_token_id=self.processor.tokenizer.pad_token_id, packed=packed)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenise conversations into one batch."""
        pad, row_tokens = self.processor.tokenizer.pad_token_id, self.options.row_tokens
        return collate_prompts([self._encode(row) for row in rows], pad_token_id=pad, row_tokens=row_tokens)

    def num_items(self, batch: dict[str, Any]) -> int:
        """Scored tokens."""
        return len(batch["layout"]["target"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of -log p over the batch's assistant tokens."""
        token_logps = compute_response_logps(model, batch).token_logps
        nll = -token_logps.sum()
        return MethodOutput(nll, {"loss/nll": Sum(nll.detach(), len(token_logps))})
