"""Sparse models compute what their dense ones do: in memory, saved, in generation and in the sum of their gradients."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.cli import main
from mmalign.models.adapters import freeze_parts
from mmalign.models.identity import compute_largest_difference
from mmalign.models.load import load_mllm
from mmalign.models.stages import SPARSE_STAGES
from mmalign.models.upcycle import find_sparse_layers, upcycle
from mmalign.options.models import ExpertsOptions
from tests.models.test_compose import PLAIN_USER
from tests.tiny_families import FAMILIES
from tests.tiny_models import QWEN3, build_tiny_llava, random_image

LAYERS = 4
DEEP = {**QWEN3, "num_hidden_layers": LAYERS}
PLAIN = {key: value for key, value in DEEP.items() if key != "head_dim"}
TIMM = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
LLMS: dict[str, dict[str, Any]] = {
    "qwen3": DEEP,
    "qwen3-untied": {**DEEP, "tie_word_embeddings": False},
    "qwen2": {**PLAIN, "model_type": "qwen2"},
    "qwen2-window": {**PLAIN, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "llama": {**PLAIN, "model_type": "llama", "head_dim": 24},
    "mistral": {**PLAIN, "model_type": "mistral", "sliding_window": None},
    "mistral-window": {**PLAIN, "model_type": "mistral", "sliding_window": 4},
}
EXPECTED = [
    ("qwen3", ["alternate"], "qwen3_moe"),
    ("qwen3", ["all"], "qwen3_moe"),
    ("qwen3-untied", ["alternate"], "qwen3_moe"),
    ("qwen2", ["alternate"], "qwen2_moe"),
    ("qwen2-window", ["1", "2"], "qwen2_moe"),
    ("llama", ["all"], "mixtral"),
    ("llama", ["alternate"], "qwen2_moe"),
    ("mistral", ["all"], "mixtral"),
    ("mistral-window", ["all"], "mixtral"),
    ("mistral-window", ["3"], "qwen2_moe"),
]


def build_dense(name: str, **options: Any) -> tuple[PreTrainedModel, Any]:
    return build_tiny_llava(llm=LLMS[name], scale=1.0, **options)


def question(processor: Any, text: str = "what do you see") -> dict[str, Tensor]:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return dict(processor(images=[random_image(0)], text=[prompt], return_tensors="pt"))


@torch.no_grad()
def logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def generate(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[int]:
    return model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0].tolist()


def assert_same(dense: PreTrainedModel, sparse: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    expected = logits(dense, inputs)
    assert (logits(sparse, inputs) - expected).abs().max() < 2e-6
    assert generate(sparse, inputs) == generate(dense, inputs)
    without_image = {"input_ids": inputs["input_ids"]}
    assert (logits(dense, without_image) - expected).abs().max() > 1e-4, "the image reaches the logits"


def num_sparse_layers(model: PreTrainedModel) -> int:
    return sum(hasattr(layer.mlp, "experts") for layer in model.get_decoder().layers)


@pytest.mark.parametrize(("name", "layers", "kind"), EXPECTED)
def test_every_family_computes_the_same(name: str, layers: Any, kind: str) -> None:
    dense, processor = build_dense(name)
    sparse = upcycle(dense, ExpertsOptions(layers=layers))
    assert sparse.config.get_text_config().model_type == kind
    assert num_sparse_layers(sparse) == {"alternate": 2, "all": 4}.get(layers[0], len(layers))
    assert_same(dense, sparse, question(processor, "what do you see on the left of the table"))


@pytest.mark.parametrize(
    "options",
    [
        {"num_experts": 8, "top_k": 3},
        {"num_experts": 2, "top_k": 1},
        {"num_experts": 3, "top_k": 3},
        {"router_init": "uniform"},
        {"router_std": 1.0},
        {"granularity": 2},
        {"granularity": 3, "top_k": 3, "layers": ["all"]},
        {"shared_expert": True},
        {"shared_expert": True, "granularity": 4},
    ],
)
def test_every_option_computes_the_same(options: dict[str, Any]) -> None:
    dense, processor = build_dense("qwen2")
    sparse = upcycle(dense, ExpertsOptions(**options))
    assert_same(dense, sparse, question(processor))
    parts, text = options.get("granularity", 1), sparse.config.get_text_config()
    assert text.num_experts == parts * options.get("num_experts", 4)
    assert text.moe_intermediate_size * parts == dense.config.get_text_config().intermediate_size


@pytest.mark.parametrize("family", ["fastvlm", "llava-next", "llava-onevision", "internvl", "idefics3", "pixtral", "qwen3-vl"])
def test_other_multimodal_classes(family: str) -> None:
    dense, processor = FAMILIES[family]()
    sparse = upcycle(dense, ExpertsOptions(layers=["all"]))
    inputs = question(processor)
    expected = logits(dense, inputs)
    # Weights of these are scaled up for other tests, logits reach 10 and more, and so does rounding.
    assert (logits(sparse, inputs) - expected).abs().max() < 2e-6 * expected.abs().max().clamp_min(1)
    assert generate(sparse, inputs) == generate(dense, inputs)
    assert compute_largest_difference(dense, sparse) < 2e-6


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3.5", "gemma3", "paligemma", "qwen3-vl-moe"])
def test_what_has_no_sparse_class_is_refused_with_what_works(family: str) -> None:
    dense, _ = FAMILIES[family]()
    message = rf"is a {dense.config.get_text_config().model_type}, which has no mixture-of-experts class here; what works: qwen3 .*mixtral"
    with pytest.raises(ValueError, match=message):
        upcycle(dense, ExpertsOptions())


def test_gradients_of_the_experts_sum_to_the_dense_one_and_the_router_has_none_yet() -> None:
    dense, processor = build_dense("qwen3")
    sparse = upcycle(dense, ExpertsOptions())
    inputs = question(processor)
    for model in (dense, sparse):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    network, block = dense.get_decoder().layers[0].mlp, sparse.get_decoder().layers[0].mlp
    gate_up = torch.cat([network.gate_proj.weight.grad, network.up_proj.weight.grad])
    torch.testing.assert_close(block.experts.gate_up_proj.grad.sum(0), gate_up, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(block.experts.down_proj.grad.sum(0), network.down_proj.weight.grad, rtol=1e-4, atol=1e-7)
    assert block.gate.weight.grad.abs().max() < 1e-6 < gate_up.abs().max()


def test_parts_of_a_copy_give_the_router_a_gradient_at_once() -> None:
    dense, processor = build_dense("qwen3")
    sparse = upcycle(dense, ExpertsOptions(granularity=2))
    inputs = question(processor)
    sparse(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert sparse.get_decoder().layers[0].mlp.gate.weight.grad.abs().max() > 1e-5


def test_a_neutral_shared_expert_never_moves() -> None:
    dense, processor = build_dense("qwen2")
    sparse = upcycle(dense, ExpertsOptions()).train()
    optimizer = torch.optim.AdamW(sparse.parameters(), lr=1e-2, weight_decay=0.1)
    inputs = question(processor)
    for _ in range(2):
        sparse(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    shared = {name: value for name, value in sparse.named_parameters() if "shared_expert" in name}
    assert len(shared) == 2 * 4
    assert not any(value.any() for value in shared.values())


def test_routers_depend_on_the_seed_and_spread_the_tokens() -> None:
    dense, _ = build_dense("qwen3")
    one, same, other = (upcycle(dense, ExpertsOptions(seed=seed)).get_decoder().layers[0].mlp.gate.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.detach().std()) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama"])
def test_the_sparse_stages_train_networks_routers_and_projector(name: str) -> None:
    sparse = upcycle(build_dense(name)[0], ExpertsOptions())
    freeze_parts(sparse, SPARSE_STAGES["dense-to-sparse"])
    trained = {name for name, parameter in sparse.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in sparse.named_parameters() if ".mlp." in name and "vision_tower" not in name}
    assert trained == expected | {name for name, _ in sparse.named_parameters() if "multi_modal_projector" in name}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1, "top_k": 1}, "num_experts is 1; expected 2 or more"),
        ({"top_k": 5}, r"top_k is 5; expected 1 to num_experts \(4\)"),
        ({"granularity": 0}, "granularity is 0; expected 1"),
        ({"granularity": 5}, "granularity is 5, and the feed-forward width 96 is no multiple of it"),
        ({"granularity": 24}, "experts would be 4 wide in a model of width 64, .* multiples of 8 alone; choose a smaller --granularity"),
        ({"router_std": 0.0}, "router_std is 0.0; expected a positive number"),
        ({"norm_topk_prob": False}, "norm_topk_prob is off: the weights of the chosen experts would sum to less than 1"),
        ({"layers": ["0", "4"]}, r"layers are '0 4'; expected alternate, all, or numbers from 0 to 3"),
        ({"layers": []}, r"layers are ''; expected alternate, all, or numbers from 0 to 3"),
        ({"shared_expert": True}, "qwen3 becomes qwen3_moe, whose layers have no shared expert"),
    ],
)
def test_options_that_cant_be_exact_are_refused(options: dict[str, Any], message: str) -> None:
    dense, _ = build_dense("qwen3")
    with pytest.raises(ValueError, match=message):
        upcycle(dense, ExpertsOptions(**options))


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        (
            {**PLAIN, "model_type": "llama", "mlp_bias": True},
            r"layers.0.mlp.down_proj.bias has no place in it, and \d+ more weights differ",
        ),
        ({**PLAIN, "model_type": "llama", "attention_bias": True}, r"k_proj.bias has no place in it"),
        ({**DEEP, "intermediate_size": 97}, "experts would be 97 wide .* multiples of 8 alone; this model can't be upcycled"),
        (
            {**DEEP, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
            "some layers of this qwen3 attend in a sliding window of 4 tokens and some don't",
        ),
    ],
)
def test_dense_models_that_no_class_computes_are_refused(llm: dict[str, Any], message: str) -> None:
    dense, _ = build_tiny_llava(llm=llm, scale=1.0)
    with pytest.raises(ValueError, match=message):
        upcycle(dense, ExpertsOptions())


def test_unnormalised_weights_are_seen_by_the_comparison() -> None:
    dense, _ = build_dense("qwen3")
    sparse = upcycle(dense, ExpertsOptions())
    assert compute_largest_difference(dense, sparse) < 2e-6
    for layer in sparse.get_decoder().layers:
        if hasattr(layer.mlp, "gate") and hasattr(layer.mlp.gate, "norm_topk_prob"):
            layer.mlp.gate.norm_topk_prob = False
    assert compute_largest_difference(dense, sparse) > 1e-2


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["all"], (0, 1, 2, 3)), (["alternate"], (0, 2)), (["0", "2"], (0, 2)), (["3,1", "1"], (1, 3)), (["2"], (2,))],
)
def test_layers_as_words(words: list[str], expected: Any) -> None:
    assert find_sparse_layers(words, 4) == expected


@pytest.mark.parametrize("words", [[], ["odd"], ["-1"], ["all", "2"]])
def test_layers_that_cant_be_read(words: list[str]) -> None:
    with pytest.raises(ValueError, match="expected alternate, all, or numbers from 0 to 3, such as 0 2 4"):
        find_sparse_layers(words, 4)


def test_plain_transformers_runs_what_the_command_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process that can't import mmalign: the right class, the dense model's logits and its tokens."""
    cases = {
        "qwen3": (["--layers", "alternate"], {}),
        "qwen2": (["--layers", "0", "3", "--shared-expert"], {}),
        "llama": (["--layers", "all", "--num-experts", "3"], {}),
        "timm": (["--granularity", "2"], {"vision": TIMM, "image_size": 64}),
    }
    dense = {}
    for name, (words, options) in cases.items():
        dense[name], processor = build_dense(name if name in LLMS else "qwen3", **options)
        for part in (dense[name], processor):
            part.save_pretrained(tmp_path / f"{name}-dense")
        assert main(["upcycle", str(tmp_path / f"{name}-dense"), "--out", str(tmp_path / name), *words]) == 0
    random_image(3).save(tmp_path / "image.png")
    command = [sys.executable, "-I", "-c", PLAIN_USER, str(tmp_path / "image.png"), *(str(tmp_path / name) for name in cases)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, model in dense.items():
        seen = torch.load(tmp_path / name / "seen.pt")
        assert seen["class"] == type(model).__name__
        assert (seen["logits"] - logits(model, seen["inputs"])).abs().max() < 2e-6
        assert torch.equal(seen["tokens"], model.generate(**seen["inputs"], max_new_tokens=3, min_new_tokens=3, do_sample=False))
        loaded, _ = load_mllm(str(tmp_path / name))
        assert num_sparse_layers(loaded) == {"llama": 4}.get(name, 2)
    card = capsys.readouterr().out
    assert "LlavaForConditionalGeneration with qwen3_moe: 2 of 4 experts per token in 2 of 4 layers (0, 2)" in card
    # Each of two layers: three more copies of 3 x 96 x 64, one of them used, and a router of 4 x 64.
    rest = 198_848 + 2 * 4 * 64
    assert f"{rest + 2 * 3 * 3 * 96 * 64:,}" in card
    assert f"{rest + 2 * 3 * 96 * 64:,}" in card
    # Projector 32 x 64 + 64 + 64 x 64 + 64; networks of two dense layers and eight experts, two routers.
    assert "trainable, init               6,272" in card
    assert f"{6_272 + 10 * 3 * 96 * 64 + 2 * 4 * 64:,}" in card


def test_weights_are_saved_in_the_precision_of_the_dense_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, processor = build_dense("qwen3")
    dense.to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    command = ["upcycle", str(tmp_path / "dense"), "--out", str(tmp_path / "sparse")]
    assert main(command) == 0
    sparse, _ = load_mllm(str(tmp_path / "sparse"), dtype="auto" if torch.accelerator.is_available() else "bfloat16")
    block, network = (model.get_decoder().layers[0].mlp for model in (sparse, dense))
    for expert in range(4):
        assert torch.equal(block.experts.down_proj[expert], network.down_proj.weight)
    assert sparse.config.dtype == torch.bfloat16
    assert main(command) == 2
    assert "is not empty; choose another --out" in capsys.readouterr().err
