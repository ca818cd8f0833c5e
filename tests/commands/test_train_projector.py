"""The projector beside a LoRA adapter: it trains, the reference does not move with it, and stock libraries load what is saved."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.load import load_mllm
from tests.commands.training import read_log, train
from tests.tiny_models import pair_rows

WORDS = ["--lora-rank", "4", "--train-projector"]
PROJECTOR = "multi_modal_projector."


def logps(model: nn.Module, processor: object) -> Tensor:
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(2))]
    encoded = [encode_responses(processor, images=r.images, prompt=r.prompt, responses=[r.chosen, r.rejected]) for r in rows]
    with torch.no_grad():
        return compute_response_logps(model.eval(), collate_prompts(encoded, pad_token_id=0)).token_logps


def projector(model: nn.Module) -> dict[str, Tensor]:
    return {name.split(PROJECTOR)[1]: value for name, value in model.named_parameters() if PROJECTOR in name and "original" not in name}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("start", ["tiny_llava_dir", "tiny_fastvlm_dir"])
def test_it_trains_is_switched_off_loaded_and_merged(
    request: pytest.FixtureRequest, pairs: Path, tmp_path: Path, start: str, quantization: str
) -> None:
    folder, out = request.getfixturevalue(start), tmp_path / "out"
    assert train(folder, pairs, out, *WORDS, "--quantization", quantization, "--projector-learning-rate", "1e-2") == 0
    # The reference is the policy with adapter and projector off: the same model at the first step, and no longer at the last.
    first, *_, last = read_log(out)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margin"] == 0
    assert abs(last["rewards/margin"]) > 1e-4
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == ["model.multi_modal_projector"]
    saved = {name.split(PROJECTOR)[1]: value for name, value in load_file(out / "adapter_model.safetensors").items() if PROJECTOR in name}
    base, processor = load_mllm(str(folder), quantization=quantization)
    started = {name: value.detach().clone() for name, value in projector(base).items()}
    assert saved.keys() == started.keys()
    moved = {name: float((saved[name] - started[name]).abs().max()) for name in saved}
    assert min(moved.values()) > 0, moved
    assert max(moved.values()) > 5e-3, "its own learning rate is ten times that of the adapter"

    before = logps(base, processor)
    adapted = PeftModel.from_pretrained(base, out)
    after = logps(adapted, processor)
    assert (after - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(logps(adapted, processor), before)
    assert torch.equal(logps(load_mllm(str(out), quantization=quantization)[0], processor), after)

    assert main(["merge", str(out), "--out", str(tmp_path / "merged")]) == 0
    merged, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    for name, value in projector(merged).items():
        assert torch.equal(value, saved[name]), name
    torch.testing.assert_close(logps(merged, processor), after, rtol=0, atol=1e-4)
