"""The preference method: its loss from its parts, the SFT term, equal difficulties."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature

from mmalign.engine.logps import compute_response_logps
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.preference_metrics import difficulty_quartiles
from mmalign.models.adapters import add_lora, freeze_parts
from mmalign.models.references import Reference
from mmalign.options.methods import DifficultyMode, PairLossOptions
from mmalign.options.training import LoraOptions
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava, pair_rows

NUM_PAIRS = 4


def loss_of(difficulty: list[float] | None = None, **options: Any) -> float:
    policy, processor = build_tiny_llava(seed=0)
    reference, _ = build_tiny_llava(seed=1)
    frozen = Reference(policy, kind="copy", model=reference)
    method = PreferenceMethod(processor, PairLossOptions(**options), reference=frozen)
    rows = Dataset.from_list(pair_rows(NUM_PAIRS)).cast_column("images", List(ImageFeature(decode=False)))
    if difficulty is not None:
        rows = rows.add_column("difficulty", difficulty)
    batch = method.collate(list(method.prepare(rows)))
    with torch.no_grad():
        return method.compute(policy, batch).loss_sum.item() / NUM_PAIRS


def test_sft_term_is_the_chosen_responses_mean_nll() -> None:
    policy, processor = build_tiny_llava(seed=0)
    method = PreferenceMethod(processor, PairLossOptions(), reference=Reference(policy, kind="copy"))
    rows = Dataset.from_list(pair_rows(NUM_PAIRS)).cast_column("images", List(ImageFeature(decode=False)))
    batch = method.collate(list(method.prepare(rows)))
    with torch.no_grad():
        chosen = compute_response_logps(policy, {k: v for k, v in batch.items() if k != "numbers"}).per_response()[::2]
    nll = sum(-values.mean().item() for values in chosen) / NUM_PAIRS
    assert loss_of(sft_weight=0.7) - loss_of() == pytest.approx(0.7 * nll, abs=1e-4)
    assert nll > 1


@pytest.mark.parametrize(("mode", "factor"), [("paper-norm", 1.0), ("loss-weight", 1.0), ("paper", 1.75), ("both", 1.75)])
def test_equal_difficulties_are_plain_dpo(mode: DifficultyMode, factor: float) -> None:
    """With every difficulty 1/4, easiness is 3/4: the paper's beta is beta (1 + 3/4) for every pair, the other modes change nothing."""
    plain = loss_of(beta=0.1 * factor)
    assert loss_of([0.25] * NUM_PAIRS, difficulty_mode=mode) == pytest.approx(plain, abs=1e-6)
    assert loss_of([0.1, 0.9, 0.2, 0.7], difficulty_mode=mode) != pytest.approx(plain, abs=1e-4)
    assert abs(plain - math.log(2)) > 0.01


def test_quartiles_by_hand() -> None:
    difficulty = torch.tensor([0.9, 0.1, 0.4, 0.4, 0.7, 0.2, 0.8, 0.3])
    # In order: 0.1 0.2 | 0.3 0.4 | 0.4 0.7 | 0.8 0.9; of the equal ones the first comes first.
    assert difficulty_quartiles(difficulty).tolist() == [4, 1, 2, 3, 3, 1, 4, 2]


def count_encodings(policy: Any, processor: Any, reference: Reference, **options: Any) -> tuple[int, float]:
    """Images through any vision tower in one step of training, and the step's loss."""
    method = PreferenceMethod(processor, PairLossOptions(**options), reference=reference)
    rows = Dataset.from_list(pair_rows(NUM_PAIRS)).cast_column("images", List(ImageFeature(decode=False)))
    batch = method.collate(list(method.prepare(rows)))
    encoded = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        encoded.append(len(args[0] if args else kwargs["pixel_values"]))

    models = [policy] if reference.model is None else [policy, reference.model]
    towers = [module for model in models for name, module in model.named_modules() if name.endswith("vision_tower")]
    hooks = [tower.register_forward_pre_hook(count, with_kwargs=True) for tower in towers]
    loss = method.compute(policy.train(), batch).loss_sum
    loss.backward()
    for hook in hooks:
        hook.remove()
    return sum(encoded), loss.item()


def test_a_frozen_tower_encodes_each_image_once_for_policy_and_reference() -> None:
    model, processor = build_tiny_llava()
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))
    assert count_encodings(policy, processor, Reference(policy, kind="adapter-off"))[0] == NUM_PAIRS
    frozen, processor = build_tiny_llava()
    freeze_parts(frozen, ["vision_tower", "projector"])
    assert count_encodings(frozen, processor, Reference(frozen, kind="copy"))[0] == NUM_PAIRS
    # Another model sees the image with its own eyes, and a tower that trains is run where its gradient is.
    frozen, processor = build_tiny_llava()
    freeze_parts(frozen, ["vision_tower", "projector"])
    assert count_encodings(frozen, processor, Reference(frozen, kind="copy", model=build_tiny_llava(seed=1)[0]))[0] == 2 * NUM_PAIRS
    trained, processor = build_tiny_llava()
    assert count_encodings(trained, processor, Reference(trained, kind="copy"))[0] == 2 * NUM_PAIRS


def test_one_encoding_gives_the_loss_and_gradients_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[float, dict[str, torch.Tensor]]:
        model, processor = build_tiny_llava()
        policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))
        torch.manual_seed(0)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        _, loss = count_encodings(policy, processor, Reference(policy, kind="adapter-off"))
        return loss, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}

    loss, gradients = step()
    monkeypatch.setattr("mmalign.methods.policy_and_reference.vision_is_frozen", lambda model: False)
    expected, plain = step()
    assert loss == pytest.approx(expected, abs=1e-5)
    assert abs(loss - NUM_PAIRS * math.log(2)) > 0.01
    assert gradients.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(gradients[name], plain[name], rtol=1e-4, atol=1e-5)


def test_packed_pairs_have_the_same_loss_and_little_padding() -> None:
    assert loss_of(row_tokens=100) == pytest.approx(loss_of(), abs=1e-5)
    model, processor = build_tiny_llava()
    rows = Dataset.from_list(pair_rows(32)).cast_column("images", List(ImageFeature(decode=False)))
    shares = {}
    for row_tokens in (None, 256):
        method = PreferenceMethod(processor, PairLossOptions(row_tokens=row_tokens), reference=Reference(model, kind="copy"))
        shares[row_tokens] = float((method.collate(list(method.prepare(rows)))["attention_mask"] == 0).float().mean())
    assert shares[256] < 0.05
    assert shares[None] > 0.15


def test_packing_that_a_family_lacks_is_told() -> None:
    model, processor = FAMILIES["qwen3.5"]()
    pairs = Dataset.from_list(pair_rows(2)).cast_column("images", List(ImageFeature(decode=False)))
    for row_tokens, told in ((None, False), (256, True)):
        method = PreferenceMethod(processor, PairLossOptions(row_tokens=row_tokens), reference=Reference(model, kind="copy"))
        rows = list(method.prepare(pairs))
        assert method.start(model, rows).endswith("; --row-tokens does nothing") == told
        assert len(method.collate(rows)["input_ids"]) == 4


def test_rows_of_no_length_are_refused() -> None:
    with pytest.raises(ValueError, match="row_tokens is 0; expected a number of tokens"):
        PairLossOptions(row_tokens=0)
