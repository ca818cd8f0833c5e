"""Training on pictures with real pipelines of diffusers: the loss by hand, frozen parts, draws, lists, inversion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional as F

from mmalign.denoisers.draws import draw_rows
from mmalign.denoisers.method import ROW, DenoiserMethod, ImagePreferenceMethod, PictureMethod
from mmalign.denoisers.model import Denoiser
from mmalign.denoisers.pipeline import TextToImage
from mmalign.denoisers.rows import PAIR_COLUMNS, read_pictures, to_image, to_pixels
from mmalign.errors import UserError
from mmalign.options.denoisers import ImagePreferenceOptions, TrainDenoiserOptions
from mmalign.runs.denoisers import build
from tests.tiny_models import random_image
from tests.tiny_pipelines import build_latent_pipeline, build_pixel_pipeline, list_rows, moved, picture_rows, single_rows

SHARED: dict[str, Any] = {"model": "none", "data": Path("none"), "out": Path("none")}
PREFERENCE = ImagePreferenceOptions(**SHARED, objective="dpo:beta=30")


@pytest.fixture
def latent() -> TextToImage:
    return TextToImage(build_latent_pipeline())


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, ROW: number} for number, row in enumerate(rows)]


def prepared(method: PictureMethod, policy: Denoiser, rows: list[dict[str, Any]], *, step: int = 3) -> dict[str, Any]:
    return method.complete(policy, method.collate(numbered(rows)), step=step)


def test_preference_loss_is_diffusers_own_numbers_by_hand(latent: TextToImage) -> None:
    """The stock UNet, scheduler, encoders and MSE, called as diffusers' training scripts do."""
    policy, method = build(PREFERENCE, latent)
    rows, pipeline = picture_rows(2), latent.pipeline
    batch = prepared(method, policy, rows)
    found = method.compute(moved(policy), batch)
    draws = draw_rows([0, 1], step=3, seed=0, shape=(4, 8, 8), num_times=1000)
    assert isinstance(method, ImagePreferenceMethod)
    expected = torch.zeros(())
    for i, row in enumerate(rows):
        ids = pipeline.tokenizer(row["caption"], max_length=16, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            words = pipeline.text_encoder(ids)[0]
        errors = {}
        for side in ("chosen", "rejected"):
            pixels = to_pixels(row[f"image_{side}"], side=16)[None]
            with torch.no_grad():
                latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
            noisy = pipeline.scheduler.add_noise(latents, draws.noise[i : i + 1], draws.times[i : i + 1])
            for name, network in (("policy", pipeline.unet), ("reference", method.reference.model.network)):  # type: ignore[union-attr]
                predicted = network(noisy, draws.times[i : i + 1], encoder_hidden_states=words).sample
                errors[side, name] = F.mse_loss(predicted, draws.noise[i : i + 1])
        inside = -30 * (
            (errors["chosen", "policy"] - errors["chosen", "reference"]) - (errors["rejected", "policy"] - errors["rejected", "reference"])
        )
        expected = expected - F.logsigmoid(inside)
    torch.testing.assert_close(found.loss_sum, expected, rtol=1e-5, atol=1e-6)
    assert abs(found.metrics["rewards/margin"].total.item()) > 1e-3


def test_a_policy_at_its_reference_loses_ln_2(latent: TextToImage) -> None:
    policy, method = build(PREFERENCE, latent)
    found = method.compute(policy, prepared(method, policy, picture_rows(3)))
    torch.testing.assert_close(found.loss_sum, 3 * torch.tensor(2.0).log())
    assert found.metrics["rewards/chosen"].total.item() == 0


def test_gradients_reach_the_denoiser_alone(latent: TextToImage) -> None:
    policy, method = build(replace(PREFERENCE, noise="renoise", inversion_steps=3), latent)
    assert isinstance(method, ImagePreferenceMethod)
    policy.train()
    method.compute(moved(policy), prepared(method, policy, picture_rows(2))).loss_sum.backward()
    assert all(weight.grad is not None for weight in policy.parameters())
    frozen = [latent.pipeline.vae, latent.pipeline.text_encoder, method.reference.model]
    assert all(weight.grad is None and not weight.requires_grad for part in frozen for weight in part.parameters())
    assert policy.training


def test_pictures_of_a_row_share_noise_and_time_whatever_the_batch(latent: TextToImage) -> None:
    policy, method = build(PREFERENCE, latent)
    rows = numbered(picture_rows(3))
    whole = method.complete(policy, method.collate(rows), step=7)["inputs"]
    parts = [method.complete(policy, method.collate([row]), step=7)["inputs"] for row in rows]
    for name in ("noise", "times"):
        assert torch.equal(whole[name][0::2], whole[name][1::2])
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    other = method.complete(policy, method.collate(rows), step=8)["inputs"]
    assert not torch.equal(whole["noise"], other["noise"])
    assert len(set(whole["times"].tolist())) == 3


def test_captions_that_are_the_same_are_encoded_once(latent: TextToImage) -> None:
    """Each picture is told of its own; two rows share a caption, and one has none."""
    captions = ["a red dog", "a blue cat", "a red dog", "", "a blue cat", ""]
    each = [latent.encode_captions([caption], side=16, device=torch.device("cpu")) for caption in captions]
    alone = torch.cat([told["encoder_hidden_states"] for told in each])
    encoded: list[int] = []
    latent.pipeline.text_encoder.register_forward_hook(lambda module, args, output: encoded.append(len(output[0])))
    together = latent.encode_captions(captions, side=16, device=torch.device("cpu"))["encoder_hidden_states"]
    torch.testing.assert_close(together, alone)
    assert encoded == [3]
    policy, method = build(PREFERENCE, latent)
    prepared(method, policy, picture_rows(2))
    assert encoded == [3, 2]


def test_lists(latent: TextToImage) -> None:
    """Of two pictures each, RankDPO is DPO times what their swap changes in DCG."""
    policy, method = build(replace(PREFERENCE, objective="rank:ranked_by=score", beta=30.0), latent)
    rows = list_rows([2, 3])
    moved(policy)
    both = method.compute(policy, prepared(method, policy, rows)).loss_sum
    alone = [method.compute(policy, method.complete(policy, method.collate([row]), step=3)).loss_sum for row in numbered(rows)]
    torch.testing.assert_close(both, alone[0] + alone[1])
    pair = {"caption": rows[0]["caption"], "image_chosen": rows[0]["images"][1], "image_rejected": rows[0]["images"][0]}
    _, pairs = build(PREFERENCE, latent)
    assert isinstance(pairs, ImagePreferenceMethod)
    assert isinstance(method, ImagePreferenceMethod)
    pairs.reference = method.reference
    dpo = pairs.compute(policy, prepared(pairs, policy, [pair])).loss_sum
    weight = (2**0.5 - 1) * (1 / torch.tensor(2.0).log() - 1 / torch.tensor(3.0).log())
    torch.testing.assert_close(alone[0], weight * dpo)


def test_scores_set_the_strength_of_smpo(latent: TextToImage) -> None:
    policy, method = build(replace(PREFERENCE, objective="smpo:beta=300"), latent)
    moved(policy)
    rows = picture_rows(2)
    even = [{**row, "score_chosen": 0.2} for row in rows]
    ln2 = torch.tensor(2.0).log()
    torch.testing.assert_close(method.compute(policy, prepared(method, policy, even)).loss_sum, 2 * ln2)
    assert abs(method.compute(policy, prepared(method, policy, rows)).loss_sum - 2 * ln2) > 1e-3


def test_an_sft_term_adds_the_chosen_pictures_errors(latent: TextToImage) -> None:
    policy, method = build(PREFERENCE, latent)
    moved(policy)
    batch = prepared(method, policy, picture_rows(2))
    plain = method.compute(policy, batch).loss_sum
    assert isinstance(method, ImagePreferenceMethod)
    method.options = replace(PREFERENCE, sft_weight=0.5)
    errors = policy(**batch["inputs"])
    torch.testing.assert_close(method.compute(policy, batch).loss_sum, plain + 0.5 * (errors[0] + errors[2]))


@pytest.mark.parametrize("noise", ["ddim", "renoise"])
def test_inverted_noise_is_the_noise_that_the_policy_sees(latent: TextToImage, noise: str) -> None:
    """One step of inversion from the image: its noise is the policy's own prediction at step 0, or the mean of two."""
    policy, method = build(replace(PREFERENCE, noise=noise, inversion_steps=1), latent)  # type: ignore[arg-type]
    inputs = prepared(method, policy, picture_rows(2))["inputs"]
    assert inputs["times"].tolist() == [999] * 4
    start = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        seen = policy.predict_noise(inputs["images"], start, inputs["conditions"])
        if noise == "renoise":
            alpha = policy.alphas_cumprod[999]
            reached = alpha.sqrt() * inputs["images"] + (1 - alpha).sqrt() * seen
            seen = (seen + policy.predict_noise(reached, start, inputs["conditions"])) / 2
    torch.testing.assert_close(inputs["noise"], seen, rtol=1e-4, atol=1e-5)


def test_denoiser_loss_of_pixels() -> None:
    """In pixel space, with a network that predicts a variance too, whose channels count for nothing."""
    source = TextToImage(build_pixel_pipeline())
    options = TrainDenoiserOptions(**SHARED, caption_dropout=0.0)
    model, method = build(options, source)
    rows = single_rows(2)
    batch = prepared(method, model, rows)
    draws = draw_rows([0, 1], step=3, seed=0, shape=(3, 8, 8), num_times=1000)
    pixels = torch.stack([to_pixels(row["image"], side=8) for row in rows])
    assert torch.equal(batch["inputs"]["images"], pixels)
    noisy = source.pipeline.scheduler.add_noise(pixels, draws.noise, draws.times)
    predicted = model.network(noisy, draws.times, encoder_hidden_states=batch["inputs"]["conditions"]["encoder_hidden_states"]).sample
    expected = sum(F.mse_loss(predicted[i, :3], draws.noise[i]) for i in range(2))
    torch.testing.assert_close(method.compute(model, batch).loss_sum, torch.as_tensor(expected))


def test_caption_dropout_is_a_share_of_the_rows() -> None:
    source = TextToImage(build_pixel_pipeline())
    model, method = build(TrainDenoiserOptions(**SHARED, caption_dropout=0.4), source)
    assert isinstance(method, DenoiserMethod)
    rows = single_rows(40)
    shown = prepared(method, model, rows)["inputs"]["conditions"]["encoder_hidden_states"]
    empty = source.encode_captions([""], side=8, device=shown.device)["encoder_hidden_states"][0]
    dropped = [torch.equal(each, empty) for each in shown]
    chances = draw_rows(range(40), step=3, seed=0, shape=(3, 8, 8), num_times=1000).chance
    assert dropped == [chance < 0.4 for chance in chances.tolist()]
    assert 8 < sum(dropped) < 24


def test_k_learns_and_its_loss_is_the_velocitys() -> None:
    source = TextToImage(build_pixel_pipeline())
    model, method = build(TrainDenoiserOptions(**SHARED, target="k"), source)
    batch = prepared(method, model, single_rows(4))
    assert model.share is not None
    assert model.share.item() == 0.5
    method.compute(model, batch).loss_sum.backward()
    assert model.share_logit is not None
    assert model.share_logit.grad is not None
    assert abs(model.share_logit.grad.item()) > 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": " "}, "expected text"),
        ({"caption": None}, "expected text"),
        ({"image_chosen": None}, "image is a NoneType"),
        ({"image_rejected": random_image(0)}, "the same picture"),
    ],
)
def test_broken_pairs_say_why(change: dict[str, Any], message: str) -> None:
    row = {**picture_rows(1)[0], **change}
    with pytest.raises(UserError, match=message):
        read_pictures(row, PAIR_COLUMNS, side=8, image_root=None)


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5], [0.0, 1.5], [0.0, None]])
def test_broken_scores_say_why(latent: TextToImage, scores: list[Any]) -> None:
    _, method = build(replace(PREFERENCE, objective="rank"), latent)
    with pytest.raises(UserError, match="scores"):
        method.check({**list_rows([2])[0], "scores": scores}, index=0)


def test_pictures_there_and_back() -> None:
    image = random_image(3, (12, 12))
    assert list(to_image(to_pixels(image, side=12)).getdata()) == list(image.getdata())


def test_other_pipelines_and_schedulers_are_refused() -> None:
    from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    with pytest.raises(UserError, match="DDPMPipeline"):
        TextToImage(DDPMPipeline(unet, DDIMScheduler()))
    pipeline = build_latent_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match="alphas_cumprod"):
        TextToImage(pipeline)


def test_a_reference_of_another_schedule_is_refused(tmp_path: Path) -> None:
    """At one step it would see another noisy image than the policy."""
    other = build_latent_pipeline(seed=1)
    other.save_pretrained(tmp_path / "same")
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, beta_schedule="squaredcos_cap_v2")
    other.save_pretrained(tmp_path / "other")
    source = TextToImage(build_latent_pipeline())
    build(replace(PREFERENCE, reference_model=str(tmp_path / "same")), source)
    with pytest.raises(UserError, match="add other shares of noise at the same step"):
        build(replace(PREFERENCE, reference_model=str(tmp_path / "other")), source)


def test_a_severity_below_what_the_objective_takes_is_refused() -> None:
    """It would turn the preference round, as of text."""
    _, method = build(replace(PREFERENCE, objective="hsa_dpo:beta=1"), TextToImage(build_latent_pipeline()))
    (row,) = picture_rows(1)
    method.check({**row, "severity": 0.0}, index=0)
    with pytest.raises(UserError, match="severity is -1; expected a finite number from 0"):
        method.check({**row, "severity": -1}, index=0)
