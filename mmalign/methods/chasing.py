"""Preference training of two adapters that chase each other: OFS-DPO (arXiv:2406.05534)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from mmalign.engine.logps import unwrap_parallel
from mmalign.engine.router import find_routers
from mmalign.errors import UserError
from mmalign.losses.chasing import chase_terms, compute_lead
from mmalign.losses.pair_kernel import PairBatch
from mmalign.methods.policy_and_reference import compute_policy, compute_reference
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.responses import model_inputs
from mmalign.models.adapter_pair import ADAPTERS, FAST, SLOW, AdapterName, adapter_parameters, add_slow_adapter, compute_with
from mmalign.models.references import Reference
from mmalign.options.methods import PreferenceOptions
from mmalign.training.chasing import Chase, ChaseCallback
from mmalign.training.method import Apart, Method, MethodOutput, Sum


class ChasingMethod(PreferenceMethod):
    """Each adapter's own preference loss, and what is paid for the lead; the reference is the model with both off."""

    options: PreferenceOptions

    def __init__(
        self, processor: Any, options: PreferenceOptions, *, reference: Reference | None, reference_fingerprint: str | None = None
    ) -> None:
        """Keep the parts; see ``ResponsesMethod``."""
        super().__init__(processor, options, reference=reference, reference_fingerprint=reference_fingerprint)
        self.chase = Chase(options.chasing_steps)

    @classmethod
    def build(cls, options: PreferenceOptions) -> tuple[nn.Module, Any, Method]:  # type: ignore[override]
        """Load the policy with both adapters, which are equal before the first step.

        Raises:
            ValueError: If the model is sparse or can't be loaded, or whole parts would train beside the adapters.
        """
        model, processor, method = super().build(options)
        if find_routers(model):
            raise UserError(f"{options.model} is sparse, and its routers would be heard twice in a step; leave --chasing out")
        assert isinstance(model, PeftModel), type(model)
        if whole := model.peft_config[FAST].modules_to_save:
            raise UserError(f"--chasing trains adapters alone; leave modules_to_save ({', '.join(whole)}) out of --peft-config")
        add_slow_adapter(model)
        return model, processor, method

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """As in the base, and what chases."""
        chase = f"two adapters that chase each other (weight {options['chasing_weight']:g}), of which the folder slow holds the one behind"
        return f"{super().describe(options)}, as one of {chase}"

    def apart(self, model: nn.Module) -> Sequence[Apart]:
        """Each adapter trains as if it were alone, the slow one at a share of the learning rate."""
        rates: Mapping[AdapterName, float] = {FAST: 1.0, SLOW: self.options.chasing_rate}
        assert isinstance(model, PeftModel), type(model)
        return [Apart(adapter_parameters(model, name), "--chasing", learning_rate_scale=rate) for name, rate in rates.items()]

    def callbacks(self, checkpoint: Path | None) -> list[TrainerCallback]:
        """What moves the roles."""
        return [ChaseCallback(self.chase, checkpoint=checkpoint)]

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of both adapters' losses; rewards are the leader's."""
        pairs = self.read_both(model, batch)
        outputs = {name: self.compute_pairs(pairs[name]) for name in ADAPTERS}
        self.chase.watch(*(outputs[name].loss_sum for name in ADAPTERS))
        leader, chaser = pairs[self.chase.leader], pairs[self.chase.chaser]
        objective, count = self.objectives[0].objective, self.num_items(batch)
        paid = chase_terms(objective, leader.policy, chaser.policy, leader.tokens).sum()
        lead = compute_lead(objective, leader.policy, chaser.policy, leader.tokens).detach()
        metrics = outputs[self.chase.leader].metrics | {
            "chasing/lead": Sum(lead.sum(), count),
            "chasing/role": Sum(lead.new_tensor(float(ADAPTERS.index(self.chase.leader) * count)), count),
            "loss/fast": Sum(outputs[FAST].loss_sum.detach(), count),
            "loss/slow": Sum(outputs[SLOW].loss_sum.detach(), count),
        }
        total = outputs[FAST].loss_sum + outputs[SLOW].loss_sum + self.options.chasing_weight * paid
        return MethodOutput(total, metrics)

    def read_both(self, model: nn.Module, batch: dict[str, Any]) -> dict[AdapterName, PairBatch]:
        """Run the reference once, and each adapter."""
        inputs, policy = model_inputs(batch), unwrap_parallel(model)
        assert isinstance(policy, PeftModel), type(policy)
        frozen = compute_reference(model, inputs, self.reference, **self.asked)
        pairs = {}
        for name in ADAPTERS:
            compute_with(policy, name)
            logps = compute_policy(model, inputs, frozen, keep_logits=self.asked["keep_logits"])
            pairs[name] = self.make_pairs(batch, logps, frozen.reference)
        return pairs
