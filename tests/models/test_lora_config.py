"""Options of adapters: what PEFT is told, what is refused, and that the base stays the start."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mmalign.cli import main
from mmalign.errors import UserError
from mmalign.models.adapters import add_lora, load_merged
from mmalign.models.load import load_mllm
from mmalign.models.lora_config import read_peft_config
from mmalign.options.training import LoraOptions
from tests.commands.training import train
from tests.data_files import save_rows, scored_rows
from tests.tiny_models import fill_adapter


def adapter(folder: Path, **options: object) -> PeftModel:
    model, _ = load_mllm(str(folder), dtype="float32")
    return add_lora(model, LoraOptions(lora_rank=4, **options))  # type: ignore[arg-type]


def adapted(policy: PeftModel) -> dict[str, int]:
    """Name of a layer without its path -> rank of its adapter."""
    return {name.split(".lora_A.")[0].rsplit(".", 1)[-1]: len(weight) for name, weight in policy.named_parameters() if ".lora_A." in name}


def test_targets_and_ranks_are_those_asked_for(tiny_llava_dir: Path) -> None:
    every = adapted(adapter(tiny_llava_dir))
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} == set(every)
    assert set(every.values()) == {4}
    policy = adapter(tiny_llava_dir, lora_targets=["q_proj", "v_proj"], lora_ranks={"v_proj": 2})
    assert adapted(policy) == {"q_proj": 4, "v_proj": 2}
    assert not [name for name, weight in policy.named_parameters() if weight.requires_grad and "vision" in name]


def test_scale_of_rslora_by_hand(tiny_llava_dir: Path) -> None:
    for options, scale in (({}, 8 / 4), ({"rslora": True}, 8 / math.sqrt(4)), ({"rslora": True, "lora_alpha": 6}, 6 / 2)):
        scales = {module.scaling["default"] for module in adapter(tiny_llava_dir, **options).modules() if hasattr(module, "lora_A")}
        assert scales == {scale}


def test_dora_keeps_the_start_until_it_trains(tiny_llava_dir: Path) -> None:
    policy = adapter(tiny_llava_dir, dora=True)
    vectors = [name for name, weight in policy.named_parameters() if "magnitude" in name and weight.requires_grad]
    assert vectors
    ids = {"input_ids": torch.arange(5, 15)[None]}
    with torch.no_grad():
        before = policy(**ids).logits
        with policy.disable_adapter():
            start = policy(**ids).logits
        torch.testing.assert_close(before, start, rtol=0, atol=1e-5)
        fill_adapter(policy)
        assert (policy(**ids).logits - start).abs().max() > 1e-3
        with policy.disable_adapter():
            assert torch.equal(policy(**ids).logits, start)


def test_a_training_begins_with_another_adapter(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "pairs.parquet", scored_rows(8, reference=tiny_llava_dir))
    shared = ["--lora-targets", "q_proj", "v_proj", "--rslora", "--learning-rate", "1e-2", "--max-steps", "2"]
    assert train(tiny_llava_dir, data, tmp_path / "first", "--lora-rank", "4", *shared, kind="preference") == 0
    begin = ["--lora-init", str(tmp_path / "first")]
    still = [*shared[:-4], "--learning-rate", "0", "--max-steps", "1"]
    assert train(tiny_llava_dir, data, tmp_path / "same", "--lora-rank", "4", *still, *begin, kind="preference") == 0
    first, same = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "same"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(value.abs().max() > 0 for name, value in first.items() if "lora_B" in name)
    capsys.readouterr()
    assert train(tiny_llava_dir, data, tmp_path / "no", "--lora-rank", "2", "--rslora", *begin, kind="preference") == 2
    assert "has r 4, and this one 2; see --lora-rank" in capsys.readouterr().err
    assert train(tiny_llava_dir, data, tmp_path / "no", "--lora-rank", "4", "--rslora", *begin, kind="preference") == 2
    assert "is of other layers or shapes than this one" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "same"), "--out", str(tmp_path / "merged")]) == 0


def test_other_fields_of_peft(tiny_llava_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "peft.yaml"
    path.write_text("megatron_config: {dropout: 1e-1}\n")
    assert read_peft_config(path) == {"megatron_config": {"dropout": 0.1}}, "numbers as in YAML 1.2, like those of --config"
    path.write_text(json.dumps({"alpha_pattern": {"q_proj": 2}, "init_lora_weights": "gaussian"}))
    policy = adapter(tiny_llava_dir, peft_config=path)
    scales = {name.split(".")[-1]: module.scaling["default"] for name, module in policy.named_modules() if hasattr(module, "lora_A")}
    assert (scales["q_proj"], scales["k_proj"]) == (2 / 4, 8 / 4)


def test_blocks_that_get_an_adapter(tiny_llava_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "peft.yaml"
    for text in ("layers_to_transform: [1]", "layers_to_transform: 1"):
        path.write_text(text)
        policy = adapter(tiny_llava_dir, lora_targets=["q_proj"], peft_config=path)
        names = [name for name, _ in policy.named_parameters() if ".lora_A." in name]
        assert [name.rpartition(".layers.")[2] for name in names] == ["1.self_attn.q_proj.lora_A.default.weight"]
    policy.save_pretrained(tmp_path / "saved")
    base, _ = load_mllm(str(tiny_llava_dir), dtype="float32")
    again = {name for name, _ in PeftModel.from_pretrained(base, tmp_path / "saved").named_parameters() if ".lora_A." in name}
    assert again == set(names)
    path.write_text("layers_to_transform: [0, 2]")
    with pytest.raises(UserError, match="layers_to_transform of --peft-config holds 2; expected numbers from 0 to 1"):
        adapter(tiny_llava_dir, peft_config=path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("modules_to_save: [not_there]", "modules_to_save of --peft-config names 'not_there'"),
        ("alpha_pattern: {not_there: 2}", "alpha_pattern of --peft-config names 'not_there'"),
        ("target_parameters: [not_there]", "target_parameters of --peft-config names 'not_there'"),
        ("alpha_pattern: 2", "PEFT refuses the adapter"),
        ("trainable_token_indices: [1000000]", "PEFT refuses the adapter"),
        ("monteclora_config: {a: 1}", "PEFT refuses the adapter"),
    ],
)
def test_fields_that_this_model_can_not_have(text: str, reason: str, tiny_llava_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "peft.yaml").write_text(text)
    with pytest.raises(UserError, match=reason):
        adapter(tiny_llava_dir, peft_config=tmp_path / "peft.yaml")


def test_one_module_to_save_and_none(tiny_llava_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "peft.yaml"
    for text, named in (("modules_to_save: embed_tokens", ["embed_tokens"]), ("modules_to_save: null", None)):
        path.write_text(text)
        assert adapter(tiny_llava_dir, peft_config=path).peft_config["default"].modules_to_save == named


def test_an_adapter_that_can_not_be_merged_is_told(tiny_llava_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "peft.yaml").write_text("lora_bias: true")
    adapter(tiny_llava_dir, peft_config=tmp_path / "peft.yaml").save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="PEFT can't merge the adapter"):
        load_merged(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("r: 8", "has r, which is --lora-rank here"),
        ("layers_pattern: layers", "no field of peft.LoraConfig that can be set here"),
        ("lora_alpa: 8", "no field of peft.LoraConfig that can be set here; did you mean"),
        ("init_lora_weights: pissa", "changes the weights below the adapter"),
        ("bias: all", "would move the reference"),
        ("[1]", "holds a list; expected fields"),
        ("a: [", "is no YAML"),
        ("eva_config: {rho: 1e-1, rho: 2}", "stands there twice"),
    ],
)
def test_what_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "peft.yaml").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_peft_config(tmp_path / "peft.yaml")


def test_unknown_layers_and_odd_ranks_are_named(tiny_llava_dir: Path) -> None:
    with pytest.raises(UserError, match=r"--lora-targets names 'q_prj'.*did you mean 'q_proj'"):
        adapter(tiny_llava_dir, lora_targets=["q_prj"])
    with pytest.raises(UserError, match="--lora-ranks names 'k_proj'"):
        adapter(tiny_llava_dir, lora_targets=["q_proj"], lora_ranks={"k_proj": 2})
    with pytest.raises(UserError, match="expected a whole number from 1"):
        adapter(tiny_llava_dir, lora_ranks={"k_proj": 0.5})
    with pytest.raises(UserError, match="dora is for LoRA; set lora_rank"):
        LoraOptions(dora=True)
