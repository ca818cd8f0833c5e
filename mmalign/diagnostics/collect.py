"""Pairs through a model: log-probabilities of both responses, pooled states, and the states of a sample of tokens.

Shape legend: P = pairs, D = hidden width, L = decoder layers, K = sampled tokens. Responses in the order chosen, rejected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.batch import collate_prompts
from mmalign.engine.hidden_states import compute_response_states
from mmalign.engine.logps import ResponseLogps, compute_response_logps
from mmalign.engine.probe import probe_rows


@dataclass(frozen=True)
class PairLogps:
    """Token log-probabilities of pairs under one model, float32 on the CPU."""

    tokens: list[tuple[Tensor, Tensor]]
    """For each pair (T,) of the chosen and (T,) of the rejected response."""

    def sums(self) -> Tensor:
        """(P, 2) log p(response | images, prompt), float64."""
        return torch.tensor([[response.double().sum() for response in pair] for pair in self.tokens], dtype=torch.float64).view(-1, 2)

    def lengths(self) -> Tensor:
        """(P, 2) tokens of each response."""
        return torch.tensor([[len(response) for response in pair] for pair in self.tokens]).view(-1, 2)


@dataclass(frozen=True)
class PairReader:
    """How pairs are laid out for one model."""

    pad_token_id: int
    batch_size: int
    shared: bool = True

    def probed(self, model: nn.Module, pairs: Sequence[EncodedPrompt]) -> "PairReader":
        """Ask the model whether responses can share their prompt's row."""
        shared = probe_rows(model, pairs[:2], pad_token_id=self.pad_token_id).shared
        return PairReader(self.pad_token_id, self.batch_size, shared)

    def batches(self, model: nn.Module, pairs: Sequence[EncodedPrompt]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Give batches of pairs of about the same length, with their numbers."""
        device = next(model.parameters()).device
        order = sorted(range(len(pairs)), key=lambda i: pairs[i].num_tokens)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = collate_prompts([pairs[i] for i in numbers], pad_token_id=self.pad_token_id, shared=self.shared)
            yield numbers, send_to_device(batch, device)


@torch.no_grad()
def score_pairs(model: nn.Module, pairs: Sequence[EncodedPrompt], reader: PairReader) -> PairLogps:
    """Score every pair under a model."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for numbers, batch in reader.batches(model, pairs):
        _keep(found, numbers, compute_response_logps(model, batch))
    return PairLogps([found[i] for i in range(len(pairs))])


@torch.no_grad()
def pool_pairs(model: nn.Module, pairs: Sequence[EncodedPrompt], reader: PairReader) -> Tensor:
    """Average the last hidden states of each response.

    The state that predicts a response's first token has seen the prompt alone and is left out, where there is another: shared by
    chosen and rejected, its share in the mean would only say how long a response is.

    Returns:
        (P, 2, D) float32 on the CPU.
    """
    found: dict[int, Tensor] = {}
    for numbers, batch in reader.batches(model, pairs):
        states = compute_response_states(model, batch)
        parts = states.logps.scored.split(states.final.float())
        pooled = [(part[1:] if len(part) > 1 else part).mean(0).cpu() for part in parts]
        found |= {number: torch.stack(pooled[2 * i : 2 * i + 2]) for i, number in enumerate(numbers)}
    return torch.stack([found[i] for i in range(len(pairs))])


@dataclass(frozen=True)
class TokenStates:
    """States that predict a sample of response tokens, on the CPU; the same tokens for every model."""

    final: Tensor
    """(K, D)"""
    layers: Tensor
    """(L, K, D)"""
    is_chosen: Tensor
    """(K,) booleans."""


@torch.no_grad()
def sample_states(model: nn.Module, pairs: Sequence[EncodedPrompt], reader: PairReader, *, max_tokens: int) -> TokenStates:
    """Keep all layers' states of the first pairs' responses, up to ``max_tokens`` tokens."""
    finals, layers, chosen, total = [], [], [], 0
    for start in range(0, len(pairs), reader.batch_size):
        if total >= max_tokens:
            break
        for _, batch in reader.batches(model, pairs[start : start + reader.batch_size]):
            states = compute_response_states(model, batch, layers=True)
            assert states.layers is not None
            finals.append(states.final.cpu())
            layers.append(states.layers.cpu())
            chosen.append((states.logps.scored.response % 2 == 0).cpu())
            total += len(states.final)
    return TokenStates(torch.cat(finals)[:max_tokens], torch.cat(layers, 1)[:, :max_tokens], torch.cat(chosen)[:max_tokens])


def _keep(found: dict[int, tuple[Tensor, Tensor]], numbers: Sequence[int], logps: ResponseLogps) -> None:
    responses = [values.cpu() for values in logps.per_response()]
    for i, number in enumerate(numbers):
        found[number] = (responses[2 * i], responses[2 * i + 1])
