"""Groups of sampled answers as batches of the list and pair objectives."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmalign.data.encode import EncodedPrompt, answer_type
from mmalign.engine.batch import collate_prompts
from mmalign.engine.generation import Generated, with_answers
from mmalign.engine.logps import ResponseLogps
from mmalign.errors import UserError
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_kernel import PairObjective
from mmalign.losses.pair_objectives import SCORES
from mmalign.losses.registry import Named
from mmalign.losses.scores import Logps
from mmalign.methods.held_answers import Held
from mmalign.methods.listwise import ListwiseMethod
from mmalign.methods.policy import build_reference
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions, OnlineLossOptions, OnlineOptions, PairLossOptions
from mmalign.training.method import MethodOutput


class Answered(NamedTuple):
    """A question, as the sampler takes it, with two answers or more and the score of each."""

    question: EncodedPrompt
    answers: Sequence[Generated]
    scores: Sequence[float]


class GroupLists(ListwiseMethod):
    """Objectives over whole groups, held to the policy that sampled."""

    def __init__(self, processor: Any, options: OnlineLossOptions) -> None:
        """Build the objectives.

        Raises:
            ValueError: If one is not of sampled answers.
        """
        own = ListLossOptions(objective=options.objective, beta=options.beta, row_tokens=options.row_tokens)
        unfit = [named.name for named in self.build_objectives(own) if not named.objective.sampled]
        if unfit:
            raise UserError(f"objective {unfit[0]} is of lists with a preference, which sampled answers may lack; {_KNOWN}")
        super().__init__(processor, own, reference=None)

    def check_scores(self, scores: Sequence[float]) -> None:
        """Raise UserError if an objective can't use such scores."""
        self.check_numbers({self._scores: scores})

    def lay_out(self, groups: Sequence[Answered]) -> dict[str, Any]:
        """One row per question with all its answers."""
        batch = _collate(self, groups)
        rows = [{self._scores: group.scores} for group in groups]
        return batch | {"numbers": self.collate_numbers(rows, batch["layout"]["target"])}

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """As over lists, without metrics that compare the policy with itself."""
        output = super().compute(model, batch)
        return MethodOutput(output.loss_sum, {name: value for name, value in output.metrics.items() if name.startswith("loss/")})

    def compared_with(self, batch: Mapping[str, Any], policy: ResponseLogps, live: Logps | None) -> Logps | None:
        """The policy that sampled, which at the first step on its answers is the policy itself, without gradient."""
        if self.cached is None:
            return None
        held: Held = batch["held"]
        if held.old is None:
            held.old = policy.token_logps.detach()
        old = held.old.to(policy.token_logps)
        return Logps(policy.scored.sums(old), old)


class GroupPairs(PreferenceMethod):
    """Objectives over the best and the worst answer of a group; a group whose answers have one score has loss 0."""

    def __init__(self, processor: Any, options: OnlineLossOptions, *, reference: Reference | None) -> None:
        """Build the objectives.

        Raises:
            ValueError: If one reads what a sampled pair has not.
        """
        own = PairLossOptions(objective=options.objective, beta=options.beta, row_tokens=options.row_tokens)
        for named in self.build_objectives(own):
            _check_pair_objective(named)
        super().__init__(processor, own, reference=reference)

    def check_scores(self, scores: Sequence[float]) -> None:
        """Any will do."""

    def lay_out(self, groups: Sequence[Answered]) -> dict[str, Any]:
        """One row per question with its best and its worst answer, the first of equals."""
        pairs = []
        for question, answers, scores in groups:
            best, worst = scores.index(max(scores)), scores.index(min(scores))
            places = [best, worst] if best != worst else [0, 1]
            pairs.append(Answered(question, [answers[i] for i in places], [scores[i] for i in places]))
        chosen, rejected = torch.tensor([pair.scores for pair in pairs]).unbind(1)
        columns = {"pair_beta_scale": torch.ones(len(pairs)), "pair_weight": (chosen != rejected).float()}
        return _collate(self, pairs) | {"numbers": columns | dict(zip(SCORES, (chosen, rejected), strict=True))}


Learner = GroupLists | GroupPairs
_KNOWN = "train online takes disco, disco_b, grpo, or an objective of pairs such as dpo"


def are_lists(objectives: Sequence[str]) -> bool:
    """Whether the first objective that is named is one of whole groups, and not of pairs."""
    return bool(objectives) and objectives[0].partition(":")[0].partition(",")[0].strip() in LIST_OBJECTIVES.names()


def build_learner(options: OnlineOptions, model: nn.Module, processor: Any) -> Learner:
    """Make the objectives, with a frozen reference where pairs are compared with one.

    Raises:
        ValueError: If an objective does not fit, or a reference is named that none has use for.
    """
    lists = are_lists(options.objective)
    named = () if lists else GroupPairs.build_objectives(PairLossOptions(objective=options.objective, beta=options.beta))
    if any(one.objective.uses_reference for one in named):
        return GroupPairs(processor, options, reference=build_reference(options, model, processor))
    given = (options.reference_model, options.reference_quantization, options.moving)
    if options.reference != "auto" or any(value is not None for value in given):
        why = "is held to the policy that sampled" if lists else "compares with no reference"
        raise UserError(f"objective {', '.join(options.objective)} {why}; leave --reference and all that begins so out")
    return GroupLists(processor, options) if lists else GroupPairs(processor, options, reference=None)


def _collate(learner: Learner, groups: Sequence[Answered]) -> dict[str, Any]:
    kind = answer_type(learner.processor)
    prompts = [with_answers(question, answers, token_type=kind) for question, answers, _ in groups]
    row_tokens = learner.options.row_tokens if learner.shared else None
    return collate_prompts(prompts, pad_token_id=learner.processor.tokenizer.pad_token_id, shared=learner.shared, row_tokens=row_tokens)


def _check_pair_objective(named: Named[PairObjective]) -> None:
    objective = named.objective
    lacking = [name for name in objective.columns if name not in SCORES]
    if lacking:
        raise UserError(f"objective {named.name} reads column {lacking[0]}, which sampled answers have not; {_KNOWN}")
    if objective.cells:
        raise UserError(f"objective {named.name} compares other images of a pair's data; {_KNOWN}")
    if objective.sft_weight:
        raise UserError(f"objective {named.name} adds the likelihood of the best answer, also where all are alike; {_KNOWN}")
