"""Preference training over several scored responses of each prompt: (images, prompt, responses, scores).

Shape legend: B = prompts in the batch, N = most responses of a prompt, R = responses in the batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.data.rows import LIST_COLUMNS, ListRow, read_list
from mmalign.errors import UserError
from mmalign.losses.list_kernel import ListBatch, ListObjective, compute_list_rewards, list_objective_loss, pad_lists
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.policy_gradient import token_log_ratios
from mmalign.losses.reasoning_steps import StepKind
from mmalign.methods.responses import ResponsesMethod, mean_over_processes
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions
from mmalign.training.method import MethodOutput, Sum


class ListwiseMethod(ResponsesMethod[ListObjective]):
    """ADPO, Plackett-Luce, in-context ranking and preference trees; DisCO and GRPO on groups that a policy sampled."""

    name = "listwise"
    summary = "a multimodal LLM, trained on lists of scored responses"
    intended_use = "For research on hallucination: to be compared with the model that it started from."
    columns = LIST_COLUMNS
    registry = LIST_OBJECTIVES
    lists = True

    def __init__(
        self, processor: Any, options: ListLossOptions, *, reference: Reference | None, reference_fingerprint: str | None = None
    ) -> None:
        """Keep the parts; see ``ResponsesMethod``."""
        super().__init__(processor, options, reference=reference, reference_fingerprint=reference_fingerprint)
        self.steps = sorted({named.objective.steps for named in self.objectives} - {"whole"})
        self.sampled = all(named.objective.sampled for named in self.objectives)
        """Whether no objective is troubled by lists without a preference."""

    def read(self, raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> ListRow:
        """Decode a list."""
        return read_list(raw, index=index, image_root=image_root, sampled=self.sampled)

    def check_numbers(self, raw: Mapping[str, Any]) -> None:
        """Check the scores' range."""
        for named in self.objectives:
            low, high = named.objective.score_range
            outside = [score for score in raw["scores"] if not low <= score <= high]
            if outside:
                raise UserError(f"scores hold {outside[0]:g}; objective {named.name} expects {low:g} to {high:g}: rescale them")
            doubtful = [score for score in raw["scores"] if score not in (0, 1)]
            if named.objective.binary and doubtful:
                raise UserError(f"scores hold {doubtful[0]:g}; objective {named.name} expects 1 for right responses and 0 for wrong ones")

    def number_limits(self) -> Any:
        """The scores' range, and what lists may lack; reasons name the objective."""
        ranges = [[named.name, *map(str, named.objective.score_range), named.objective.binary] for named in self.objectives]
        return {"ranges": ranges, "sampled": self.sampled}

    def collate_numbers(self, rows: Sequence[Mapping[str, Any]], target: Tensor) -> dict[str, Any]:
        """``scores``, (R,), and ``step_ends`` by kind."""
        scores = torch.tensor([float(score) for row in rows for score in row["scores"]])
        return {"scores": scores, "step_ends": {steps: find_step_ends(self.processor.tokenizer, target, steps) for steps in self.steps}}

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the objectives over the prompts."""
        policy, live = self.run(model, batch, keep_states=bool(self.steps))
        reference = live if self.cached is None else self.cached.logps(batch["reference"], policy.scored)
        counts, scores = batch["layout"]["repeats"], batch["numbers"]["scores"]
        ends = batch["numbers"]["step_ends"]
        lists = ListBatch(policy.scored, policy, reference, counts, scores, states=policy.states, step_ends=ends, mean=mean_over_processes)
        rewards = {named.name: compute_list_rewards(named.objective, lists) for named in self.objectives}
        losses = {named.name: list_objective_loss(named.objective, lists, rewards=rewards[named.name]) for named in self.objectives}
        metrics = list_metrics(rewards[self.objectives[0].name], scores, counts)
        if self.sampled:
            metrics |= group_metrics(lists)
        added = [one.weight * one.objective.constraint(lists) for one in self.objectives if one.objective.constraint is not None]
        if added:
            metrics["loss/constraint"] = Sum(torch.stack(added).detach().sum() * len(counts), len(counts))
        return self.sum(losses, metrics, added=torch.stack(added).sum() if added else 0.0)


def find_step_ends(tokenizer: Any, token_ids: Tensor, steps: StepKind) -> Tensor:
    """Find the tokens that end a step by their text.

    Args:
        tokenizer: What the ids are of.
        token_ids: (K,) of any responses.
        steps: ``lines``: a token with a line break ends one. ``sentences``: so does one that ends with a full stop, an exclamation or
            a question mark.

    Returns:
        (K,) booleans.
    """
    known, which = token_ids.unique(return_inverse=True)
    texts = [tokenizer.decode([token]) for token in known.tolist()]
    marks = (".", "!", "?") if steps == "sentences" else ()
    return torch.tensor(["\n" in text or text.rstrip().endswith(marks) for text in texts])[which]


@torch.no_grad()
def list_metrics(rewards: Tensor, scores: Tensor, counts: Tensor) -> dict[str, Sum]:
    """Compare the order of rewards with that of scores.

    Args:
        rewards: (R,) implicit rewards.
        scores: (R,) the data's.
        counts: (B,) responses of each prompt.

    Returns:
        ``rewards/margin``: reward of the best response by score - of the worst one; ``rewards/accuracy``: share of the pairs with
        different scores that the rewards order alike; ``rewards/top1``: share of prompts whose best response has the highest reward.
    """
    padded, mask = pad_lists(rewards, counts)
    values, _ = pad_lists(scores, counts)
    best, worst = values.masked_fill(~mask, -torch.inf).argmax(1), values.masked_fill(~mask, torch.inf).argmin(1)
    margin = padded.gather(1, best[:, None]) - padded.gather(1, worst[:, None])
    better = (values[:, :, None] > values[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    right = better & (padded[:, :, None] > padded[:, None, :])
    top = padded.masked_fill(~mask, -torch.inf).argmax(1) == best
    return {
        "rewards/margin": Sum(margin.sum(), len(margin)),
        "rewards/accuracy": Sum(right.sum(), better.sum()),
        "rewards/top1": Sum(top.sum(), len(top)),
    }


@torch.no_grad()
def group_metrics(batch: ListBatch) -> dict[str, Sum]:
    """Say what a policy's own samples are worth.

    Returns:
        ``lists/score``: mean score of a response; ``lists/alike``: share of prompts whose responses have one score, which teach nothing;
        ``kl/old`` and ``kl/old_k3``: mean over tokens of r and of e^-r - 1 + r, r = log pi_old - log pi, two estimates of KL(pi_old, pi)
        where the old policy's tokens are known.
    """
    scores, mask = pad_lists(batch.scores, batch.counts)
    highest, lowest = scores.masked_fill(~mask, -torch.inf).amax(1), scores.masked_fill(~mask, torch.inf).amin(1)
    alike = highest == lowest
    metrics = {"lists/score": Sum(batch.scores.sum(), len(batch.scores)), "lists/alike": Sum(alike.sum(), len(alike))}
    if batch.reference is None or batch.reference.token_logps is None:
        return metrics
    ratios = token_log_ratios(batch.policy, batch.reference)
    k3 = ratios.expm1() - ratios
    return metrics | {"kl/old": Sum(-ratios.sum(), len(ratios)), "kl/old_k3": Sum(k3.sum(), len(ratios))}
