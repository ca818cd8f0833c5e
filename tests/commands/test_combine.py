"""``mmalign combine-adapters``: the sum of matrices, the weights that are found, and what has no sum."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import softplus
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.adapters import add_lora
from mmalign.models.load import load_mllm
from mmalign.options.training import LoraOptions
from mmalign.runs.combine import COMBINATION_FILE, simplex
from tests.data_files import save_rows
from tests.tiny_models import build_tiny_llava, pair_rows


def save_adapter(base: Path, out: Path, *, seed: int, rank: int = 4, projector: bool = False, rslora: bool = False) -> Path:
    model, processor = load_mllm(str(base))
    options = LoraOptions(lora_rank=rank, lora_alpha=3 * rank, train_projector=projector, rslora=rslora)
    policy = add_lora(model, options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    policy.save_pretrained(out)
    processor.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> list[Path]:
    """Of rank 4 and 6, with a scale of 3."""
    folder = tmp_path_factory.mktemp("adapters")
    return [save_adapter(tiny_llava_dir, folder / f"domain{seed}", seed=seed, rank=2 + 2 * seed) for seed in (1, 2)]


def combine(adapters: list[Path], out: Path, *words: str) -> int:
    try:
        return main(["combine-adapters", *map(str, adapters), "--out", str(out), *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def changes(folder: Path, *, scale: float) -> dict[str, Tensor]:
    """What an adapter adds to each matrix, from its files."""
    weights = load_file(folder / "adapter_model.safetensors")
    return {
        name.replace(".lora_A", ""): scale * weights[name.replace("lora_A", "lora_B")] @ matrix
        for name, matrix in weights.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("rslora", [False, True])
def test_the_sum_of_matrices_is_exact(adapters: list[Path], tiny_llava_dir: Path, tmp_path: Path, rslora: bool) -> None:
    """The scale of the first is 3, or of the rank 4 it is 12 / sqrt(4)."""
    first = save_adapter(tiny_llava_dir, tmp_path / "first", seed=1, rank=4, rslora=rslora)
    assert combine([first, adapters[1]], tmp_path / "sum", "--weights", "0.7", "0.3") == 0
    one, second = changes(first, scale=6.0 if rslora else 3.0), changes(adapters[1], scale=3.0)
    found = changes(tmp_path / "sum", scale=1.0)
    assert found.keys() == one.keys()
    assert len(found) == 14
    # PEFT's own is empty.
    assert not (tmp_path / "sum" / "README.md").exists()
    for name, value in found.items():
        torch.testing.assert_close(value, 0.7 * one[name] + 0.3 * second[name], rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (10, 10, False)


def dpo_loss(base: Path, adapter: Path, rows: list[dict[str, object]]) -> float:
    """Loaded by stock PEFT, from the definition: mean of -log sigmoid(0.2 (h_w - h_l))."""
    _, processor = build_tiny_llava()
    policy = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(rows)]
    encoded = [encode_responses(processor, images=p.images, prompt=p.prompt, responses=[p.chosen, p.rejected]) for p in pairs]
    batch = collate_prompts(encoded, pad_token_id=0)
    with torch.no_grad():
        on = compute_response_logps(policy, batch).sums
        with policy.disable_adapter():
            off = compute_response_logps(policy, batch).sums
    gap = (on - off).view(-1, 2)
    return softplus(-0.2 * (gap[:, 0] - gap[:, 1])).mean().item()


def test_the_weights_with_the_lowest_mean_loss_are_taken(
    adapters: list[Path], tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second row of the first set, all of the second; losses of any weights are those of the adapter that is written with them."""
    rows = [pair_rows(6, seed=3), pair_rows(3, seed=50)]
    sets = [str(save_rows(tmp_path / f"set{number}.parquet", each)) for number, each in enumerate(rows)]
    measured = ["--max-pairs", "3", "--beta", "0.2", "--batch-size", "2", "--data", *sets]
    assert combine(adapters, tmp_path / "found", *measured) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "found" / COMBINATION_FILE).read_text())
    points = {tuple(point): values for point, values in record["losses"]}
    assert list(points) == [(n / 10, (10 - n) / 10) for n in range(11)]
    best = min(points, key=lambda point: sum(points[point]))
    assert record["weights"] == list(best)
    assert f"{best[0]:g} {adapters[0]} + {best[1]:g} {adapters[1]} saved in" in said
    used = [rows[0][::2], rows[1]]
    assert points[best] == pytest.approx([dpo_loss(tiny_llava_dir, tmp_path / "found", each) for each in used], abs=1e-4)
    assert points[(1.0, 0.0)] == pytest.approx([dpo_loss(tiny_llava_dir, adapters[0], each) for each in used], abs=1e-4)
    assert points[(0.0, 1.0)] == pytest.approx([dpo_loss(tiny_llava_dir, adapters[1], each) for each in used], abs=1e-4)
    assert max(map(sum, points.values())) - sum(points[best]) > 0.05
    assert combine(adapters, tmp_path / "given", *measured, "--weights", "-0.5", "2") == 0
    (given,) = json.loads((tmp_path / "given" / COMBINATION_FILE).read_text())["losses"]
    assert given[1] == pytest.approx([dpo_loss(tiny_llava_dir, tmp_path / "given", each) for each in used], abs=1e-4)


def test_the_grid() -> None:
    assert list(simplex(2, 2)) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    three = list(simplex(3, 10))
    assert len(set(three)) == 66
    assert all(sum(point) == pytest.approx(1) and min(point) >= 0 for point in three)


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda both: both[:1], ["--weights", "1"], "expected two or more"),
        (lambda both: both, [], "no weights are given, and no pairs to find them on; add --data or --weights"),
        (lambda both: both, ["--weights", "1"], "weights has 1 numbers for 2 adapters"),
        (lambda both: both, ["--weights", "1", "inf"], "expected a finite number"),
        (lambda both: [both[0], both[0].parent / "nowhere"], ["--weights", "1", "1"], "expected a folder with adapter_config.json"),
    ],
)
def test_what_cannot_be_combined(
    adapters: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[list[Path]], list[Path]],
    words: list[str],
    message: str,
) -> None:
    assert combine(make(adapters), tmp_path / "out", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_adapters_of_other_models_and_of_more_than_matrices(
    adapters: list[Path], tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for part in build_tiny_llava(seed=1):
        part.save_pretrained(other)
    strange = save_adapter(other, tmp_path / "strange", seed=3)
    assert combine([adapters[0], strange], tmp_path / "out", "--weights", "1", "1") == 2
    assert f"{strange} is an adapter of {other}, and {adapters[0]} one of {tiny_llava_dir}" in capsys.readouterr().err
    whole = save_adapter(tiny_llava_dir, tmp_path / "whole", seed=3, projector=True)
    assert combine([adapters[0], whole], tmp_path / "out", "--weights", "1", "1") == 2
    assert f"{whole} is not made of LoRA matrices alone" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert combine(adapters, tmp_path / "full", "--weights", "1", "1") == 2
    assert "is not empty; choose another --out" in capsys.readouterr().err
