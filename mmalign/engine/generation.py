"""The sampler: answers to questions about images, greedy, drawn or searched for, several per question.

Images and shared words run once, then every question's own words, then its answers, which share both. Families that can't share a
prompt's cache (see ``prefix.py``) run each answer as a whole row of stock ``generate``, with its image encoded once all the same.

Shape legend: R = rows, V = vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, JanusForConditionalGeneration, LogitsProcessor, PreTrainedModel

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prefixes
from mmalign.engine.beams import Beams, search_beams
from mmalign.engine.choosing import Decoding, Greedy, answer_seeds
from mmalign.engine.prefix import Prefix, Rows, joined, run_prefixes, run_rests
from mmalign.engine.vision import encode_images, feature_inputs


@dataclass(frozen=True)
class Generated:
    """One answer."""

    ids: list[int]
    """Its tokens, without the one that ended it."""
    end: int | None
    """The token that ended it; None: it was cut at the longest length."""
    model_logps: list[float] | None
    """Log-probability of each of ``ids`` and then of ``end`` under the model itself: at temperature 1, whatever ruled tokens out.

    None for beams of families that can't share a prompt's cache.
    """

    @property
    def tokens(self) -> list[int]:
        """All of it, with the token that ended it."""
        return self.ids if self.end is None else [*self.ids, self.end]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    encoded: Sequence[EncodedPrompt],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    decoding: Decoding | Beams = Greedy(),  # noqa: B008, frozen
    seeds: Sequence[Sequence[int]] | None = None,
    shared: bool = True,
    ends: Sequence[int] | None = None,
    prefix: Prefix | None = None,
) -> list[list[list[Generated]]]:
    """Answer every question, until a token that ends it or ``max_new_tokens``.

    Args:
        model: A multimodal LLM, or a text model, in eval mode.
        encoded: From ``encode_questions``; their responses are the rests of the questions.
        max_new_tokens: Longest answer.
        pad_token_id: The tokenizer's.
        decoding: ``Greedy``, ``Sampling``, ``Beams``, or another ``Decoding``.
        seeds: For each prompt, for each of its questions, the seed of its answers, 0 to 2**63 - 1; 0 if not given. With its
            number each answer has a seed of its own, and is the same in every batch, up to rounding.
        shared: Whether rows share their prompt's cache; see ``probe_prefix``.
        ends: Tokens that end an answer; None: those of the model, which end its turn.
        prefix: What ``run_prefixes`` left of the same prompts, where they are asked again; it is kept.

    Returns:
        For each prompt, for each of its questions, its answers.
    """
    ends = end_tokens(model) if ends is None else ends
    if not shared:
        rows = _StockRows(model, encoded, pad_token_id=pad_token_id, max_new_tokens=max_new_tokens, ends=ends)
        new = iter(rows.search(decoding) if isinstance(decoding, Beams) else rows.decode(decoding, _seeds(encoded, seeds)))
        return [[[next(new) for _ in range(decoding.answers)] for _ in prompt.responses] for prompt in encoded]
    again = prefix is not None
    prefix = prefix or run_prefixes(model, encoded, pad_token_id=pad_token_id)
    answers: list[list[list[Generated]]] = [[[] for _ in prompt.responses] for prompt in encoded]
    groups = _group_questions(encoded, by_length=prefix.counts_tokens)
    for number, group in enumerate(groups):
        rests = [encoded[i].responses[j] for i, j in group]
        open_rows = run_rests(prefix, [i for i, _ in group], rests, keep=again or number < len(groups) - 1)
        if isinstance(decoding, Beams):
            found = _search(open_rows, decoding, max_new_tokens, ends)
        else:
            own = torch.tensor([0 if seeds is None else seeds[i][j] for i, j in group])
            found = _decode(open_rows, decoding, own, max_new_tokens, ends)
        for (i, j), said in zip(group, found, strict=True):
            answers[i][j] = said
    return answers


def with_answers(question: EncodedPrompt, answers: Sequence[Generated], *, token_type: int) -> EncodedPrompt:
    """The question with answers behind it, token by token as they were sampled, all of them scored."""
    prompt, ids = joined(question, 0), [answer.tokens for answer in answers]
    return EncodedPrompt(
        prefix_ids=prompt.prefix_ids,
        responses=ids,
        scored=[[True] * len(tokens) for tokens in ids],
        token_types=prompt.token_types,
        images=prompt.images,
        num_images=prompt.num_images,
        response_types=[{key: [token_type] * len(tokens) for key in prompt.token_types} for tokens in ids],
    )


def _seeds(encoded: Sequence[EncodedPrompt], seeds: Sequence[Sequence[int]] | None) -> Tensor:
    """The seeds of all questions, in order."""
    if seeds is None:
        return torch.zeros(sum(len(prompt.responses) for prompt in encoded), dtype=torch.long)
    return torch.tensor([seed for row in seeds for seed in row])


def _group_questions(encoded: Sequence[EncodedPrompt], *, by_length: bool) -> list[list[tuple[int, int]]]:
    """All questions at once, or those of equal length together."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for i, prompt in enumerate(encoded):
        for j, rest in enumerate(prompt.responses):
            groups.setdefault(len(rest) if by_length else 0, []).append((i, j))
    return [groups[key] for key in sorted(groups)]


def _decode(rows: Rows, decoding: Decoding, seeds: Tensor, max_new_tokens: int, ends: Sequence[int]) -> list[list[Generated]]:
    """Continue each row token by token, as often as there are answers; rows that have ended are left out when they are half of all."""
    device, count = rows.position.device, decoding.answers
    if count > 1:
        rows.select(torch.arange(len(seeds), device=device).repeat_interleave(count))
    own = answer_seeds(seeds.to(device), count)
    ending = torch.tensor(ends, device=device, dtype=torch.long)
    places = torch.arange(len(own), device=device)
    running = torch.ones_like(places, dtype=torch.bool)
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    ended = places.new_full(places.shape, -1)
    while True:
        token = decoding.choose(rows.logits, own, len(tokens))
        logp = _logps_of(rows.logits, token)
        logps.append(logp.new_zeros(ended.shape).index_copy(0, places, logp))
        tokens.append(ended.index_copy(0, places, torch.where(running, token, -1)))
        running = running & ~torch.isin(token, ending)
        left = int(running.sum())
        if len(tokens) == max_new_tokens or not left:
            break
        if 2 * left <= len(running):
            kept = running.nonzero()[:, 0]
            rows.select(kept)
            places, own, running, token = places[kept], own[kept], running[kept], token[kept]
        rows.step(token)
    said = _read(torch.stack(tokens, 1).tolist(), torch.stack(logps, 1).tolist(), ends)
    return [said[start : start + count] for start in range(0, len(said), count)]


def _search(rows: Rows, beams: Beams, max_new_tokens: int, ends: Sequence[int]) -> list[list[Generated]]:
    found = search_beams(rows, beams, ends=ends, max_new_tokens=max_new_tokens)
    return [_read([list(one.ids) for one in answers], [list(one.logps) for one in answers], ends) for answers in found]


def _logps_of(logits: Tensor, token: Tensor) -> Tensor:
    """(R,) log-probabilities of one token of each row of (R, V) logits."""
    logits = logits.float()
    return logits.gather(-1, token[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _read(tokens: Sequence[list[int]], logps: Sequence[list[float]], ends: Sequence[int]) -> list[Generated]:
    """Cut each row behind its end; tokens below 0 stand behind one."""
    said = []
    for ids, values in zip(tokens, logps, strict=True):
        length = next((i for i, token in enumerate(ids) if token in ends or token < 0), len(ids))
        end = ids[length] if length < len(ids) else None
        said.append(Generated(ids[:length], end, values[: length + (end is not None)]))
    return said


def end_tokens(model: PreTrainedModel) -> list[int]:
    """List the tokens that end a model's generation."""
    ends = model.generation_config.eos_token_id
    ends = model.config.get_text_config().eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


class _StockRows:
    """Every answer as a whole row of the model's own ``generate``; features of an image repeated for its rows."""

    def __init__(
        self, model: Any, encoded: Sequence[EncodedPrompt], *, pad_token_id: int, max_new_tokens: int, ends: Sequence[int]
    ) -> None:
        self._model, self._encoded, self._pad, self._ends = model, encoded, pad_token_id, ends
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": pad_token_id}
        self._options = {**options, "eos_token_id": list(ends) or None}

    def decode(self, decoding: Decoding, seeds: Tensor) -> list[Generated]:
        inputs = self._inputs(decoding.answers)
        own = answer_seeds(seeds.to(self._model.device), decoding.answers)
        chooser = _Chooser(decoding, own, start=inputs["input_ids"].shape[1])
        ids = self._new(inputs, num_beams=1, logits_processor=[chooser])
        return _read(ids, torch.stack(chooser.logps, 1).tolist(), self._ends)

    def search(self, beams: Beams) -> list[Generated]:
        options = {"num_beams": beams.beams, "length_penalty": beams.length_penalty, "num_return_sequences": beams.answers}
        ids = self._new(self._inputs(1), **options)
        said = _read(ids, [[] for _ in ids], self._ends)
        return [Generated(one.ids, one.end, None) for one in said]

    def _new(self, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
        # Janus' own loses the logits processor on the way to the usual one.
        owner = GenerationMixin if isinstance(self._model, JanusForConditionalGeneration) else type(self._model)
        published = self._model.generation_config
        # What a checkpoint is published with, such as a penalty of repetition, would change scores before they are chosen from.
        self._model.generation_config = GenerationConfig(**self._options)
        try:
            out = owner.generate(self._model, **inputs, **options)
        finally:
            self._model.generation_config = published
        new: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
        return new

    def _inputs(self, answers: int) -> dict[str, Any]:
        rows = list(self._whole_rows(answers))
        batch = send_to_device(collate_prefixes(rows, pad_token_id=self._pad), self._model.device)
        del batch["images"], batch["layout"]
        once = send_to_device(collate_prefixes(self._encoded, pad_token_id=self._pad), self._model.device)
        repeats = torch.tensor([answers * len(prompt.responses) for prompt in self._encoded], device=self._model.device)
        return {**batch, **feature_inputs(encode_images(self._model, once), repeats)}

    def _whole_rows(self, answers: int) -> Iterator[EncodedPrompt]:
        for prompt in self._encoded:
            for number in range(len(prompt.responses)):
                yield from [joined(prompt, number)] * answers


class _Chooser(LogitsProcessor):
    """Chooses inside stock ``generate``: the token that is chosen is left as the only one."""

    def __init__(self, decoding: Decoding, seeds: Tensor, *, start: int) -> None:
        self._decoding, self._seeds, self._start = decoding, seeds, start
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self._decoding.choose(scores, self._seeds, input_ids.shape[1] - self._start)
        self.logps.append(_logps_of(scores, tokens))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)
