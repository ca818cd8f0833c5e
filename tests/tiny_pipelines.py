"""Tiny random text-to-image pipelines of stock diffusers classes, in latent and in pixel space, and rows of pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    IFPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tests.tiny_models import build_tokenizer, random_image, random_text

WIDTH = 16


def build_unet(channels: int, *, out: int, seed: int = 0, side: int = 8, **more: Any) -> UNet2DConditionModel:
    """A UNet of two levels that reads captions."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=out,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **{"cross_attention_dim": WIDTH, **more},
    )


def build_latent_pipeline(*, prediction_type: str = "epsilon", seed: int = 0) -> Any:
    """Stable Diffusion's classes: 16 pixels are 8 x 8 latents of 4 channels."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 16
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextConfig(
        vocab_size=512,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=build_unet(4, out=4, seed=seed),
        scheduler=DDIMScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_xl_pipeline(*, seed: int = 0) -> Any:
    """Stable Diffusion XL's classes: two text encoders, and a network that is told of sizes."""
    plain = build_latent_pipeline(seed=seed)
    text = CLIPTextConfig(**{**plain.text_encoder.config.to_dict(), "projection_dim": 8, "num_hidden_layers": 2})
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 8}
    steps = {"beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading", "steps_offset": 1}
    return StableDiffusionXLPipeline(
        vae=plain.vae,
        text_encoder=plain.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=plain.tokenizer,
        tokenizer_2=plain.tokenizer,
        unet=build_unet(4, out=4, seed=seed, cross_attention_dim=2 * WIDTH, **sizes),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", **steps),
        add_watermarker=False,
    )


def add_safety_checker(pipeline: Any, hidden: Sequence[Image.Image], shown: Sequence[Image.Image]) -> None:
    """Stable Diffusion's own checker with tiny random weights, whose concepts are the features of the pictures that it is to hide."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**sizes, "image_size": 16, "patch_size": 4}, projection_dim=WIDTH)
    checker = StableDiffusionSafetyChecker(config).eval()
    extractor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    with torch.no_grad():
        features = checker.visual_projection(checker.vision_model(extractor([*hidden, *shown], return_tensors="pt").pixel_values)[1])
    features = functional.normalize(features, dim=-1)
    for number, own in enumerate(features[: len(hidden)]):
        concept = own - features[len(hidden) :].mean(0)
        likeness = functional.normalize(features, dim=-1) @ functional.normalize(concept, dim=-1)
        checker.concept_embeds.data[number] = concept
        checker.concept_embeds_weights.data[number] = (likeness[number] + likeness[len(hidden) :].max()) / 2
    checker.concept_embeds_weights.data[len(hidden) :] = 2.0
    checker.special_care_embeds_weights.data[:] = 2.0
    pipeline.register_modules(safety_checker=checker, feature_extractor=extractor)


def build_pixel_pipeline(*, seed: int = 0) -> Any:
    """DeepFloyd IF's classes: pixels themselves, and a network that predicts a variance beside the noise."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text = T5Config(vocab_size=512, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return IFPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text),
        unet=build_unet(3, out=6, seed=seed),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def build_transformer_pipeline(*, seed: int = 0) -> Any:
    """PixArt's classes without a VAE: pixels themselves, and a transformer."""
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        patch_size=2,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
    )
    text = T5Config(vocab_size=512, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return PixArtAlphaPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=T5EncoderModel(text),
        vae=None,
        transformer=transformer,
        scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    )


def save_pipeline(pipeline: Any, folder: Path) -> Path:
    """Save as diffusers does."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def picture_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Captions with two pictures each."""
    return [
        {
            "caption": random_text(seed + i, 4),
            "image_chosen": random_image(seed + 2 * i),
            "image_rejected": random_image(seed + 2 * i + 1),
            "score_chosen": 0.25 + 0.01 * i,
            "score_rejected": 0.2,
        }
        for i in range(count)
    ]


def single_rows(count: int) -> list[dict[str, Any]]:
    """Captions with a picture each."""
    return [{"caption": row["caption"], "image": row["image_chosen"]} for row in picture_rows(count)]


def list_rows(counts: list[int]) -> list[dict[str, Any]]:
    """Captions with this many scored pictures each."""
    return [
        {
            "caption": random_text(i, 4),
            "images": [random_image(100 * i + k) for k in range(count)],
            "scores": [(k + i) % count / count for k in range(count)],
        }
        for i, count in enumerate(counts)
    ]


def save_pictures(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows of pictures as a parquet file."""
    types = {Image.Image: ImageFeature(), float: Value("float64"), str: Value("string")}
    features = {name: List(types[type(value[0])]) if isinstance(value, list) else types[type(value)] for name, value in rows[0].items()}
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)
    return path


def moved(denoiser: torch.nn.Module) -> torch.nn.Module:
    """A policy some way from its reference."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return denoiser
