"""Preference training over several scored responses of each prompt: (images, prompt, responses, scores).

Shape legend: B = prompts in the batch, N = most responses of a prompt, R = responses in the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.data.rows import LIST_COLUMNS, read_list
from mmalign.errors import UserError
from mmalign.losses.list_objectives import LIST_OBJECTIVES, ListBatch, ListObjective, compute_list_rewards, list_objective_loss, pad_lists
from mmalign.losses.reasoning_steps import StepKind
from mmalign.methods.responses import ResponsesMethod
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions
from mmalign.training.method import MethodOutput, Sum


class ListwiseMethod(ResponsesMethod[ListObjective]):
    """ADPO, Plackett-Luce, in-context ranking and preference trees."""

    name = "listwise"
    summary = "a multimodal LLM, trained on lists of scored responses"
    intended_use = "For research on hallucination: to be compared with the model that it started from."
    columns = LIST_COLUMNS
    registry = LIST_OBJECTIVES
    lists = True
    read = staticmethod(read_list)

    def __init__(
        self, processor: Any, options: ListLossOptions, *, reference: Reference | None, reference_fingerprint: str | None = None
    ) -> None:
        """Keep the parts; see ``ResponsesMethod``.

        Raises:
            ValueError: If log-probabilities are cached and an objective weights tokens.
        """
        by_token = [named.name for named in self.build_objectives(options) if named.objective.needs_tokens]
        if reference is None and by_token:
            raise UserError(f"objective {by_token[0]} weights tokens, and lists are cached as sums; use reference 'copy' or 'adapter-off'")
        super().__init__(processor, options, reference=reference, reference_fingerprint=reference_fingerprint)
        self.steps = sorted({named.objective.steps for named in self.objectives} - {"whole"})

    def check_numbers(self, raw: Mapping[str, Any]) -> None:
        """Check the scores' range."""
        for named in self.objectives:
            low, high = named.objective.score_range
            outside = [score for score in raw["scores"] if not low <= score <= high]
            if outside:
                raise UserError(f"scores hold {outside[0]:g}; objective {named.name} expects {low:g} to {high:g}: rescale them")

    def number_limits(self) -> Any:
        """The scores' range; reasons name the objective."""
        return [[named.name, *map(str, named.objective.score_range)] for named in self.objectives]

    def collate_numbers(self, rows: Sequence[Mapping[str, Any]], target: Tensor) -> dict[str, Any]:
        """``scores``, (R,), and ``step_ends`` by kind."""
        scores = torch.tensor([float(score) for row in rows for score in row["scores"]])
        return {"scores": scores, "step_ends": {steps: find_step_ends(self.processor.tokenizer, target, steps) for steps in self.steps}}

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the objectives over the prompts."""
        policy, live = self.run(model, batch, keep_states=bool(self.steps))
        reference = live if self.cached is None else self.cached.logps(batch["reference"], policy.scored)
        assert reference is not None
        counts, scores = batch["layout"]["repeats"], batch["numbers"]["scores"]
        lists = ListBatch(policy.scored, policy, reference, counts, scores, states=policy.states, step_ends=batch["numbers"]["step_ends"])
        rewards = {named.name: compute_list_rewards(named.objective, lists) for named in self.objectives}
        losses = {named.name: list_objective_loss(named.objective, lists, rewards=rewards[named.name]) for named in self.objectives}
        return self.sum(losses, list_metrics(rewards[self.objectives[0].name], scores, counts))


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
