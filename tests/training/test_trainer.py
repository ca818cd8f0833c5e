"""The trainer: the same loss however a batch is split, exact resume, checkpoints that are checked, a stop at NaN."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from safetensors.torch import load_file
from transformers import TrainerCallback

from mmalign.errors import UserError
from mmalign.methods.groups import GroupLists
from mmalign.methods.listwise import ListwiseMethod
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.online import OnlineMethod
from mmalign.methods.policy_and_reference import compute_policy_and_reference
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.methods.teachers import LiveTeacher
from mmalign.models.adapters import add_lora
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions, MimicLossOptions, OnlineLossOptions, PairLossOptions
from mmalign.options.training import LoraOptions, TrainerOptions
from mmalign.training.arguments import build_training_arguments
from mmalign.training.checkpoints import ManifestCallback, find_checkpoint, verify_checkpoint
from mmalign.training.optimizers import build_optimizer
from mmalign.training.sampler import BucketSampler
from mmalign.training.trainer import MethodTrainer
from tests.methods.test_online import WordReward, questions
from tests.tiny_models import build_tiny_llava, list_rows, pair_rows

LORA = LoraOptions(lora_rank=4, lora_alpha=8)


class StopAfter(TrainerCallback):
    """Ends training after a step without saving, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True
            control.should_save = False


def pair_dataset(num_rows: int = 8) -> Dataset:
    dataset = Dataset.from_list(pair_rows(num_rows)).add_column("difficulty", [i / num_rows for i in range(num_rows)])
    return dataset.cast_column("images", List(ImageFeature(decode=False)))


def chat_dataset(*, without_images: Sequence[int] = ()) -> Dataset:
    rows = [{"images": row["images"], "messages": row["prompt"] + row["chosen"]} for row in pair_rows(8)]
    rows = [{**row, "images": []} if i in without_images else row for i, row in enumerate(rows)]
    return Dataset.from_list(rows).cast_column("images", List(ImageFeature(decode=False)))


def make_trainer(
    tmp_path: Path,
    *,
    kind: str,
    lora: LoraOptions | None = None,
    sampler: BucketSampler | None = None,
    projector_learning_rate: float | None = None,
    **options: Any,
) -> MethodTrainer:
    model, processor = build_tiny_llava(scale=1.0)
    policy = add_lora(model, lora) if lora else model
    if kind == "sft":
        method: Any = SupervisedMethod(processor)
        dataset = chat_dataset()
    elif kind in ("mimic", "on-policy"):
        other, _ = build_tiny_llava(scale=2.0, seed=1)
        teacher = LiveTeacher(Reference(policy, kind="copy", model=other), processor, student=policy, student_processor=processor)
        own = {"on_policy": 0.6, "sample_tokens": 6, "divergence": "reverse-kl"} if kind == "on-policy" else {}
        method = MimicMethod(processor, MimicLossOptions(ce_weight=0.5, **own), teacher=teacher)
        dataset = chat_dataset()
    elif kind == "listwise":
        method = ListwiseMethod(processor, ListLossOptions(), reference=Reference(policy, kind="copy"))
        dataset = Dataset.from_list(list_rows([3, 2, 4, 3, 2, 3, 4, 3])).cast_column("images", List(ImageFeature(decode=False)))
    elif kind == "online":
        sampled = OnlineLossOptions(reward="answers", objective=["grpo"], samples=3, max_new_tokens=6)
        method = OnlineMethod(processor, sampled, learner=GroupLists(processor, sampled), reward=WordReward(counts=True))
        dataset = Dataset.from_list(questions(8)).cast_column("images", List(ImageFeature(decode=False)))
    else:
        reference = Reference(policy, kind="adapter-off" if lora else "copy")
        method = PreferenceMethod(processor, PairLossOptions(difficulty_mode="paper"), reference=reference)
        dataset = method.prepare(pair_dataset())
    config = TrainerOptions(**{"learning_rate": 1e-3, "max_steps": 4, "logging_steps": 1, "save_steps": 2, **options})
    arguments = build_training_arguments(config, output_dir=tmp_path)
    return MethodTrainer(
        model=policy,
        args=arguments,
        train_dataset=dataset,
        method=method,
        sampler=sampler,
        projector_learning_rate=projector_learning_rate,
        optimizers=(build_optimizer(policy, config), None),
        callbacks=[ManifestCallback()],
    )


def losses(trainer: MethodTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["sft", "mimic", "on-policy", "preference", "listwise", "online"])
def test_accumulation_1x8_equals_4x2(tmp_path: Path, kind: str) -> None:
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path / str(accumulation), kind=kind, batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=3
        )
        trainer.train()
        results.append(trainer)
    assert losses(results[0]) == pytest.approx(losses(results[1]), abs=2e-5)
    keys = [key for key in results[0].state.log_history[1] if "/" in key]
    assert keys
    for key in keys:
        assert results[0].state.log_history[1][key] == pytest.approx(results[1].state.log_history[1][key], abs=1e-4), key


@pytest.mark.parametrize("lora", [None, LORA, dataclasses.replace(LORA, train_projector=True)], ids=["full", "lora", "lora+projector"])
@pytest.mark.parametrize("kind", ["sft", "mimic", "on-policy", "preference", "listwise", "online"])
def test_resume_equals_never_having_stopped(tmp_path: Path, kind: str, lora: LoraOptions | None) -> None:
    whole = make_trainer(tmp_path / "whole", kind=kind, lora=lora, batch_size=2)
    whole.train()
    first = make_trainer(tmp_path / "stopped", kind=kind, lora=lora, batch_size=2)
    first.add_callback(StopAfter(3))
    first.train()
    checkpoint, _ = find_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    second = make_trainer(tmp_path / "stopped", kind=kind, lora=lora, batch_size=2)
    second.train(resume_from_checkpoint=str(checkpoint))
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    expected, got = (load_file(tmp_path / part / "checkpoint-4" / name) for part in ("whole", "stopped"))
    assert expected.keys() == got.keys()
    for key in expected:
        assert torch.equal(expected[key], got[key]), key


OPTIMIZERS = [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"optimizer": "dct-adamw", "dct_rank": 8}]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_the_projector_moves_by_its_own_learning_rate(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    """A step's change is proportional to the learning rate, with every optimiser; all other weights move as they did."""
    started = dict(build_tiny_llava(scale=1.0)[0].named_parameters())
    changes = []
    for rate in (None, 4e-3):
        trainer = make_trainer(
            tmp_path / str(rate), kind="sft", max_steps=1, schedule="constant", projector_learning_rate=rate, weight_decay=0.1, **optimizer
        )
        trainer.train()
        changes.append({name: parameter.detach() - started[name] for name, parameter in trainer.model.named_parameters()})
    for name, change in changes[0].items():
        times = 4 if "multi_modal_projector" in name else 1
        torch.testing.assert_close(changes[1][name], times * change, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert changes[0]["model.multi_modal_projector.linear_1.weight"].abs().max() > 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_two_learning_rates_follow_one_schedule_and_resume(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    def make(folder: str) -> MethodTrainer:
        return make_trainer(tmp_path / folder, kind="sft", batch_size=2, projector_learning_rate=5e-3, schedule="linear", **optimizer)

    whole, first, second = make("whole"), make("stopped"), make("stopped")
    whole.train()
    log = [entry for entry in whole.state.log_history if "loss" in entry]
    assert len(log) == 4
    for entry in log:
        assert entry["projector_learning_rate"] == pytest.approx(5 * entry["learning_rate"])
    assert max(entry["learning_rate"] for entry in log) == pytest.approx(1e-3)
    first.add_callback(StopAfter(3))
    first.train()
    second.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_resume_inside_a_curriculums_second_epoch(tmp_path: Path) -> None:
    def make(folder: str) -> MethodTrainer:
        sampler = BucketSampler(8, num_buckets=2, seed=0)
        return make_trainer(tmp_path / folder, kind="preference", sampler=sampler, batch_size=1, max_steps=16, save_steps=10)

    whole, first, second = make("whole"), make("stopped"), make("stopped")
    whole.train()
    first.add_callback(StopAfter(12))
    first.train()
    checkpoint, _ = find_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-10"
    second.train(resume_from_checkpoint=str(checkpoint))
    assert losses(second) == losses(whole)
    expected = dict(whole.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    # Of the first half of each epoch the easier pairs, in another order the second time.
    seen = [[key for key in entry if "margin_q" in key] for entry in whole.state.log_history if "loss" in entry]
    for start in (0, 8):
        assert {key for step in seen[start : start + 4] for key in step} == {"rewards/margin_q1", "rewards/margin_q2"}
        assert {key for step in seen[start + 4 : start + 8] for key in step} == {"rewards/margin_q3", "rewards/margin_q4"}
    assert seen[:8] != seen[8:]


def test_two_orders_exclude_each_other(tmp_path: Path) -> None:
    sampler = BucketSampler(8, num_buckets=2, seed=0)
    with pytest.raises(ValueError, match="train_sampling_strategy is 'sequential', and a curriculum is another order"):
        make_trainer(tmp_path, kind="preference", sampler=sampler, trainer={"train_sampling_strategy": "sequential"})


def test_reference_does_not_move(tmp_path: Path) -> None:
    """With everything trainable, tower and projector included, the reference's log-probabilities stay as they were."""
    for lora in (None, LORA):
        trainer = make_trainer(tmp_path / str(lora is None), kind="preference", lora=lora, batch_size=4)
        method: Any = trainer.method
        batch = method.collate([trainer.train_dataset[i] for i in range(4)])
        inputs = {key: value for key, value in batch.items() if key != "pairs"}
        _, before = compute_policy_and_reference(trainer.model, inputs, method.reference)
        trainer.train()
        _, after = compute_policy_and_reference(trainer.model, inputs, method.reference)
        assert before is not None
        assert after is not None
        assert torch.equal(before.token_logps, after.token_logps)


def test_a_step_without_items_has_loss_zero(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kind="mimic", batch_size=2)
    batch = trainer.method.collate([trainer.train_dataset[i] for i in range(2)])
    batch["layout"] |= {key: batch["layout"][key][:0] for key in ("index", "target", "response")}
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert items == 0
    assert trainer.compute_loss(trainer.model, batch, num_items_in_batch=items).item() == 0


def test_first_step_of_dpo_is_log_two(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kind="preference", lora=LORA, batch_size=4, max_steps=1)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.693147, abs=1e-5)


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    make_trainer(tmp_path, kind="sft", batch_size=2).train()
    assert find_checkpoint(tmp_path) == (tmp_path / "checkpoint-4", [])
    newest = tmp_path / "checkpoint-4"
    (newest / "optimizer.pt").unlink()
    assert verify_checkpoint(newest) == "optimizer.pt is missing"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found, passed_over = find_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-2"
    assert passed_over == [f"{newest}: model.safetensors is damaged"]
    (newest / "manifest.json").unlink()
    assert verify_checkpoint(newest) == "it was not saved to its end"


@pytest.mark.parametrize("kind", ["sft", "mimic", "on-policy", "preference", "listwise", "online"])
def test_loss_that_is_not_finite_stops_with_the_batch_saved(tmp_path: Path, kind: str) -> None:
    trainer = make_trainer(tmp_path, kind=kind, batch_size=2)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 0; the batch is saved in .*bad_batch_step0_rank0"):
        trainer.train()
    saved = load_file(tmp_path / "bad_batch_step0_rank0.safetensors")
    assert saved["input_ids"].shape[0] == 2
    assert "images.pixel_values" in saved


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, kind="sft", batch_size=2).train()
    other = make_trainer(tmp_path, kind="sft", batch_size=2)
    del other.model.model.multi_modal_projector.linear_2
    with pytest.raises(ValueError, match="the checkpoint does not fit the model: 0 weights are missing"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_scheduler_kwargs": {"nope": 1}}, r"trainer.lr_scheduler_kwargs is \{'nope': 1\}, which the schedule refuses: .*'nope'"),
        ({"lr_scheduler_kwargs": {"num_cycles": "many"}}, "which the schedule refuses: .*'many'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "which the schedule refuses: One of min_lr or min_lr_rate should be set"),
        ({"adam_beta1": 1.5}, "a field of trainer has a value that transformers.Trainer refuses: Invalid beta"),
        ({"optim_args": "momentum"}, "transformers.Trainer refuses: not enough values"),
        ({"dataloader_persistent_workers": True}, "transformers.Trainer refuses: persistent_workers option needs num_workers > 0"),
        ({"report_to": "nope"}, "transformers.Trainer refuses: nope is not supported"),
        ({"report_to": ["tensorboard", "swanlab"]}, r"trainer.report_to is \[.*'swanlab'\], which .* refuses: .*pip install swanlab"),
    ],
)
def test_what_transformers_refuses_later_than_its_arguments_is_a_users_fault(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path, kind="sft", trainer=fields).train()


def test_unknown_trainer_field_names_the_nearest(tmp_path: Path) -> None:
    config = TrainerOptions(learning_rate=1e-3, trainer={"adam_beta22": 0.9})
    with pytest.raises(ValueError, match=r"trainer.adam_beta22 is no field of transformers.TrainingArguments; did you mean 'adam_beta2'"):
        build_training_arguments(config, output_dir=tmp_path)
