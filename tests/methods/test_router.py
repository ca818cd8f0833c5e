"""Router losses on any method: against the model's own logits, by gradient, under checkpointing, adapters, shared rows and DDP."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.engine.router import find_routers, record_routers
from mmalign.losses.router import load_balancing_loss, router_z_loss
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.models.adapters import add_lora
from mmalign.models.references import Reference
from mmalign.models.upcycle import upcycle
from mmalign.options.methods import PairLossOptions
from mmalign.options.models import ExpertsOptions
from mmalign.options.training import LoraOptions, RouterOptions
from mmalign.training.method import MethodOutput
from mmalign.training.router import RouterLosses
from tests.tiny_models import QWEN3, build_tiny_llava, pair_rows

REPOSITORY = Path(__file__).resolve().parents[2]
PLAIN = {key: value for key, value in QWEN3.items() if key != "head_dim"}
LLMS = {"qwen3": QWEN3, "qwen2": {**PLAIN, "model_type": "qwen2"}, "llama": {**PLAIN, "model_type": "llama"}}


def build_sparse(name: str = "qwen3", **options: Any) -> tuple[PreTrainedModel, Any]:
    dense, processor = build_tiny_llava(llm=LLMS[name], scale=1.0)
    return upcycle(dense, ExpertsOptions(**{"layers": ["all"], "router_std": 0.5, **options})), processor


def chats(num_rows: int = 3) -> list[dict[str, Any]]:
    return [{"images": row["images"], "messages": row["prompt"] + row["chosen"]} for row in pair_rows(num_rows)]


def gradients(model: Any, output: MethodOutput) -> dict[str, Tensor]:
    model.zero_grad()
    output.loss_sum.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama"])
def test_loss_is_the_methods_own_plus_that_of_the_models_logits(name: str) -> None:
    """Against the language model's own router_logits of plain unpadded rows."""
    model, processor = build_sparse(name)
    method = SupervisedMethod(processor)
    batch = method.collate(chats())
    assert not batch["attention_mask"].all(), "some tokens are padding"
    plain = method.compute(model, batch)
    routed = RouterLosses(RouterOptions(balance_weight=0.5, router_z_weight=0.25)).compute(method, model, batch)
    heard: list[tuple[Tensor, ...]] = []
    handle = model.get_decoder().register_forward_hook(lambda module, args, output: heard.append(output.router_logits))
    with torch.no_grad():
        for row in chats():
            single = method.collate([row])
            length = int(single["attention_mask"].sum())
            model(input_ids=single["input_ids"][:, :length], pixel_values=single["images"]["pixel_values"], output_router_logits=True)
    handle.remove()
    logits = torch.stack([torch.cat([one[layer] for one in heard]) for layer in range(2)])
    everything = torch.ones(logits.shape[1], dtype=torch.bool)
    balance, z = load_balancing_loss(logits, everything, top_k=2), router_z_loss(logits, everything)
    expected = plain.loss_sum + (0.5 * balance.sum() + 0.25 * z.sum()) * method.num_items(batch)
    torch.testing.assert_close(routed.loss_sum, expected, rtol=1e-6, atol=0)
    assert float(routed.metrics["router/balance"].total / routed.metrics["router/balance"].count) == pytest.approx(balance.mean().item())
    assert set(plain.metrics) < set(routed.metrics)


def test_metrics_count_loads_and_dead_experts() -> None:
    model, processor = build_sparse()
    # All tokens of layer 0 to experts 2 and 3, of layer 1 to experts 1 and 2.
    routers = list(find_routers(model).values())
    for router, biases in zip(routers, ([0.0, 0, 9, 8], [0.0, 9, 8, 7]), strict=True):
        router.register_forward_hook(lambda module, args, output, add=biases: (output[0] + 40 * torch.tensor(add), *output[1:]))
    method, router = SupervisedMethod(processor), RouterLosses(RouterOptions())
    metrics = router.compute(method, model, method.collate(chats())).metrics
    values = {key: float(metric.total / metric.count) for key, metric in metrics.items()}
    assert [values[f"router_load/l0_e{expert}"] for expert in range(4)] == [0, 0, 0.5, 0.5]
    assert values["router/dead_experts"] == 2 + 2
    assert values["router/entropy"] == pytest.approx(0, abs=1e-6)
    # A sure first expert: 4 x (1/2 x 1) in each layer.
    assert values["router/balance"] == pytest.approx(2.0)


@pytest.mark.parametrize("lora", [False, True])
def test_shared_rows_count_each_token_once_and_a_reference_not_at_all(lora: bool) -> None:
    """A pair's prompt stands once in its row; the adapter-off reference runs through the same routers."""
    model, processor = build_sparse()
    policy = add_lora(model, LoraOptions(lora_rank=2, lora_alpha=4)) if lora else model
    reference = Reference(policy, kind="adapter-off" if lora else "copy")
    method = PreferenceMethod(processor, PairLossOptions(), reference=reference)
    rows = [{**row, "pair_beta_scale": 1.0, "pair_weight": 1.0} for row in pair_rows(2)]
    method.start(policy, rows)
    batch = method.collate(rows)
    assert len(batch["input_ids"]) == 2
    output = RouterLosses(RouterOptions()).compute(method, policy, batch)
    assert int(output.metrics["router_load/l0_e0"].count) == sum(
        len(encoded.prefix_ids) + sum(map(len, encoded.responses)) for encoded in (prompt for row in rows for prompt in method.encode(row))
    )


def test_losses_reach_routers_and_networks_and_nothing_stays_on_the_model() -> None:
    model, processor = build_sparse()
    method = SupervisedMethod(processor)
    batch = method.collate(chats())
    before = gradients(model, method.compute(model, batch))
    after = gradients(model, RouterLosses(RouterOptions(balance_weight=1.0)).compute(method, model, batch))
    for name in find_routers(model):
        # Identical experts: the router's own gradient is rounding.
        assert before[f"{name}.weight"].abs().max() < 1e-4 < after[f"{name}.weight"].abs().max()
    assert not any(module._forward_hooks for module in find_routers(model).values())
    again = gradients(model, method.compute(model, batch))
    for key, value in before.items():
        assert torch.equal(value, again[key]), key


def test_gradient_checkpointing_changes_nothing_and_the_reentrant_kind_is_refused() -> None:
    model, processor = build_sparse()
    model.train()
    method, router = SupervisedMethod(processor), RouterLosses(RouterOptions(balance_weight=1.0, router_z_weight=0.1))
    batch = method.collate(chats())
    expected = gradients(model, router.compute(method, model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got = gradients(model, router.compute(method, model, batch))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="gradient checkpointing with use_reentrant=True hides them"):
        router.compute(method, model, batch)


def test_training_by_balance_alone_evens_out_the_load() -> None:
    model, processor = build_sparse(router_std=0.2)
    model.requires_grad_(False)
    routers = list(find_routers(model).values())
    for router in routers:
        router.weight.requires_grad_(True)
    method, router = SupervisedMethod(processor), RouterLosses(RouterOptions(balance_weight=1.0))
    batch = method.collate(chats())
    optimizer = torch.optim.Adam([router.weight for router in routers], lr=0.02)
    balances = []
    for _ in range(40):
        optimizer.zero_grad()
        output = router.compute(method, model, batch)
        output.loss_sum.backward()
        optimizer.step()
        balances.append(float(output.metrics["router/balance"].total / output.metrics["router/balance"].count))
    assert balances[0] > 1.1
    assert balances[-1] < 1 + 0.3 * (balances[0] - 1)


def test_misuse_is_named() -> None:
    dense, processor = build_tiny_llava()
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration has no routers: it is dense"), record_routers(dense):
        pass
    sparse, _ = build_sparse()
    batch = SupervisedMethod(processor).collate(chats(1))
    with record_routers(sparse) as record:
        for _ in range(2):
            sparse(input_ids=batch["input_ids"], pixel_values=batch["images"]["pixel_values"])
    with pytest.raises(ValueError, match=r"routers ran \[2\] times in one step with gradient"):
        record.stack()
    with pytest.raises(ValueError, match="balance_weight is -0.1; expected 0 or more"):
        RouterOptions(balance_weight=-0.1)


@pytest.mark.slow
def test_two_processes_agree_with_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m"]
    done = subprocess.run([*command, "tests.methods.two_routed_processes"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ddp: loss and" in done.stdout
