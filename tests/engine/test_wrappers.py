"""The engine inside what users train with: gradient checkpointing, autocast, 4-bit weights, several processes."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from mmalign.engine.attention import SHARED
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.engine.probe import own_logps
from mmalign.models.adapters import add_lora
from mmalign.models.load import load_mllm
from mmalign.options.training import LoraOptions
from tests.engine.test_logps import encode
from tests.tiny_models import QWEN3, build_tiny_llava

REPOSITORY = Path(__file__).resolve().parents[2]


def step(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    sums = compute_response_logps(model, batch).sums
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    return sums.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_nothing(lora: bool) -> None:
    model, processor = build_tiny_llava()
    policy = (add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8)) if lora else model).train()
    batch = collate_prompts(encode(processor, 2), pad_token_id=0)
    expected, plain = step(policy, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    got, checkpointed = step(policy, batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert checkpointed.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=0, atol=0)


def test_bfloat16_autocast_is_as_close_as_plain_rows_under_it() -> None:
    model, processor = build_tiny_llava(scale=1.0)
    encoded = encode(processor, 2)
    with torch.no_grad():
        exact = torch.cat([value for prompt in encoded for value in own_logps(model, prompt)])
        with torch.autocast("cpu", torch.bfloat16):
            plain = torch.cat([value for prompt in encoded for value in own_logps(model, prompt)])
    with torch.autocast("cpu", torch.bfloat16):
        outcome = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0))
    assert outcome.token_logps.dtype == torch.float32
    noise = (plain - exact).abs().max()
    assert (outcome.token_logps - exact).abs().max() < 2 * noise
    outcome.token_logps.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_four_bit_weights_with_an_adapter(tmp_path: Path) -> None:
    """Real NF4 on the CPU: shared rows equal the quantised model's own plain forward, and every adapter weight gets a gradient."""
    model, processor = build_tiny_llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    quantised, _ = load_mllm(str(tmp_path), quantization="nf4")
    policy = add_lora(quantised, LoraOptions(lora_rank=4, lora_alpha=8))
    encoded = encode(processor, 2)
    with torch.no_grad():
        expected = torch.cat([value for prompt in encoded for value in own_logps(policy, prompt)])
    got = compute_response_logps(policy.train(), collate_prompts(encoded, pad_token_id=0)).token_logps
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    got.sum().backward()
    grads = {name: p.grad for name, p in policy.named_parameters() if "lora_B" in name}
    assert len(grads) == 14
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 8])
def test_flex_attention_scores_alike(window: int | None) -> None:
    """Forward only: FlexAttention has no backward pass on the CPU. Compilation takes most of the time."""
    llm = {**QWEN3, "model_type": "mistral", "sliding_window": window}
    model, processor = build_tiny_llava(llm=llm)
    encoded = encode(processor, 2)
    with torch.no_grad():
        expected = torch.cat([value for prompt in encoded for value in own_logps(model, prompt)])
        model.set_attn_implementation({"text_config": "flex_attention"})
        got = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0)).token_logps
    assert model.config.get_text_config()._attn_implementation == SHARED["flex_attention"]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", list(SHARED))
def test_gradients_on_a_gpu_equal_plain_rows(attention: str) -> None:
    model, processor = build_tiny_llava()
    encoded = encode(processor, 2)
    model.to("cuda")
    model.set_attn_implementation({"text_config": attention})

    def on_gpu(shared: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return step(model, send_to_device(collate_prompts(encoded, pad_token_id=0, shared=shared), "cuda"))

    (expected, plain), (got, shared) = on_gpu(False), on_gpu(True)
    # TF32 is off by default: float32 noise only.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    norm = torch.stack([grad.norm() for grad in plain.values()]).norm()
    assert all((shared[name] - plain[name]).norm() < 1e-3 * norm for name in plain)


def run_two_processes(module: str) -> str:
    """Run a module by two processes; returns what it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), "-m", module]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_equal_one() -> None:
    assert run_two_processes("tests.engine.two_processes").count("gradients equal") == 4


def test_two_processes_equal_one_on_pictures() -> None:
    """Each family that draws: its picture tokens' embeddings and head are parts of the words' in two of them."""
    assert run_two_processes("tests.pictures.two_processes").count("gradients equal") == 6
