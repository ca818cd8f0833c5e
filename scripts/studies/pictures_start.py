"""The start of the study of pictures: a tokenizer of drawings, a Janus around it, and its fine-tuning on captions.

The tokenizer is a stock ``JanusVQVAE`` with 8 x 8 tokens of 64 codes for 32 pixels, trained here on drawings; the rest is random.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.images import load_image
from mmalign.models.chat_templates import build_chat_template

SIDE, PATCH, CODES, WIDTH = 32, 4, 64, 128
BATCH = 32
REVIVED_EVERY = 50
_MARKS = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}


def build_processor(tokenizer: Path) -> hf.JanusProcessor:
    """Make the processor of a world's words."""
    words = hf.PreTrainedTokenizerFast.from_pretrained(tokenizer, extra_special_tokens={"image_token": "<image>", **_MARKS})
    images = hf.JanusImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    template = build_chat_template("vicuna", image_token="<image>", eos_token=words.eos_token)
    return hf.JanusProcessor(images, words, chat_template=template, num_image_tokens=(SIDE // PATCH) ** 2)


def build_janus(processor: hf.JanusProcessor, *, seed: int) -> hf.JanusForConditionalGeneration:
    """Make a random Janus of a small Llama."""
    tower = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0, "projection_dim": WIDTH}
    pictures = {
        "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 64, "base_channels": 32, "channel_multiplier": [1, 1, 2],
        "num_res_blocks": 1, "projection_dim": WIDTH, "image_token_embed_dim": WIDTH,
    }  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": len(processor.tokenizer), "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
        "bos_token_id": processor.tokenizer.bos_token_id, "pad_token_id": processor.tokenizer.pad_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }  # fmt: skip
    config = hf.JanusConfig(
        text_config=text, vq_config=pictures, tie_word_embeddings=False,
        vision_config={**tower, "image_size": SIDE, "patch_size": PATCH, "num_image_tokens": (SIDE // PATCH) ** 2},
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    return hf.JanusForConditionalGeneration(config)


def train_tokenizer(model: hf.JanusForConditionalGeneration, pictures: Sequence[Image.Image], *, steps: int, seed: int) -> float:
    """Train the model's tokenizer of pictures on drawings, by directions, as codes are read.

    Returns:
        The mean squared error of the last step's pictures, of values from -1 to 1.
    """
    vq = model.model.vqmodel.requires_grad_(True).train()
    pixels = torch.stack([_to_pixels(one) for one in pictures])
    optimizer = torch.optim.AdamW(vq.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    used, error = torch.zeros(CODES, dtype=torch.bool), torch.tensor(0.0)
    for step in range(steps):
        batch = pixels[torch.randint(len(pixels), (BATCH,), generator=generator)]
        latent = F.normalize(vq.quant_conv(vq.encoder(batch)), dim=1)
        codes, loss = _quantize(latent, vq.quantize.embedding.weight)
        drawn = vq.decoder(vq.post_quant_conv(_straight_through(latent, codes, vq.quantize.embedding.weight)))
        error = F.mse_loss(drawn, batch)
        optimizer.zero_grad()
        (error + loss).backward()
        optimizer.step()
        schedule.step()
        used[codes.flatten()] = True
        if step % REVIVED_EVERY == 0 and step < steps // 2:
            _revive(vq.quantize.embedding.weight, latent, used, generator)
            used.zero_()
    vq.requires_grad_(False).eval()
    return float(error.detach())


def _to_pixels(picture: Image.Image) -> Tensor:
    raw = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def _quantize(latent: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each place, and what draws codes to latents and, a quarter as much, latents to codes."""
    units = F.normalize(weight, dim=-1)
    flat = latent.flatten(2).mT
    codes = (flat @ units.T).argmax(-1)
    nearest = units[codes]
    return codes, F.mse_loss(nearest, flat.detach()) + 0.25 * F.mse_loss(flat, nearest.detach())


def _straight_through(latent: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    nearest = F.normalize(weight, dim=-1)[codes].mT.view_as(latent)
    return latent + (nearest - latent).detach()


@torch.no_grad()
def _revive(weight: Tensor, latent: Tensor, used: Tensor, generator: torch.Generator) -> None:
    """Put codes that no place took onto random latents."""
    flat = latent.flatten(2).mT.flatten(0, 1)
    picked = torch.randint(len(flat), (int((~used).sum()),), generator=generator)
    weight[~used] = flat[picked]


def make_model(folder: Path, world: Path, rows: Sequence[dict[str, object]], *, steps: int, seed: int = 0) -> float:
    """Train the tokenizer on a world's drawings, and save the model and its processor; returns the tokenizer's error."""
    processor = build_processor(world / "tokenizer")
    model = build_janus(processor, seed=seed)
    error = train_tokenizer(model, [load_image(row["image"], root=None) for row in rows], steps=steps, seed=seed)
    model.generation_config.update(bos_token_id=model.config.text_config.bos_token_id, pad_token_id=model.config.text_config.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return error
