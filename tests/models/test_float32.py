"""A model in half precision that computes in float32 for a while, and is as it was afterwards."""

import copy
from itertools import chain
from pathlib import Path

import pytest
import torch

from mmalign.engine.logps import compute_response_logps
from mmalign.engine.probe import probe_rows
from mmalign.models.float32 import _fit, in_float32
from mmalign.models.load import load_mllm
from mmalign.models.quantize import find_four_bit
from mmalign.options.precision import Quantization
from tests.engine.test_logps import encode
from tests.models.test_references import make_batch
from tests.tiny_models import build_tiny_llava


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_as_the_same_weights_in_float32_do(dtype: torch.dtype) -> None:
    model, processor = build_tiny_llava()
    model.to(dtype)
    exact = copy.deepcopy(model).float()
    before = {name: value.clone() for name, value in chain(model.named_parameters(), model.named_buffers())}
    batch = make_batch(processor)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), in_float32(model) as held:
        assert held
        logps = compute_response_logps(model, batch).token_logps
    with torch.no_grad():
        assert torch.equal(logps, compute_response_logps(exact, batch).token_logps)
        assert not torch.equal(logps, compute_response_logps(model, batch).token_logps)
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        assert value.dtype == before[name].dtype, name
        assert torch.equal(value, before[name]), name


def test_an_error_inside_leaves_the_weights_as_they_were() -> None:
    model = build_tiny_llava()[0].bfloat16()
    with pytest.raises(KeyError), in_float32(model):
        raise KeyError
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double"])
def test_products_of_four_bit_weights_are_as_exact(tiny_llava_dir: Path, quantization: Quantization) -> None:
    model, processor = load_mllm(str(tiny_llava_dir), dtype="bfloat16", quantization=quantization)
    with in_float32(model) as held:
        assert held
        assert {layer.compute_dtype for layer in find_four_bit(model)} == {torch.float32}
    assert {layer.compute_dtype for layer in find_four_bit(model)} == {torch.bfloat16}
    choice = probe_rows(model, encode(processor, 2), pad_token_id=0)
    assert choice.shared, choice.reason
    assert float(choice.reason.rpartition(" ")[2].rstrip(")")) < 1e-4


def test_what_memory_does_not_hold_twice_stays_as_it_is() -> None:
    weight = torch.zeros(1, dtype=torch.bfloat16)
    assert _fit([weight, weight])
    assert not _fit([weight, weight.expand(2**45)])
    assert not _fit([weight.to("meta")])
