"""How spread out is what a policy learned beyond its reference? Differential information (DID, arXiv:2505.23761).

q(y) = pi(y) / ref(y), normalised over the responses y. Its entropy is low where the policy sharpened a few responses, high where it
smoothed. Over all sequences it can't be had; here y runs over a small set of responses, or over the vocabulary at one place.

Shape legend: K = tokens, V = vocabulary, N = responses of a set.
"""

import torch
from torch import Tensor

from mmalign.engine.head import chunks
from mmalign.engine.hidden_states import OutputHead
from mmalign.errors import UserError


def information_entropy(log_ratio: Tensor) -> Tensor:
    """Compute the entropy of q over a set of candidates.

    Args:
        log_ratio: (..., N) log pi - log ref of each candidate; constants cancel.

    Returns:
        (...) float64 entropies in nats, from 0 to log N.
    """
    log_q = log_ratio.double().log_softmax(-1)
    # 0 log 0 is 0: a candidate may be as good as impossible.
    return -torch.where(log_q.exp() > 0, log_q.exp() * log_q, 0.0).sum(-1)


@torch.no_grad()
def token_information_entropy(policy_states: Tensor, policy: OutputHead, reference_states: Tensor, reference: OutputHead) -> Tensor:
    """Compute the entropy of q over the vocabulary at each token, chunk by chunk.

    Args:
        policy_states: (K, D) as the policy's head reads them.
        policy: Its head.
        reference_states: (K, D') of the reference.
        reference: Its head; where it has more rows (padding), those are cut off.

    Returns:
        (K,) float64 in nats, at most log V; equal models give exactly that.

    Raises:
        ValueError: If there are different numbers of tokens.
    """
    if len(policy_states) != len(reference_states):
        raise UserError(f"{len(policy_states)} tokens of the policy and {len(reference_states)} of the reference; expected as many")
    size = min(len(policy.head.weight), len(reference.head.weight))
    device = policy.head.weight.device
    found = [torch.zeros(0, dtype=torch.float64)]
    for part in chunks(len(policy_states), size) if len(policy_states) else []:
        mine = policy.logits(policy_states[part].to(device))[:, :size]
        other = reference.logits(reference_states[part].to(device))[:, :size]
        found.append(information_entropy(mine - other).cpu())
    return torch.cat(found)
