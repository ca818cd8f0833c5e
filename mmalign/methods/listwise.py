"""Preference training over several scored responses of each prompt: (images, prompt, responses, scores).

Shape legend: B = prompts in the batch, N = most responses of a prompt, R = responses in the batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt, encode_items
from mmalign.data.rows import ITEM_COLUMNS, LIST_COLUMNS, ItemsRow, ListRow, read_items, read_list
from mmalign.engine.logps import ResponseLogps
from mmalign.errors import UserError
from mmalign.losses.list_kernel import ListBatch, ListObjective, compute_list_rewards, list_objective_loss, pad_lists
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.policy_gradient import token_log_ratios
from mmalign.losses.reasoning_steps import StepKind
from mmalign.losses.scores import Logps, ScoredTokens
from mmalign.methods.responses import ResponsesMethod
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions
from mmalign.training.method import MethodOutput, Sum
from mmalign.training.processes import mean_over_processes


class ListwiseMethod(ResponsesMethod[ListObjective]):
    """ADPO, Plackett-Luce, in-context ranking and preference trees; DisCO and GRPO on groups that a policy sampled."""

    name = "listwise"
    summary = "a multimodal LLM, trained on lists of scored responses"
    intended_use = "For research on hallucination: to be compared with the model that it started from."
    columns: Sequence[str] = LIST_COLUMNS
    registry = LIST_OBJECTIVES
    lists = True
    options: ListLossOptions

    def __init__(
        self, processor: Any, options: ListLossOptions, *, reference: Reference | None, reference_fingerprint: str | None = None
    ) -> None:
        """Keep the parts; see ``ResponsesMethod``."""
        super().__init__(processor, options, reference=reference, reference_fingerprint=reference_fingerprint)
        self.steps = sorted({named.objective.steps for named in self.objectives} - {"whole"})
        self._scores = "relevance" if options.items else "scores"
        self.columns = ITEM_COLUMNS if options.items else LIST_COLUMNS
        unfit = [one.name for one in self.objectives if one.objective.sampled or one.objective.steps != "whole"]
        if options.items and unfit:
            raise UserError(f"objective {unfit[0]} is of whole responses; rank items with irpo, or another one that takes any scores")
        if options.items and self.cached is not None:
            raise UserError("items have no cached log-probabilities; use --reference copy or adapter-off")
        self.sampled = all(named.objective.sampled for named in self.objectives)
        """Whether no objective is troubled by lists without a preference."""

    def read(self, raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> ListRow | ItemsRow:
        """Decode a list, or a response with its items."""
        if self.options.items:
            return read_items(raw, index=index, image_root=image_root)
        return read_list(raw, index=index, image_root=image_root, sampled=self.sampled)

    def encode_row(self, raw: Mapping[str, Any], *, index: int) -> list[EncodedPrompt]:
        """Read and tokenise a row."""
        if not self.options.items:
            return super().encode_row(raw, index=index)
        row = read_items(raw, index=index, image_root=self.options.image_root)
        return [encode_items(self.processor, row, answer_end=self.options.answer_end, max_length=self.options.max_length)]

    def check_numbers(self, raw: Mapping[str, Any]) -> None:
        """Check the scores' range."""
        for named in self.objectives:
            low, high = named.objective.score_range
            outside = [score for score in raw[self._scores] if not low <= score <= high]
            if outside:
                raise UserError(f"{self._scores} hold {outside[0]:g}; objective {named.name} expects {low:g} to {high:g}: rescale them")
            doubtful = [score for score in raw[self._scores] if score not in (0, 1)]
            if named.objective.binary and doubtful:
                raise UserError(f"scores hold {doubtful[0]:g}; objective {named.name} expects 1 for right responses and 0 for wrong ones")

    def number_limits(self) -> Any:
        """The scores' range, and what lists may lack; reasons name the objective."""
        ranges = [[named.name, *map(str, named.objective.score_range), named.objective.binary] for named in self.objectives]
        return {"ranges": ranges, "sampled": self.sampled, "items": self.options.items}

    def collate_numbers(self, rows: Sequence[Mapping[str, Any]], target: Tensor) -> dict[str, Any]:
        """``scores``, (R,), ``counts``, (B,), and ``step_ends`` by kind."""
        scores = torch.tensor([float(score) for row in rows for score in row[self._scores]])
        counts = torch.tensor([len(row[self._scores]) for row in rows])
        return {
            "scores": scores,
            "counts": counts,
            "step_ends": {steps: find_step_ends(self.processor.tokenizer, target, steps) for steps in self.steps},
        }

    def compared_with(self, batch: Mapping[str, Any], policy: ResponseLogps, live: Logps | None) -> Logps | None:
        """What the policy is compared with: a model in memory, or columns."""
        return live if self.cached is None else self.cached.logps(batch["reference"], policy.scored)

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the objectives over the prompts."""
        policy, live = self.run(model, batch, keep_states=bool(self.steps))
        reference = self.compared_with(batch, policy, live)
        counts, scores = batch["numbers"]["counts"], batch["numbers"]["scores"]
        ends = batch["numbers"]["step_ends"]
        tokens: ScoredTokens = policy.scored
        own: Logps = policy
        if self.options.items:
            tokens, own, reference = take_items(policy, reference, batch["layout"]["item"], counts)
        lists = ListBatch(tokens, own, reference, counts, scores, states=policy.states, step_ends=ends, mean=mean_over_processes)
        rewards = {named.name: compute_list_rewards(named.objective, lists) for named in self.objectives}
        losses = {named.name: list_objective_loss(named.objective, lists, rewards=rewards[named.name]) for named in self.objectives}
        metrics = list_metrics(rewards[self.objectives[0].name], scores, counts)
        if self.sampled:
            metrics |= group_metrics(lists)
        added = [one.weight * one.objective.constraint(lists) for one in self.objectives if one.objective.constraint is not None]
        if added:
            metrics["loss/constraint"] = Sum(torch.stack(added).detach().sum() * len(counts), len(counts))
        return self.sum(losses, metrics, added=torch.stack(added).sum() if added else 0.0)


def take_items(policy: ResponseLogps, reference: Logps | None, item: Tensor, counts: Tensor) -> tuple[ScoredTokens, Logps, Logps | None]:
    """Make responses of items: what stands between them counts nowhere.

    Args:
        policy: One response for each prompt.
        reference: The same; None where nobody asks for it.
        item: (K,) number of each token's item in its response, -1 where it has none.
        counts: (B,) items of each response.
    """
    first = (counts.cumsum(0) - counts)[policy.scored.response]
    tokens, kept = policy.scored.regroup(torch.where(item < 0, -1, first + item), num_responses=int(counts.sum()))
    found = []
    for logps in (policy, reference):
        values = None if logps is None or logps.token_logps is None else logps.token_logps[kept]
        found.append(None if values is None else Logps(tokens.sums(values), values))
    assert found[0] is not None, "a policy's tokens are known"
    return tokens, found[0], found[1]


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
