"""Our first step of DPO against TRL's: the same model, pairs and reference give the same loss and rewards.

And every objective that TRL has too, computed by its own code: where it can be called on numbers, in float64 terms; where it lives in
the trainer, by the trainer on real rows.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Image as ImageFeature
from datasets import List

from mmalign.data.datasets import load_rows
from mmalign.losses.pair_kernel import objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.options.training import TrainerOptions
from mmalign.training.arguments import build_training_arguments
from mmalign.training.trainer import MethodTrainer
from tests.data_files import save_rows
from tests.losses.pair_example import random_pairs
from tests.tiny_models import build_tiny_llava, pair_rows

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[benchmark]'")
NUM_PAIRS = 4
# Small enough for log-ratios below 20, where the exponential links are clamped and TRL's forward KL is not.
SMALL = 1.2


def test_first_step_equals_trl(tmp_path: Path) -> None:
    """Policy and reference are different random models, so that the loss is far from log 2."""
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(NUM_PAIRS))
    common = {"learning_rate": 1e-6, "logging_steps": 1, "max_steps": 1, "report_to": "none", "save_strategy": "no"}

    policy, processor = build_tiny_llava(seed=0)
    reference, _ = build_tiny_llava(seed=1)
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=NUM_PAIRS, max_length=None, bf16=False, use_cpu=True,
        gradient_checkpointing=False, beta=0.1, disable_tqdm=True, dataloader_pin_memory=False, **common,
    )  # fmt: skip
    theirs = load_rows(data).cast_column("images", List(ImageFeature())).remove_columns("id")
    peer = trl.DPOTrainer(model=policy, ref_model=reference, args=arguments, train_dataset=theirs, processing_class=processor)
    peer.train()

    policy, processor = build_tiny_llava(seed=0)
    reference, _ = build_tiny_llava(seed=1)
    method = PreferenceMethod(processor, PairLossOptions(beta=0.1), reference=Reference(policy, kind="copy", model=reference))
    config = TrainerOptions(learning_rate=1e-6, batch_size=NUM_PAIRS, max_steps=1, logging_steps=1)
    arguments = build_training_arguments(config, output_dir=tmp_path / "ours")
    trainer = MethodTrainer(model=policy, args=arguments, train_dataset=method.prepare(load_rows(data)), method=method)
    trainer.train()

    expected, got = peer.state.log_history[0], trainer.state.log_history[0]
    assert abs(got["loss"] - math.log(2)) > 0.05, json.dumps(got)
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    for ours, name in (
        ("rewards/chosen", "rewards/chosen"),
        ("rewards/rejected", "rewards/rejected"),
        ("rewards/margin", "rewards/margins"),
    ):
        assert got[ours] == pytest.approx(expected[name], abs=1e-3), ours


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's trainer and a batch of its collator; each test sets the loss that its code reads at every step."""
    folder = tmp_path_factory.mktemp("trl")
    data = save_rows(folder / "pairs.parquet", pair_rows(NUM_PAIRS))
    policy, processor = build_tiny_llava(seed=0, scale=SMALL)
    reference, _ = build_tiny_llava(seed=1, scale=SMALL)
    arguments = trl.DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=NUM_PAIRS, max_length=None, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    theirs = load_rows(data).cast_column("images", List(ImageFeature())).remove_columns("id")
    trainer = trl.DPOTrainer(model=policy, ref_model=reference, args=arguments, train_dataset=theirs, processing_class=processor)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(NUM_PAIRS)])
    return SimpleNamespace(trainer=trainer, batch=batch, data=data)


ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}


@pytest.mark.parametrize(
    ("objective", "loss_type", "settings"),
    [
        ("dpo:beta=2", "sigmoid", {"beta": 2.0}),
        ("dpo:beta=2,score=mean", "sigmoid_norm", {"beta": 2.0}),
        ("ipo:beta=0.3", "ipo", {"beta": 0.3}),
        ("hinge:beta=1.5", "hinge", {"beta": 1.5}),
        ("rdpo:beta=2,label_smoothing=0.2", "robust", {"beta": 2.0, "label_smoothing": 0.2}),
        ("ddo:beta=2", "bco_pair", {"beta": 2.0}),
        ("ld_dpo:beta=2,tail_weight=0.3", "sigmoid", {"beta": 2.0, "ld_alpha": 0.3}),
        ("fdpo:beta=2,divergence=js", "sigmoid", {"beta": 2.0, "f_divergence_type": "js_divergence"}),
        ("fdpo:beta=2,divergence=forward-kl", "sigmoid", {"beta": 2.0, "f_divergence_type": "forward_kl"}),
        # Our coefficient is the paper's, TRL's is 1 - a.
        ("fdpo:beta=2,divergence=alpha,divergence_coefficient=0.3", "sigmoid", {"beta": 2.0, **ALPHA}),
        ("dpo:beta=2,ipo:beta=2,weight=0.5", "sigmoid ipo", {"beta": 2.0, "loss_weights": [1.0, 0.5]}),
    ],
)
def test_every_loss_that_trl_has_too(
    peer: Any, monkeypatch: pytest.MonkeyPatch, objective: str, loss_type: str, settings: dict[str, Any]
) -> None:
    trainer = peer.trainer
    values = {"loss_types": loss_type.split(), "loss_weights": [1.0], "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", **settings}
    for name, value in values.items():
        monkeypatch.setattr(trainer, name, value)
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model, dict(peer.batch), False).item()
    policy, processor = build_tiny_llava(seed=0, scale=SMALL)
    reference, _ = build_tiny_llava(seed=1, scale=SMALL)
    method = PreferenceMethod(processor, PairLossOptions(objective=[objective]), reference=Reference(policy, kind="copy", model=reference))
    with torch.no_grad():
        got = method.compute(policy, method.collate(list(method.prepare(load_rows(peer.data))))).loss_sum.item() / NUM_PAIRS
    assert got == pytest.approx(expected, rel=1e-4)
    assert abs(expected - math.log(2)) > 0.01


def test_cdpo_is_trls_simpo_code_at_no_margin_on_log_ratios() -> None:
    """TRL's DPOTrainer ignores label_smoothing for sigmoid; its CPO code has the term."""
    pairs = random_pairs()
    h = (pairs.policy.sums - pairs.reference.sums).view(-1, 2)  # type: ignore[union-attr]
    expected = cpo_losses(h, beta=0.1, label_smoothing=0.2, loss_type="sigmoid")
    torch.testing.assert_close(objective_loss(PAIR_OBJECTIVES.build("cdpo", label_smoothing=0.2), pairs), expected, rtol=0, atol=1e-9)


def test_simpo_is_trls() -> None:
    pairs = random_pairs()
    means = (pairs.policy.sums / pairs.tokens.lengths()).view(-1, 2)
    expected = cpo_losses(means, beta=2.5, label_smoothing=0.0, loss_type="simpo", simpo_gamma=0.5)
    got = objective_loss(PAIR_OBJECTIVES.build("simpo", beta=2.5, target_margin=0.5), pairs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_the_preference_term_of_cpo_is_trls() -> None:
    """Their SFT term is of the batch's tokens, ours the mean of each response."""
    pairs = random_pairs()
    expected = cpo_losses(pairs.policy.sums.view(-1, 2), beta=0.3, label_smoothing=0.0, loss_type="sigmoid")
    got = objective_loss(PAIR_OBJECTIVES.build("cpo", beta=0.3, sft_weight=0.0), pairs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def cpo_losses(values: torch.Tensor, **settings: Any) -> torch.Tensor:
    from trl.experimental.cpo import CPOTrainer

    state = SimpleNamespace(**{"alpha": 0.0, "accelerator": SimpleNamespace(device="cpu"), "simpo_gamma": 0.0, **settings})
    return CPOTrainer.cpo_loss(state, values[:, 0], values[:, 1])[0]


def test_odds_ratio_is_trls() -> None:
    """Their NLL is of prompt and response, ours of the response; the ratio is the same. It is float32 in their code."""
    from trl.experimental.orpo import ORPOTrainer

    pairs = random_pairs()
    means = (pairs.policy.sums / pairs.tokens.lengths()).view(-1, 2)
    state = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    expected = -ORPOTrainer.odds_ratio_loss(state, means[:, 0], means[:, 1])[0]
    got = objective_loss(PAIR_OBJECTIVES.build("orpo", sft_weight=0.0), pairs)
    torch.testing.assert_close(got.float(), expected, rtol=1e-5, atol=1e-6)
