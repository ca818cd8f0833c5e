"""Sampled paths: stock diffusers' own, each step's density by hand, the loss of a pair, rows that can't be used."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainingArguments

from mmalign.denoisers.method import ROW
from mmalign.denoisers.model import PathDenoiser
from mmalign.denoisers.path_method import PathPreferenceMethod
from mmalign.denoisers.paths import SampledPath, pack_path, read_path, read_path_pair
from mmalign.denoisers.pipeline import TextToImage
from mmalign.denoisers.sampling import sample_paths
from mmalign.denoisers.schedule import Levels, reverse_step
from mmalign.errors import UserError
from mmalign.options.denoisers import ImagePreferenceOptions, SampleDenoiserOptions
from mmalign.runs.denoisers import build
from mmalign.training.trainer import MethodTrainer
from tests.tiny_pipelines import build_latent_pipeline, build_pixel_pipeline, build_transformer_pipeline, moved

CAPTIONS = ["a red dog", "a blue cat"]
OPTIONS = ImagePreferenceOptions(model="none", data=Path("none"), out=Path("none"), objective="clipped_dpo", noise="path")


def sampled(source: TextToImage, *, steps: int = 5, guidance: float = 3.0) -> list[tuple[Any, SampledPath]]:
    side = source.resolution
    return sample_paths(source, CAPTIONS, [7, 8], [1, 2], steps=steps, guidance=guidance, side=side)


def path_rows(source: TextToImage, **how: Any) -> list[dict[str, Any]]:
    """Two captions with two paths each; the second is better."""
    rows = []
    for row, caption in enumerate(CAPTIONS):
        made = sample_paths(source, [caption] * 2, [row] * 2, [10 * row, 10 * row + 1], **{"side": source.resolution, **how})
        rows.append({"caption": caption, "paths": [pack_path(path) for _, path in made], "scores": [0.2, 0.7], ROW: row})
    return rows


@pytest.mark.parametrize("make", [build_latent_pipeline, build_pixel_pipeline, build_transformer_pipeline])
def test_paths_are_those_of_stock_ddim_with_eta_1(make: Any) -> None:
    """The pipeline's own call with the scheduler of that grid: pictures, and where it was."""
    source = TextToImage(make())
    pipeline = source.pipeline
    # Not the cosine schedule, at whose begin diffusers takes a root of what rounds below 0.
    settings = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "set_alpha_to_one": True}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **settings)
    # IF asks for it.
    pipeline.scheduler.register_to_config(variance_type="fixed_small")
    made = sampled(source)
    config = source.network.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    start = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (7, 8)])
    seen: list[tuple[int, Any]] = []
    step = pipeline.scheduler.step

    @functools.wraps(step)
    def watched(output: Any, time: Any, sample: Any, *args: Any, **more: Any) -> Any:
        seen.append((int(time), sample.clone()))
        return step(output, time, sample, *args, **more)

    pipeline.scheduler.step = watched
    # The begins have seeds of their own.
    pipeline.prepare_latents = pipeline.prepare_intermediate_images = lambda *_, **__: start
    generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
    how: dict[str, Any] = {"guidance_scale": 3.0, "eta": 1.0, "generator": generators}
    how |= {} if source.name == "StableDiffusionPipeline" else {"clean_caption": False}
    how |= {"use_resolution_binning": False, "output_type": "latent"} if source.is_pixart else {"output_type": "pt"}
    stock = pipeline(CAPTIONS, num_inference_steps=5, **how).images
    for number, (picture, path) in enumerate(made):
        assert path.times.tolist() == [time for time, _ in seen] == [999, 799, 599, 399, 199]
        torch.testing.assert_close(path.latents[:-1], torch.stack([latents[number] for _, latents in seen]), rtol=1e-4, atol=1e-4)
        shown = np.asarray(picture).transpose(2, 0, 1) / 255
        expected = stock[number] if source.vae is not None else stock[number].clamp(-1, 1) / 2 + 0.5
        assert np.abs(shown - expected.numpy()).max() <= 0.5 / 255 + 1e-4
    assert made[0][1].guidance == 3.0


@pytest.mark.parametrize("make", [build_pixel_pipeline, build_transformer_pipeline])
def test_steps_from_pure_noise_are_finite_and_pictures_are_clipped(make: Any) -> None:
    """The cosine schedule begins with 5e-5 of the picture, and both schedulers clip."""
    for _, path in sampled(TextToImage(make())):
        assert path.latents.isfinite().all()
        assert path.latents[-1].abs().max() == 1
        assert path.latents[1:-1].abs().max() > 1


def test_paths_of_a_learned_target_are_those_of_its_fixed_one() -> None:
    """At k = 1 the network's output is the image itself."""
    learned, fixed = (TextToImage(build_pixel_pipeline()) for _ in range(2))
    learned.pipeline.scheduler.register_to_config(prediction_type="k", target_share=1.0)
    fixed.pipeline.scheduler.register_to_config(prediction_type="sample")
    for (_, one), (_, other) in zip(sampled(learned), sampled(fixed), strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)
    policy, _ = build(OPTIONS, learned)
    assert not any(weight.requires_grad for name, weight in policy.named_parameters() if name == "share_logit")


def test_a_step_by_hand() -> None:
    """From a 0.6, b 0.8 to a 0.8, b 0.6: sigma 0.6 / 0.8 sqrt(1 - 0.5625), and 0.36 * 0.75 / 0.8 of the noise stays."""
    levels = [Levels(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)) for a, b in ((0.6, 0.8), (0.8, 0.6))]
    step = reverse_step(torch.tensor(0.5, dtype=torch.float64), torch.tensor(-0.2, dtype=torch.float64), *levels)
    assert step.sigma.item() == pytest.approx(0.496078371, abs=1e-9)
    assert step.mean.item() == pytest.approx(0.8 * 0.5 - 0.3375 * 0.2, abs=1e-12)
    # What is kept and what is drawn are the level's noise together.
    assert 0.3375**2 + step.sigma.item() ** 2 == pytest.approx(0.36, abs=1e-12)


def test_the_sampler_gives_its_own_draws_half_their_square() -> None:
    """The error of a step under the model that sampled it is z^2 / 2 of the numbers that were drawn in it."""
    source = TextToImage(build_latent_pipeline())
    _, method = build(OPTIONS, source)
    policy = source.path_denoiser()
    for steps, guidance in ((5, 3.0), (3, 1.0)):
        batch = method.collate(path_rows(source, steps=steps, guidance=guidance))
        inputs = method.complete(policy, batch, step=0)["inputs"]
        assert (inputs["blank"] is None) == (guidance == 1)
        found = policy(**inputs)
        for number, time in enumerate(inputs["times"].tolist()):
            row, at = number // 2, batch["times"][number].tolist().index(time)
            # The second path is chosen.
            generator = torch.Generator().manual_seed(10 * row + 1 - number % 2)
            draws = [torch.randn(4, 8, 8, generator=generator) for _ in range(steps)]
            assert found[number].item() == pytest.approx(draws[at].square().mean().item() / 2, rel=0.02)


def test_the_loss_of_pairs_is_that_of_two_gaussians() -> None:
    """By torch's own densities of the stock UNet's steps, clipped as the authors clip them; ln 2 where nothing has moved."""
    source = TextToImage(build_latent_pipeline())
    policy, method = build(replace(OPTIONS, objective="clipped_dpo:beta=2,clip_range=0.02"), source)
    assert isinstance(method, PathPreferenceMethod)
    assert isinstance(policy, PathDenoiser)
    batch = method.complete(policy, method.collate(path_rows(source, steps=5, guidance=2.0)), step=4)
    torch.testing.assert_close(method.compute(policy, batch).loss_sum, 2 * torch.tensor(2.0).log())
    moved(policy)
    inputs, scheduler = batch["inputs"], DDIMScheduler.from_config(source.pipeline.scheduler.config, set_alpha_to_one=True)
    scheduler.set_timesteps(5)
    words, nothing = (inputs[name]["encoder_hidden_states"] for name in ("conditions", "blank"))
    ratios = []
    for i in range(4):
        time, reached, logps = inputs["times"][i], inputs["reached"][i : i + 1], []
        for network in (policy.network, method.reference.model.network):  # type: ignore[union-attr]
            with torch.no_grad():
                told, untold = (network(inputs["noisy"][i : i + 1], time, states[i : i + 1]).sample for states in (words, nothing))
            output = untold + 2 * (told - untold)
            undrawn = {"eta": 1.0, "variance_noise": torch.zeros_like(output)}
            mean = scheduler.step(output, int(time), inputs["noisy"][i : i + 1], **undrawn).prev_sample
            sigma = scheduler._get_variance(int(time), int(time) - 1000 // 5) ** 0.5
            logps.append(torch.distributions.Normal(mean, sigma).log_prob(reached).mean())
        ratios.append((logps[0] - logps[1]).exp().clamp(0.98, 1.02).log())
    expected = -sum(F.logsigmoid(2 * (ratios[i] - ratios[i + 1])) for i in (0, 2))
    found = method.compute(policy, batch)
    torch.testing.assert_close(found.loss_sum, expected, rtol=1e-4, atol=1e-5)
    assert abs(found.metrics["rewards/margin"].total.item()) > 1e-3


def test_gradient_of_a_step_by_hand() -> None:
    """To the network's output through the mean: that of [(x - mu_ref)^2 - (x - mu)^2] / (2 sigma^2), times the loss's slope."""
    source = TextToImage(build_latent_pipeline())
    policy, method = build(replace(OPTIONS, objective="dpo", beta=3.0), source)
    batch = method.complete(policy, method.collate(path_rows(source, steps=4, guidance=1.0)[:1]), step=2)
    outputs: list[Any] = []
    policy.network.register_forward_hook(lambda *call: outputs.append(call[-1][0]) or call[-1][0].retain_grad())  # type: ignore[operator, union-attr]
    found = method.compute(policy, batch)
    found.loss_sum.backward()
    inputs = batch["inputs"]
    a, b = policy.levels(inputs["times"])  # type: ignore[operator, union-attr]
    a_there, b_there = policy.levels(inputs["reached_times"])  # type: ignore[operator, union-attr]
    output = outputs[0].detach()
    mean, sigma = reverse_step((inputs["noisy"] - b * output) / a, output, Levels(a, b), Levels(a_there, b_there))
    # d mean / d output: -a_s b / a from the image, b_s^2 a / (a_s b) from the noise that stays.
    slope = -a_there * b / a + b_there**2 * a / (a_there * b)
    signs = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    # At the reference the loss is ln 2, its slope -beta / 2.
    expected = signs * 1.5 * (inputs["reached"] - mean) / sigma**2 * slope / output[0].numel()
    torch.testing.assert_close(outputs[0].grad, expected, rtol=1e-3, atol=1e-6)


def test_a_rows_step_is_its_own_whatever_the_batch() -> None:
    source = TextToImage(build_latent_pipeline())
    policy, method = build(OPTIONS, source)
    rows = path_rows(source, steps=9, guidance=1.0)
    whole = method.complete(policy, method.collate(rows), step=7)["inputs"]
    parts = [method.complete(policy, method.collate([row]), step=7)["inputs"] for row in rows]
    for name in ("noisy", "reached", "times", "reached_times"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert torch.equal(whole["times"][0::2], whole["times"][1::2])
    batch = method.collate(rows)
    drawn = {int(time) for step in range(80) for time in method.complete(policy, batch, step=step)["inputs"]["times"]}
    # Of nine steps the last is no Gaussian.
    assert sorted(drawn, reverse=True) == batch["times"][0].tolist()[:-1]


def test_paths_of_two_sizes_are_told() -> None:
    """Each row may be right by itself."""
    source = TextToImage(build_latent_pipeline())
    _, method = build(OPTIONS, source)
    small, large = path_rows(source, steps=3, guidance=1.0), path_rows(source, steps=3, guidance=1.0, side=32)
    with pytest.raises(UserError, match="paths of 8 x 8 and 16 x 16 in one data set; expected one size"):
        method.collate([small[0], large[1]])


def test_packed_paths_come_back_and_share_their_begin() -> None:
    source = TextToImage(build_latent_pipeline())
    ((_, path), (_, other)) = sample_paths(source, CAPTIONS[:1] * 2, [3, 3], [4, 5], steps=3, guidance=2.5, side=16)
    found = read_path(pack_path(path), channels=4, num_times=1000)
    torch.testing.assert_close(found.latents, path.latents, rtol=1e-3, atol=1e-3)
    assert found.times.tolist() == [999, 665, 332]
    assert found.guidance == 2.5
    assert torch.equal(path.latents[0], other.latents[0])
    assert not torch.equal(path.latents[1], other.latents[1])


def made_path(**change: Any) -> bytes:
    path = SampledPath(torch.zeros(4, 4, 2, 2), torch.tensor([999, 665, 332]), 2.0)
    return pack_path(path._replace(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": " "}, "caption is ' '; expected text"),
        ({"paths": None}, "expected a number for each path"),
        ({"scores": [1.0]}, "expected a number for each path"),
        ({"paths": [made_path()], "scores": [1.0]}, "of two paths or more"),
        ({"scores": [1.0, 1.0]}, "no path is better than another"),
        ({"scores": [1.0, float("nan")]}, "scores is nan; expected a finite number"),
        ({"paths": [made_path(), None]}, "a path can't be read"),
        ({"paths": [made_path(), b"no path"]}, "a path can't be read"),
        ({"paths": [made_path(), made_path(latents=torch.zeros(4, 3, 2, 2))]}, r"the shape \[4, 3, 2, 2\]; expected \[4, 4, side, side\]"),
        ({"paths": [made_path(), made_path(times=torch.tensor([1000, 665, 332]))]}, "expected that they fall, from below 1000"),
        ({"paths": [made_path(), made_path(times=torch.tensor([665, 999, 332]))]}, "expected that they fall"),
        ({"paths": [made_path(), made_path(latents=torch.full((4, 4, 2, 2), torch.inf))]}, "not finite"),
        ({"paths": [made_path(), made_path(guidance=3.0)]}, "other steps, sizes or guidance"),
        ({"paths": [made_path(), made_path(times=torch.tensor([999, 665, 331]))]}, "other steps, sizes or guidance"),
    ],
)
def test_broken_rows_say_why(change: dict[str, Any], message: str) -> None:
    row = {"caption": "a dog", "paths": [made_path(), made_path()], "scores": [0.0, 1.0]}
    assert read_path_pair(row, channels=4, num_times=1000).score_chosen == 1
    with pytest.raises(UserError, match=message):
        read_path_pair({**row, **change}, channels=4, num_times=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "rank"}, "objective rank is of pictures"),
        ({"sft_weight": 0.5}, "sft_weight is of pictures"),
        ({"resolution": 16}, "resolution is of pictures"),
    ],
)
def test_options_of_pictures_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(OPTIONS, **change)


def test_an_objective_of_no_paper_needs_its_beta() -> None:
    with pytest.raises(UserError, match="set --beta"):
        build(replace(OPTIONS, objective="dpo"), TextToImage(build_latent_pipeline()))


@pytest.mark.parametrize(("objective", "column"), [("hsa_dpo:beta=1", "severity"), ("mm_dpo:beta=1", "ls_factor")])
def test_an_objective_of_columns_that_paths_do_not_have_is_refused(objective: str, column: str) -> None:
    """Two of a row's paths have scores of their own, and nothing else has a place beside them."""
    with pytest.raises(UserError, match=f"reads the columns {column}; paths have score_chosen, score_rejected"):
        build(replace(OPTIONS, objective=objective), TextToImage(build_latent_pipeline()))


def test_a_loss_that_is_not_finite_leaves_its_batch(tmp_path: Path) -> None:
    """Unguided paths have no blank caption: what is not there is not saved."""
    source = TextToImage(build_latent_pipeline())
    policy, method = build(replace(OPTIONS, out=tmp_path), source)
    rows = Dataset.from_list(path_rows(source, steps=3, guidance=1.0))
    with torch.no_grad():
        next(policy.parameters()).fill_(torch.nan)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False)
    trainer = MethodTrainer(model=policy, args=arguments, train_dataset=rows, method=method)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; the batch is saved"):
        trainer.train()
    saved = load_file(tmp_path / "bad_batch_step0_rank0.safetensors")
    assert "inputs.noisy" in saved
    assert "inputs.blank" not in saved


@pytest.mark.parametrize(
    ("change", "message"), [({"pairs": True}, "two kinds of rows"), ({"sampling_steps": 1}, "expected 2 or more for paths")]
)
def test_paths_that_can_not_be_sampled_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleDenoiserOptions(data=Path("a"), model="m", out=Path("o"), paths=True, **change)
