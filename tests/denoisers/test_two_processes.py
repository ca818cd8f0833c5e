"""``accelerate launch`` with two processes: image preferences train as one process with the whole batch does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.cli import main
from mmalign.denoisers.objectives import pair_loss, parse_pair_objective
from tests.commands.test_resume import read_steps
from tests.tiny_pipelines import build_latent_pipeline, picture_rows, save_pictures, save_pipeline
from tests.training.launching import launch

KTO = "kto_pair:beta=20"


def test_the_baseline_is_the_mean_that_is_given() -> None:
    """KTO's halves are compared with that of all pairs, not of those at hand."""
    objective = parse_pair_objective("kto_pair:beta=1", beta=None).objective
    ratios = torch.tensor([0.9, 0.1, 0.4, 0.3])
    losses, _ = pair_loss(objective, ratios, {}, mean=lambda values: torch.tensor(0.25))
    expected = [(torch.sigmoid(torch.tensor([0.25 - one, other - 0.25])).sum() / 2).item() for one, other in ((0.9, 0.1), (0.4, 0.3))]
    assert losses.tolist() == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """With a reference that is far from the policy; numbers of each process alone would give other losses, by 1e-2 of them."""
    model, reference = (save_pipeline(build_latent_pipeline(seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    data = save_pictures(tmp_path / "pairs.parquet", picture_rows(8))
    words = ["train", "image-preference", "--model", str(model), "--reference-model", str(reference), "--data", str(data)]
    words += ["--objective", KTO, "--max-steps", "4", "--logging-steps", "1", "--learning-rate", "1e-3", "--schedule", "constant"]
    assert main([*words, "--batch-size", "4", "--out", str(tmp_path / "alone")]) == 0
    done = launch(tmp_path, "-m", "tests.training.launched_command", *words, "--batch-size", "2", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-4000:]
    expected, got = (read_steps(tmp_path / name) for name in ("alone", "two"))
    assert len(got) == 4
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    folders = (model, tmp_path / "alone", tmp_path / "two")
    start, wanted, found = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in folders)
    for name, weight in found.items():
        # Adam divides by the gradient's size: where that is all rounding, a step of 1e-3 can go either way.
        assert (weight - wanted[name]).norm() < 1e-3 * wanted[name].norm() + 1e-3, name
    assert any((found[name] - start[name]).norm() > 1e-2 * start[name].norm() for name in found), "nothing was trained"
