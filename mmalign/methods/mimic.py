"""Mimic distillation: the student's next-token distribution is pulled to the teacher's, on the responses of given chats or on all text.

After LLaVA-MoD (arXiv:2408.15881, section 3.3).

Shape legend: K = scored tokens of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import nn

from mmalign.data.encode import EncodedPrompt, encode_chat, image_token_ids
from mmalign.data.last_answer import with_answer
from mmalign.data.rows import CHAT_COLUMNS, read_chat
from mmalign.data.verdicts import describe_reading
from mmalign.engine.batch import collate_prompts
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.engine.student import compute_student_output
from mmalign.errors import UserError
from mmalign.methods.on_policy import AnswerSampler, collate_answers
from mmalign.methods.policy import load_policy
from mmalign.methods.teacher_panel import build_teacher
from mmalign.methods.teachers import LiveTeacher, TokenTeacher
from mmalign.methods.visual_advantage import VisualAdvantage
from mmalign.options.methods import MimicLossOptions, MimicOptions
from mmalign.training.method import Method, MethodOutput, Sum


class _Row(NamedTuple):
    """A conversation as its readers take it; None: as the student does, or nobody."""

    own: EncodedPrompt
    """The student."""
    part: Any
    """The teacher."""
    weakened: EncodedPrompt | None = None
    """The teacher, with weakened images."""


_BESIDE = ("teacher", "weakened", "on_policy")
"""Parts of a batch that the student doesn't read."""


class MimicMethod(Method):
    """Divergence from a teacher, and cross-entropy, summed over scored tokens: the responses', or all text."""

    name = "mimic"
    summary = "a multimodal LLM, distilled from a teacher on chats about images"
    intended_use = "As a small model that answers like its teacher, and as the start of preference training."

    def __init__(self, processor: Any, options: MimicLossOptions, *, teacher: TokenTeacher, seed: int = 0) -> None:
        """Keep the student's processor, divergence and weights, and whom to mimic; ``seed`` is of sampled answers."""
        self.processor, self.options, self.teacher = processor, options, teacher
        self.columns = (*CHAT_COLUMNS, *teacher.columns)
        self.sampler = None
        if options.on_policy:
            pad, barred = processor.tokenizer.pad_token_id, [*image_token_ids(processor), *teacher.barred]
            self.sampler = AnswerSampler(options, pad_token_id=pad, size=teacher.vocabulary, barred=barred, seed=seed)
        self.advantage = None
        if options.visual_advantage != "off":
            assert isinstance(teacher, LiveTeacher), "the options refuse other teachers"
            self.advantage = VisualAdvantage(options, teacher)

    @classmethod
    def build(cls, options: MimicOptions) -> tuple[nn.Module, Any, Method]:
        """Load student and teacher.

        Raises:
            ValueError: If the teacher doesn't share the student's tokens.
        """
        model, processor = load_policy(options)
        return model, processor, cls(processor, options, teacher=build_teacher(options, model, processor), seed=options.seed)

    def check_dataset(self, dataset: Dataset) -> None:
        """Let the teacher look at its columns.

        Raises:
            ValueError: If they are missing or stale.
        """
        self.teacher.check_dataset(dataset)

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> _Row:
        row = read_chat(raw, index=index, image_root=self.options.image_root)
        options = self.options
        every = options.distil == "all"
        student = encode_chat(self.processor, row, answer_end=options.answer_end, max_length=options.max_length, every_token=every)
        weakened = None if self.advantage is None else self.advantage.encode(row)
        return _Row(student, self.teacher.encode(raw, row, student), weakened)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row and tokenise it for student and teacher."""
        self._encode(raw, index)

    def check_inputs(self) -> Mapping[str, Any]:
        """How student and teacher read chats."""
        reading = describe_reading(self.processor, self.options, answer_end=self.options.answer_end)
        weakened = {} if self.advantage is None else {"weaken": [self.options.weaken, self.options.weaken_seed]}
        return {**reading, "distil": self.options.distil, "teacher": self.teacher.check_inputs(), **weakened}

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str:
        """Compare the first rows with both models' own forward: see ``check_rows``.

        Raises:
            ValueError: If the rows can't be read, or the numbers differ.
        """
        encoded = [self._encode(row) for row in rows]
        own, packed = [row.own for row in encoded[:PROBED_ROWS]], self.options.row_tokens is not None
        told = check_rows(model, own, pad_token_id=self.processor.tokenizer.pad_token_id, packed=packed)
        lines = [told, self.teacher.start(model, [(row.own, row.part) for row in encoded], packed=packed)]
        if self.sampler is not None:
            lines.append(self.sampler.start(model, encoded[0].own))
        return "\n".join(lines)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenise conversations into one batch, with what the teacher reads beside it under ``teacher``."""
        encoded = [self._encode(row) for row in rows]
        # What is laid out is only known once the student has answered.
        return self._lay_out(encoded) if self.sampler is None else {"rows": encoded}

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Put the student's own answers in the place of some rows' last ones."""
        if self.sampler is None:
            return batch
        rows: list[_Row] = batch["rows"]
        given = [row.own for row in rows]
        answers, said, unread = self.sampler.draw(model, given, step=step), list(rows), []
        for number, answer in enumerate(answers):
            if answer is None:
                continue
            try:
                said[number] = self._answered(rows[number], answer.tokens)
            except UserError:
                # A sampled answer may spell an image's place, or what a template drops.
                answers[number] = None
            unread.append(answers[number] is None)
        told = collate_answers(given, answers)
        return self._lay_out(said) | {"on_policy": told | {"unread": torch.tensor(unread, dtype=torch.float32)}}

    def _answered(self, row: _Row, ids: Sequence[int]) -> _Row:
        """The row with another last answer.

        Raises:
            ValueError: If the teacher can't read it.
        """
        weakened = None if row.weakened is None else with_answer(row.weakened, ids)
        return _Row(with_answer(row.own, ids), self.teacher.answered(row.part, ids), weakened)

    def _lay_out(self, rows: Sequence[_Row]) -> dict[str, Any]:
        pad, row_tokens = self.processor.tokenizer.pad_token_id, self.options.row_tokens
        batch = collate_prompts([row.own for row in rows], pad_token_id=pad, row_tokens=row_tokens)
        batch["teacher"] = self.teacher.collate([row.part for row in rows])
        weakened = [row.weakened for row in rows if row.weakened is not None]
        return batch | ({"weakened": self.advantage.collate(weakened)} if self.advantage is not None else {})

    def num_items(self, batch: dict[str, Any]) -> int:
        """Scored tokens, or the groups of them that a teacher with another tokenizer is compared by."""
        return self.teacher.num_compared(batch["layout"], batch["teacher"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum over scored tokens of kl_weight * temperature^2 * divergence - ce_weight * log p, the latter of the data's own tokens.

        Of a teacher with another tokenizer, the divergence is summed over groups of tokens. With a visual advantage each token's
        divergence is weighed.
        """
        options, sampled = self.options, batch.get("on_policy")
        inputs = {key: value for key, value in batch.items() if key not in _BESIDE}
        # A conversation is one plain row: the token itself stands right behind the state that predicts it.
        shift = int(options.legacy_mask)
        taught = self.teacher.ask(model, inputs, batch["teacher"], shift=shift)
        weighed = None if self.advantage is None else self.advantage.weigh(model, inputs, batch["weakened"], taught)
        output = compute_student_output(
            model,
            inputs,
            taught,
            options,
            vocabulary=self.teacher.vocabulary,
            index=inputs["layout"]["index"] + shift,
            with_logps=options.ce_weight > 0,
        )
        count, divergence = len(output.divergence), output.divergence.detach()
        metrics = {"loss/uld" if options.aligned else "loss/kl": Sum(divergence.sum(), count)}
        loss = output.divergence.sum() if weighed is None else (weighed.weights * output.divergence).sum()
        loss = options.kl_weight * options.temperature**2 * loss
        if output.logps is not None:
            given = output.logps if sampled is None else output.logps[~sampled["token"]]
            nll = -given.sum()
            loss = loss + options.ce_weight * nll
            metrics["loss/nll"] = Sum(nll.detach(), len(given))
        if sampled is not None:
            names = ("length", "ended", "unread") if options.aligned else ("length", "ended")
            metrics |= {f"on_policy/{name}": Sum(sampled[name].sum(), len(sampled[name])) for name in names}
        if weighed is not None:
            metrics |= weighed.metrics(divergence)
        return MethodOutput(loss, metrics)
