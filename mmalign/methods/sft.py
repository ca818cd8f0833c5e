"""Supervised fine-tuning: cross-entropy on the assistant's tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.rows import CHAT_COLUMNS, read_chat
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.engine.method import MethodOutput, Sum
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.options.rows import AnswerEnd


class SupervisedMethod:
    """Mean negative log-likelihood of assistant tokens, over all tokens of the step."""

    name = "sft"
    columns = CHAT_COLUMNS

    def __init__(
        self, processor: Any, *, max_length: int | None = None, image_root: Path | None = None, answer_end: AnswerEnd = "token"
    ) -> None:
        """Keep the processor; ``max_length`` counts image tokens."""
        self.processor = processor
        self.max_length = max_length
        self.answer_end = answer_end
        self.image_root = image_root

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        row = read_chat(raw, index=index, image_root=self.image_root)
        return encode_chat(self.processor, row, answer_end=self.answer_end, max_length=self.max_length)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row and tokenise it."""
        self._encode(raw, index)

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Compare with the model's own forward: see ``check_rows``.

        Raises:
            ValueError: If the numbers differ.
        """
        encoded = [self._encode(row) for row in rows[:PROBED_ROWS]]
        return check_rows(model, encoded, pad_token_id=self.processor.tokenizer.pad_token_id)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenise conversations into one batch."""
        return collate_prompts([self._encode(row) for row in rows], pad_token_id=self.processor.tokenizer.pad_token_id)

    def num_items(self, batch: dict[str, Any]) -> int:
        """Scored tokens."""
        return len(batch["layout"]["target"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of -log p over the batch's assistant tokens."""
        token_logps = compute_response_logps(model, batch).token_logps
        nll = -token_logps.sum()
        return MethodOutput(nll, {"loss/nll": Sum(nll.detach(), len(token_logps))})
