"""Stable Diffusion XL: what its network is told is what diffusers tells it; trained ones are stock pipelines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.denoisers.draws import make_seed
from mmalign.denoisers.pipeline import TextToImage
from mmalign.errors import UserError
from tests.commands.test_resume import read_steps
from tests.tiny_pipelines import (
    build_latent_pipeline,
    build_transformer_pipeline,
    build_xl_pipeline,
    picture_rows,
    save_pictures,
    save_pipeline,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("side", [16, 24])
def test_its_network_is_told_what_diffusers_tells_it(zeros: bool, side: int) -> None:
    """At the first step of the stock call, with guidance: no caption, and then the caption."""
    pipeline = build_xl_pipeline()
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    pipeline.set_progress_bar_config(disable=True)
    told: list[dict[str, Any]] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args, kwargs: told.append(kwargs), with_kwargs=True)
    pipeline("a red dog", num_inference_steps=1, guidance_scale=2.0, height=side, width=side, output_type="latent")
    found = TextToImage(pipeline).encode_captions(["", "a red dog"], side=side, device=CPU)
    torch.testing.assert_close(found["encoder_hidden_states"], told[0]["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        torch.testing.assert_close(found["added_cond_kwargs"][name], told[0]["added_cond_kwargs"][name])
    assert (found["encoder_hidden_states"][0] == 0).all() == zeros


@pytest.mark.parametrize("more", [["--objective", "dpo:beta=100", "--lora-rank", "2"], ["--noise", "path", "--objective", "clipped_dpo"]])
def test_it_trains_to_a_stock_pipeline(more: list[str], tmp_path: Path) -> None:
    model = save_pipeline(build_xl_pipeline(), tmp_path / "xl")
    data, out = save_pictures(tmp_path / "pairs.parquet", picture_rows(4)), tmp_path / "out"
    if "path" in more:
        drawn = ["sample-denoiser", str(data), "--model", str(model), "--out", str(tmp_path), "--paths", "--num-samples", "2"]
        assert main([*drawn, "--sampling-steps", "3", "--guidance", "2"]) == 0
        data = tmp_path / "scored.parquet"
        load_rows(tmp_path / "samples.parquet").add_column("scores", [[1.0, 0.0]] * 4).to_parquet(data)
    words = ["--data", str(data), "--out", str(out), "--max-steps", "2", "--batch-size", "2", "--logging-steps", "1"]
    words += ["--learning-rate", "1e-4" if "path" in more else "1e-3", "--schedule", "constant"]
    assert main(["train", "image-preference", "--model", str(model), *words, *more]) == 0
    first, second = read_steps(out)
    assert first["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert second["rewards/margin"] != 0
    if "path" in more:
        # Of the model that sampled.
        assert first["error/policy"] == pytest.approx(0.5, abs=0.1)
    pictures = tmp_path / "pictures"
    settings = ["--sampling-steps", "3", "--guidance", "2", "--model", str(out), "--out", str(pictures)]
    assert main(["sample-denoiser", str(data), *settings]) == 0
    pipeline = DiffusionPipeline.from_pretrained(out)
    generator = torch.Generator().manual_seed(make_seed(0, 0, 0))
    row = load_rows(pictures / "samples.parquet")[0]
    stock = pipeline(row["caption"], num_inference_steps=3, guidance_scale=2.0, height=16, width=16, generator=generator).images[0]
    drawn = load_image(row["images"][0])
    differences = torch.tensor(list(stock.getdata())) - torch.tensor(list(drawn.getdata()))
    assert differences.abs().max() <= 1


def test_other_shapes_of_stock_parts() -> None:
    """A tiny autoencoder has no distribution; a size of no square is not guessed; a transformer's cells are patches."""
    pipeline = build_latent_pipeline()
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    pipeline.register_modules(vae=AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), **blocks))
    source = TextToImage(pipeline)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(source.encode_images(pixels), pipeline.vae.encode(pixels).latents * pipeline.vae.config.scaling_factor)
    pipeline.unet.register_to_config(sample_size=[8, 12])
    with pytest.raises(UserError, match=r"sample_size is \[8, 12\].*give --resolution"):
        source.choose_side(None)
    assert source.choose_side(32) == 32
    with pytest.raises(UserError, match="resolution is 9; expected a multiple of 2, the side of the denoiser's cell"):
        TextToImage(build_transformer_pipeline()).choose_side(9)
