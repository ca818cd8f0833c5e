"""``mmalign train denoiser`` and ``train image-preference``: from files to a pipeline that plain diffusers samples from."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch.utils import checkpoint

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.denoisers.draws import make_seed
from mmalign.denoisers.paths import read_path
from mmalign.denoisers.pipeline import TextToImage, load_pipeline
from mmalign.denoisers.rows import to_image
from mmalign.denoisers.sampling import sample_pictures
from tests.commands.test_resume import kill_at, read_steps, start
from tests.tiny_pipelines import (
    add_safety_checker,
    build_latent_pipeline,
    build_pixel_pipeline,
    build_transformer_pipeline,
    list_rows,
    picture_rows,
    save_pictures,
    save_pipeline,
    single_rows,
)

SIZES = ["--batch-size", "2", "--logging-steps", "1", "--schedule", "constant", "--learning-rate", "1e-3"]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    save_pipeline(build_latent_pipeline(), folder / "latent")
    save_pipeline(build_pixel_pipeline(), folder / "pixel")
    save_pipeline(build_latent_pipeline(prediction_type="v_prediction", seed=1), folder / "velocity")
    save_pipeline(build_transformer_pipeline(), folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pairs") / "pairs.parquet", picture_rows(7))


@pytest.fixture(scope="module")
def paths(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three paths of each caption as the command samples them, with scores."""
    folder = tmp_path_factory.mktemp("paths")
    data = save_pictures(folder / "captions.parquet", single_rows(7))
    settings = ["--paths", "--num-samples", "3", "--sampling-steps", "4", "--guidance", "2"]
    assert main(["sample-denoiser", str(data), "--model", str(pipelines / "latent"), "--out", str(folder), *settings]) == 0
    rows = load_rows(folder / "samples.parquet")
    rows.add_column("scores", [[0.5, float(i % 2), 0.2] for i in range(7)]).to_parquet(folder / "scored.parquet")
    return folder / "scored.parquet"


def words(model: Path, data: Path, out: Path, *more: str, method: str = "image-preference", steps: int = 4) -> list[str]:
    return ["train", method, "--model", str(model), "--data", str(data), "--out", str(out), *SIZES, "--max-steps", str(steps), *more]


def unet_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def sample(folder: Path) -> np.ndarray[Any, Any]:
    """By diffusers alone."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red dog", num_inference_steps=3, guidance_scale=2.0, output_type="np", generator=torch.Generator().manual_seed(0))
    return made.images[0]


def test_pairs_to_a_stock_pipeline(pipelines: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(pipelines / "latent", pairs, out, "--objective", "dpo:beta=100", "--save-steps", "2")) == 0
    steps = read_steps(out)
    assert len(steps) == 4
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert steps[0]["error/policy"] == steps[0]["error/reference"]
    assert steps[3]["rewards/margin"] != 0
    made = sample(out)
    assert made.shape == (16, 16, 3)
    assert np.isfinite(made).all()
    assert not np.array_equal(made, sample(pipelines / "latent"))
    # What is frozen is what it was, to the bit.
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = load_file(pipelines / "latent" / part), load_file(out / part)
        assert all(torch.equal(after[name], value) for name, value in before.items())
    card = (out / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert "StableDiffusionPipeline with a UNet2DConditionModel, 16 pixels" in card
    assert "`mmalign train image-preference`, 4 optimiser steps of 2 rows" in card


def test_the_saved_pipeline_is_the_trained_one(pipelines: Path, pairs: Path, tmp_path: Path) -> None:
    """Its weights are the last checkpoint's, and no longer those that it began with."""
    out = tmp_path / "out"
    assert main(words(pipelines / "latent", pairs, out, "--save-steps", "4")) == 0
    checkpoint = load_file(out / "checkpoints" / "checkpoint-4" / "model.safetensors")
    saved, began = unet_of(out), unet_of(pipelines / "latent")
    assert {f"network.{name}" for name in saved} == set(checkpoint)
    assert all(torch.equal(checkpoint[f"network.{name}"], value) for name, value in saved.items())
    assert any(not torch.equal(began[name], value) for name, value in saved.items())


def test_an_adapter_is_merged_into_a_stock_pipeline(pipelines: Path, pairs: Path, tmp_path: Path) -> None:
    """Attention alone changes, against the model without the adapter; what is saved has no adapter."""
    out = tmp_path / "out"
    assert main(words(pipelines / "latent", pairs, out, "--beta", "100", "--lora-rank", "2", "--save-steps", "2")) == 0
    assert read_steps(out)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert read_steps(out)[3]["rewards/margin"] != 0
    before, after = unet_of(pipelines / "latent"), unet_of(out)
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(re.search(r"\.to_(q|k|v|out\.0)\.weight$", name) for name in changed)
    assert sample(out).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("more", "moment"),
    [
        ([], "checkpoint-8/manifest.json"),
        (["--noise", "renoise"], "checkpoint-8"),
        (["--lora-rank", "2"], "checkpoint-8/manifest.json"),
        (["--noise", "path", "--objective", "clipped_dpo"], "checkpoint-8"),
    ],
    ids=["random", "renoise", "adapter", "path"],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    pipelines: Path, pairs: Path, paths: Path, tmp_path: Path, more: list[str], moment: str
) -> None:
    data = paths if "path" in more else pairs
    more = ["--inversion-steps", "3", "--objective", "smpo:beta=500", "--save-steps", "4", *more]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert main(words(pipelines / "latent", data, undisturbed, *more, steps=14)) == 0
    command = words(pipelines / "latent", data, killed, *more, steps=14)
    kill_at(killed / "checkpoints" / moment, start(command), seconds=600)
    assert not (killed / "unet").exists()
    assert main(command) == 0
    got, expected = unet_of(killed), unet_of(undisturbed)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert read_steps(killed) == read_steps(undisturbed)
    assert np.array_equal(sample(killed), sample(undisturbed))


def test_pixels_with_a_learned_target(pipelines: Path, tmp_path: Path) -> None:
    """What diffusers does not know it refuses to sample from; k is in the scheduler's file, and training goes on from it."""
    data, first, second = save_pictures(tmp_path / "rows.parquet", single_rows(6)), tmp_path / "first", tmp_path / "second"
    assert main(words(pipelines / "pixel", data, first, "--target", "k", "--learning-rate", "0.05", method="denoiser")) == 0
    config = json.loads((first / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "k"
    assert config["target_share"] == pytest.approx(read_steps(first)[-1]["denoiser/share"], abs=0.05)
    assert config["target_share"] != 0.5
    with pytest.raises(ValueError, match="prediction_type given as k"):
        sample(first)
    assert main(words(first, data, second, "--learning-rate", "1e-9", method="denoiser", steps=1)) == 0
    assert read_steps(second)[0]["denoiser/share"] == pytest.approx(config["target_share"], abs=1e-6)


def test_pixels_to_a_stock_pipeline(pipelines: Path, tmp_path: Path) -> None:
    data, out = save_pictures(tmp_path / "rows.parquet", single_rows(6)), tmp_path / "out"
    assert main(words(pipelines / "pixel", data, out, method="denoiser", steps=40)) == 0
    losses = [step["loss"] for step in read_steps(out)]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])
    assert sample(out).shape == (8, 8, 3)


def test_a_transformer_without_a_vae(pipelines: Path, pairs: Path, tmp_path: Path) -> None:
    """PixArt in pixel space: trains, and draws with mmalign what it draws with diffusers alone."""
    out = tmp_path / "out"
    assert main(words(pipelines / "transformer", pairs, out, "--beta", "100")) == 0
    assert read_steps(out)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    pipeline = DiffusionPipeline.from_pretrained(out, vae=None)
    settings: dict[str, Any] = {"clean_caption": False, "use_resolution_binning": False, "guidance_scale": 2.0}
    made = pipeline("a red dog", num_inference_steps=3, output_type="latent", generator=[torch.Generator().manual_seed(4)], **settings)
    (drawn,) = sample_pictures(load_pipeline(str(out)), ["a red dog"], [4], steps=3, guidance=2.0, side=8)
    assert np.array_equal(np.asarray(drawn), np.asarray(to_image(made.images[0])))


def test_a_step_is_the_same_however_it_is_split(pipelines: Path, pairs: Path, tmp_path: Path) -> None:
    """Four rows at once, or two and two: their noise is theirs, so the step is one."""
    split = ["--batch-size", "2", "--gradient-accumulation-steps", "2"]
    for name, more in (("whole", ["--batch-size", "4"]), ("split", split)):
        assert main([*words(pipelines / "latent", pairs, tmp_path / name, "--beta", "100", steps=3), *more]) == 0
    steps = [read_steps(tmp_path / name) for name in ("whole", "split")]
    for one, other in zip(*steps, strict=True):
        for key in ("loss", "error/policy", "rewards/margin"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("more", [[], ["--lora-rank", "2"]], ids=["whole", "adapter"])
def test_paths_train(pipelines: Path, paths: Path, tmp_path: Path, more: list[str]) -> None:
    """D3PO: a step's error under the model that sampled it is half the variance of what was drawn; from there it parts."""
    out = tmp_path / "out"
    command = words(pipelines / "latent", paths, out, "--noise", "path", "--objective", "clipped_dpo:clip_range=0.5", *more, steps=12)
    assert main([*command, "--batch-size", "7"]) == 0
    steps = read_steps(out)
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert steps[0]["error/policy"] == pytest.approx(0.5, abs=0.05)
    assert steps[0]["error/policy"] == steps[0]["error/reference"]
    assert np.mean([step["rewards/margin"] for step in steps[6:]]) > 0
    assert sample(out).shape == (16, 16, 3)
    assert any(not torch.equal(value, unet_of(pipelines / "latent")[name]) for name, value in unet_of(out).items())


def test_paths_resume_to_the_same_bytes_and_keep_the_captions_columns(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "id": f"c{i}", "images": "old"} for i, row in enumerate(single_rows(5))]
    data = save_pictures(tmp_path / "rows.parquet", rows)
    monkeypatch.setattr("mmalign.runs.sample_denoiser.SHARD_ROWS", 2)

    def command(out: Path, *more: str) -> list[str]:
        settings = ["--num-samples", "2", "--sampling-steps", "3", "--guidance", "2", "--paths"]
        return ["sample-denoiser", str(data), "--model", str(pipelines / "latent"), "--out", str(out), *settings, *more]

    assert main(command(tmp_path / "whole")) == 0
    assert main(command(tmp_path / "parts", "--shard", "2/2")) == 0
    assert main(command(tmp_path / "parts")) == 0
    files = [(tmp_path / name / "samples.parquet").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    made = load_rows(tmp_path / "whole" / "samples.parquet")
    assert made.column_names == ["caption", "image", "id", "images", "paths"]
    assert made["id"] == [f"c{i}" for i in range(5)]
    held = [[read_path(path, channels=4, num_times=1000) for path in row] for row in made["paths"]]
    # A caption's paths begin alike, and then differ; another caption's begin elsewhere.
    assert all(torch.equal(one.latents[0], other.latents[0]) for one, other in held)
    assert all(not torch.equal(one.latents[1], other.latents[1]) for one, other in held)
    assert not torch.equal(held[0][0].latents[0], held[1][0].latents[0])
    # The picture is where its path ends.
    source = load_pipeline(str(pipelines / "latent"))
    shown = np.asarray(to_image(source.decode_images(held[3][1].latents[-1:])[0]), dtype=int)
    assert np.abs(shown - np.asarray(load_image(made[3]["images"][1]), dtype=int)).max() <= 1


def test_lists_train(pipelines: Path, tmp_path: Path) -> None:
    data, out = save_pictures(tmp_path / "lists.parquet", list_rows([2, 3, 4, 3])), tmp_path / "out"
    assert main(words(pipelines / "latent", data, out, "--objective", "rank")) == 0
    assert len({step["loss"] for step in read_steps(out)}) == 4


def test_broken_rows_are_told(pipelines: Path, tmp_path: Path) -> None:
    rows = picture_rows(5)
    rows[2]["caption"], rows[3]["image_rejected"] = "", rows[3]["image_chosen"]
    data, out = save_pictures(tmp_path / "rows.parquet", rows), tmp_path / "out"
    assert main(words(pipelines / "latent", data, out, "--max-reject-share", "0.5", steps=1)) == 0
    reasons = [json.loads(line)["reason"] for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert "expected text" in reasons[0]
    assert "the same picture" in reasons[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objective", "simpo"], "objective simpo compares without a reference"),
        (["--objective", "dpoo"], "did you mean 'dpo'"),
        (["--objective", "ddo"], "set --beta"),
        (["--objective", "rank", "--sft-weight", "1"], "a list has no chosen image"),
        (["--objective", "rank"], "has no column images, scores"),
        (["--resolution", "15"], "expected a multiple of 2"),
        (["--inversion-steps", "0"], "inversion_steps is 0"),
        (["--noise", "path", "--objective", "clipped_dpo"], "has no column paths, scores"),
        (["--noise", "path"], "objective dpo has no beta for images that its paper gives; set --beta"),
        (["--noise", "path", "--objective", "rank"], "objective rank is of pictures"),
        (["--reference-model", "VELOCITY"], "reference_model predicts v_prediction"),
        (["--model", "nowhere/at-all"], "nowhere/at-all can't be loaded: there is no such folder"),
        (["--model", "./nowhere"], "there is no ./nowhere"),
    ],
)
def test_what_can_not_be_is_refused(
    pipelines: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    more = [str(pipelines / "velocity") if word == "VELOCITY" else word for word in more]
    try:
        status = main(words(pipelines / "latent", pairs, tmp_path / "out", *more))
    except SystemExit as stop:
        # How what can't be parsed ends.
        status = stop.code  # type: ignore[assignment]
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "unet").exists()


def test_without_diffusers_the_extra_is_named(
    pipelines: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(words(pipelines / "latent", pairs, tmp_path / "out")) == 2
    assert "pip install 'mmalign[image]'" in capsys.readouterr().err


def test_samples_resume_to_the_same_bytes_and_are_diffusers_own(pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save_pictures(tmp_path / "rows.parquet", single_rows(5))
    monkeypatch.setattr("mmalign.runs.sample_denoiser.SHARD_ROWS", 2)

    def command(out: Path, *more: str) -> list[str]:
        settings = ["--num-samples", "2", "--sampling-steps", "3", "--guidance", "2"]
        return ["sample-denoiser", str(data), "--model", str(pipelines / "latent"), "--out", str(out), *settings, *more]

    assert main(command(tmp_path / "whole")) == 0
    assert main(command(tmp_path / "parts", "--shard", "2/2")) == 0
    assert not (tmp_path / "parts" / "samples.parquet").exists()
    assert main(command(tmp_path / "parts")) == 0
    files = [(tmp_path / name / "samples.parquet").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    rows = load_rows(tmp_path / "whole" / "samples.parquet")
    assert [len(images) for images in rows["images"]] == [2] * 5
    pipeline = DiffusionPipeline.from_pretrained(pipelines / "latent")
    captions = [row["caption"] for row in single_rows(2) for _ in range(2)]
    generators = [torch.Generator().manual_seed(make_seed(0, row, number)) for row in range(2) for number in range(2)]
    stock = pipeline(captions, num_inference_steps=3, guidance_scale=2.0, output_type="np", generator=generators).images
    drawn = np.stack([np.asarray(load_image(picture)) for images in rows["images"][:2] for picture in images])
    assert np.abs(drawn / 255 - stock).max() <= 0.5 / 255 + 1e-4
    assert main(command(tmp_path / "whole", "--guidance", "3")) == 2
    assert main(command(tmp_path / "odd", "--resolution", "15")) == 2


def test_what_a_safety_checker_makes_black_is_left_out_and_told(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three captions with two pictures each: both of the first, and one of the last."""
    data = save_pictures(tmp_path / "rows.parquet", single_rows(3))
    monkeypatch.setattr("mmalign.runs.sample_denoiser.SHARD_ROWS", 1)

    def draw(model: Path, out: str, *more: str) -> list[list[Any]]:
        words = ["sample-denoiser", str(data), "--model", str(model), "--out", str(tmp_path / out), "--num-samples", "2"]
        assert main([*words, "--sampling-steps", "2", "--guidance", "2", *more]) == 0
        rows = load_rows(tmp_path / out / "samples.parquet")
        return [[row["caption"], *map(load_image, row["images"] if "images" in row else [row["image_rejected"]])] for row in rows]

    first, second, third = draw(pipelines / "latent", "every")
    assert "black" not in capsys.readouterr().out
    pipeline = build_latent_pipeline()
    add_safety_checker(pipeline, [*first[1:], third[1]], [*second[1:], third[2]])
    checked = save_pipeline(pipeline, tmp_path / "checked")
    assert draw(checked, "checked") == [second, [third[0], third[2]]]
    assert "3 of 6 pictures were made black by the pipeline's safety checker, and are left out" in capsys.readouterr().out
    assert [row[1] for row in draw(checked, "pairs", "--pairs")] == [*second[1:], third[2]]
    save_pictures(data, single_rows(1))
    words = [
        "sample-denoiser",
        str(data),
        "--model",
        str(checked),
        "--out",
        str(tmp_path / "none"),
        "--sampling-steps",
        "2",
        "--guidance",
        "2",
    ]
    assert main(words) == 2
    assert "made all pictures black" in capsys.readouterr().err


def test_pairs_with_own_samples(pipelines: Path, tmp_path: Path) -> None:
    """What DDO trains on: the data's picture, and one that the pipeline made; in pixels, of a target that diffusers lacks."""
    data = save_pictures(tmp_path / "rows.parquet", single_rows(3))
    assert main(words(pipelines / "pixel", data, tmp_path / "k", "--target", "k", method="denoiser", steps=1)) == 0
    command = ["sample-denoiser", str(data), "--model", str(tmp_path / "k"), "--out", str(tmp_path / "samples"), "--sampling-steps", "3"]
    assert main([*command, "--pairs"]) == 0
    rows = load_rows(tmp_path / "samples" / "samples.parquet")
    assert [np.asarray(load_image(image)).shape for image in rows["image_rejected"]] == [(8, 8, 3)] * 3
    assert all(np.array_equal(load_image(image), row["image"]) for image, row in zip(rows["image_chosen"], single_rows(3), strict=True))
    trained = words(pipelines / "pixel", tmp_path / "samples" / "samples.parquet", tmp_path / "ddo", "--objective", "ddo", "--beta", "10")
    assert main(trained) == 0


def test_paths_of_the_datas_pictures_stay_paths_in_pairs(pipelines: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [{"caption": row["caption"], "image": f"{i}.png"} for i, row in enumerate(single_rows(2))]
    for i, row in enumerate(single_rows(2)):
        row["image"].save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    out = tmp_path / "samples"
    command = ["sample-denoiser", str(tmp_path / "rows.json"), "--model", str(pipelines / "latent"), "--out", str(out), "--pairs"]
    assert main([*command, "--sampling-steps", "2"]) == 0
    assert load_rows(out / "samples.parquet")["image_chosen"][:] == ["0.png", "1.png"]
    more = ["--image-root", str(tmp_path / "images")]
    assert main(words(pipelines / "latent", out / "samples.parquet", tmp_path / "dpo", *more, steps=1)) == 0


@pytest.mark.parametrize("lora", [[], ["--lora-rank", "2"]], ids=["full", "lora"])
@pytest.mark.parametrize("model", ["latent", "transformer"])
def test_gradient_checkpointing_changes_no_number(
    pipelines: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, lora: list[str]
) -> None:
    """The network computes its blocks a second time, and the steps are the same."""
    calls: list[int] = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *given, **options: calls.append(1) or original(*given, **options))
    for name, more in (("plain", []), ("checkpointed", ["--gradient-checkpointing"])):
        assert main(words(pipelines / model, pairs, tmp_path / name, *lora, *more, steps=2)) == 0
        assert bool(calls) == bool(more)
    plain, again = (read_steps(tmp_path / name) for name in ("plain", "checkpointed"))
    for one, other in zip(plain, again, strict=True):
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_a_learned_target_samples_as_its_fixed_one() -> None:
    """At k = 1 the network's output is the image itself: diffusers' own prediction_type sample."""
    learned, fixed = (TextToImage(build_pixel_pipeline()) for _ in range(2))
    learned.pipeline.scheduler.register_to_config(prediction_type="k", target_share=1.0)
    fixed.pipeline.scheduler.register_to_config(prediction_type="sample")
    for source in (learned, fixed):
        source.pipeline.set_progress_bar_config(disable=True)
    drawn = [sample_pictures(source, ["a red dog"] * 2, [1, 2], steps=4, guidance=2.0, side=8) for source in (learned, fixed)]
    assert all(np.array_equal(one, other) for one, other in zip(*drawn, strict=True))
    assert learned.pipeline.scheduler.config.prediction_type == "k"


def solid(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def mean_colours(folder: Path) -> list[list[float]]:
    """Of two pictures of a red dog and two of a blue cat, by diffusers' own scheduler."""
    captions = ["a red dog"] * 2 + ["a blue cat"] * 2
    pictures = sample_pictures(load_pipeline(str(folder)), captions, [1, 2, 3, 4], steps=20, guidance=1.0, side=8)
    return [np.asarray(picture).reshape(-1, 3).mean(0).tolist() for picture in pictures]


@pytest.mark.slow
def test_pictures_follow_captions_and_then_preferences(pipelines: Path, tmp_path: Path) -> None:
    """Two captions, a colour each, until they are drawn; then blue dogs are preferred to red ones, and dogs turn blue."""
    red, blue = (220, 30, 30), (30, 30, 220)
    pictures = [{"caption": "a red dog", "image": solid(red)}, {"caption": "a blue cat", "image": solid(blue)}] * 8
    pairs = [{"caption": "a red dog", "image_chosen": solid(blue), "image_rejected": solid(red)}] * 8
    data = [save_pictures(tmp_path / f"{i}.parquet", rows) for i, rows in enumerate((pictures, pairs))]
    usual = ["--batch-size", "8", "--schedule", "cosine", "--logging-steps", "50"]
    learnt = ["--target", "v_prediction", "--caption-dropout", "0", "--learning-rate", "5e-3", *usual]
    assert main(words(pipelines / "pixel", data[0], tmp_path / "base", *learnt, method="denoiser", steps=800)) == 0
    drawn = mean_colours(tmp_path / "base")
    assert max(np.abs(np.subtract(drawn[:2], red)).max(), np.abs(np.subtract(drawn[2:], blue)).max()) < 40
    preferred = ["--beta", "20", "--sft-weight", "1", "--learning-rate", "1e-3", *usual]
    assert main(words(tmp_path / "base", data[1], tmp_path / "dpo", *preferred, steps=40)) == 0
    drawn = mean_colours(tmp_path / "dpo")
    assert all(colour[2] > 150 > 100 > colour[0] for colour in drawn)
