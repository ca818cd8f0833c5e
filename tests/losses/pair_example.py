"""A worked pair, and batches of random ones: token log-probabilities as the engine gives them.

The worked pair, in nats: policy -12.3 and -15.2, reference -13.1 and -14.0, 10 and 14 tokens. Log-ratios h_w = 0.8 and h_l = -1.2.
The rejected response's last four tokens, which the chosen one has no partner for, hold -4.2 (policy) and -3.8 (reference).
"""

import dataclasses

import torch
from torch import Tensor

from mmalign.losses.pair_kernel import PairBatch
from mmalign.losses.scores import Logps, ScoredTokens

F64 = torch.float64


def tokens_with_sum(total: float, number: int, *, seed: int) -> Tensor:
    """Uneven token log-probabilities that add up to ``total``."""
    share = 0.2 + torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return total * share / share.sum()


def make_batch(policy: list[Tensor], reference: list[Tensor] | None, *, token_ids: Tensor | None = None, **fields: object) -> PairBatch:
    """Lay responses (chosen, rejected, chosen, ...) out as the engine does."""
    lengths = torch.tensor([len(values) for values in policy], dtype=torch.long)
    response = torch.repeat_interleave(torch.arange(len(policy)), lengths)
    ids = torch.arange(len(response)) if token_ids is None else token_ids
    tokens = ScoredTokens(response, len(policy), ids)
    return PairBatch(tokens, logps(tokens, policy), None if reference is None else logps(tokens, reference), **fields)  # type: ignore[arg-type]


def logps(tokens: ScoredTokens, values: list[Tensor]) -> Logps:
    flat = torch.cat(values) if values else torch.zeros(0, dtype=F64)
    return Logps(tokens.sums(flat), flat)


def worked_pair(**columns: float) -> PairBatch:
    def rejected(head: float, tail: float) -> Tensor:
        return torch.cat([tokens_with_sum(head, 10, seed=1), tokens_with_sum(tail, 4, seed=2)])

    policy = [tokens_with_sum(-12.3, 10, seed=3), rejected(-11.0, -4.2)]
    reference = [tokens_with_sum(-13.1, 10, seed=4), rejected(-10.2, -3.8)]
    return make_batch(policy, reference, columns={name: torch.tensor([value], dtype=F64) for name, value in columns.items()})


COLUMNS = {
    "score_chosen": [0.9, 2.0, -0.4, 1.0, 0.0],
    "score_rejected": [0.3, -1.0, 1.6, 1.0, -9.0],
    "visits_chosen": [12.0, 10.0, 3.0, 0.0, 5.0],
    "visits_rejected": [4.0, 9.0, 7.0, 0.0, 0.0],
    "severity": [2.0, 0.5, 1.0, 0.0, 3.0],
    "ls_factor": [0.5, 0.0, 1.0, 0.3, 0.9],
}


def random_pairs(number: int = 5, *, seed: int = 0) -> PairBatch:
    """Pairs of uneven length whose first tokens are sometimes shared, with every column."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (2 * number,), generator=generator).tolist()
    policy, reference = ([-3 * torch.rand(n, generator=generator, dtype=F64) for n in lengths] for _ in range(2))
    ids = torch.randint(0, 2, (sum(lengths),), generator=generator)
    columns = {name: torch.tensor(values[:number], dtype=F64) for name, values in COLUMNS.items()}
    return make_batch(policy, reference, token_ids=ids, columns=columns)


def split(batch: PairBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Policy's and reference's token log-probabilities and the token ids of each response."""
    assert batch.reference is not None
    lengths = batch.tokens.lengths().tolist()
    parts = (batch.policy.token_logps, batch.reference.token_logps, batch.tokens.token_ids)
    policy, reference, ids = (list(part.split(lengths)) for part in parts if part is not None)
    return policy, reference, ids


def rearrange(batch: PairBatch, order: list[int], columns: dict[str, Tensor]) -> PairBatch:
    """The responses of a batch in another order, or some of them, with these columns."""
    policy, reference, ids = ([part[i] for i in order] for part in split(batch))
    return make_batch(policy, reference, token_ids=torch.cat(ids), columns=columns)


def take(batch: PairBatch, pairs: list[int]) -> PairBatch:
    """Some pairs of a batch as a batch of their own."""
    order = [number for i in pairs for number in (2 * i, 2 * i + 1)]
    return rearrange(batch, order, {name: values[pairs] for name, values in batch.columns.items()})


def swapped(batch: PairBatch) -> PairBatch:
    """Chosen and rejected exchanged, in the columns too."""
    order = [i ^ 1 for i in range(batch.tokens.num_responses)]
    other = {"chosen": "rejected", "rejected": "chosen"}
    sided = [name for name in batch.columns if name.rpartition("_")[2] in other]
    columns = dict(batch.columns) | {name: batch.columns[f"{name.split('_')[0]}_{other[name.split('_')[1]]}"] for name in sided}
    return rearrange(batch, order, columns)


def with_columns(batch: PairBatch, **columns: float) -> PairBatch:
    """The same value for every pair."""
    number = batch.tokens.num_responses // 2
    return dataclasses.replace(batch, columns={name: torch.full((number,), value, dtype=F64) for name, value in columns.items()})


def at_reference(batch: PairBatch) -> PairBatch:
    """The policy of the first step: a copy of the reference."""
    assert batch.reference is not None
    return dataclasses.replace(batch, policy=batch.reference)


def share_prefixes(batch: PairBatch) -> PairBatch:
    """Give tokens with the same past the same log-probabilities, as a model does."""
    policy, reference, ids = split(batch)
    for chosen in range(0, len(policy), 2):
        rejected = chosen + 1
        for i in range(min(len(ids[chosen]), len(ids[rejected]))):
            if ids[chosen][i] != ids[rejected][i]:
                break
            policy[rejected][i], reference[rejected][i] = policy[chosen][i], reference[chosen][i]
    return make_batch(policy, reference, token_ids=batch.tokens.token_ids, columns=batch.columns)
