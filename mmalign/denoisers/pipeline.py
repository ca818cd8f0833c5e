"""Stock text-to-image pipelines of diffusers, in and out: captions and images to what the denoiser takes.

Shape legend: R = images, C = channels, S = side in pixels, s = side of what the denoiser sees.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.denoisers.model import Conditions, Denoiser, PathDenoiser
from mmalign.errors import UserError
from mmalign.files import read_json_object
from mmalign.models.fingerprint import hash_files
from mmalign.models.load import check_folder, named_errors
from mmalign.options.denoisers import Target

SHARE = "target_share"
"""Where the scheduler's config holds the learned k."""
OTHER_WEIGHTS = frozenset({".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pb", ".pt", ".pth"})
"""Files of weights that are not read: safetensors alone are."""
_XL = "StableDiffusionXLPipeline"
# What a pipeline's encode_prompt returns, by the denoiser's arguments; None is what guidance would be told.
_ARGUMENTS: dict[str, tuple[str | None, ...]] = {
    "StableDiffusionPipeline": ("encoder_hidden_states",),
    _XL: ("encoder_hidden_states", None, "text_embeds"),
    "IFPipeline": ("encoder_hidden_states",),
    "PixArtAlphaPipeline": ("encoder_hidden_states", "encoder_attention_mask"),
    "PixArtSigmaPipeline": ("encoder_hidden_states", "encoder_attention_mask"),
}


class TextToImage:
    """A pipeline and what training asks of it; all of its parts but the denoiser are frozen."""

    def __init__(self, pipeline: Any) -> None:
        """Take a pipeline.

        Raises:
            ValueError: If it is of another kind than those that are known here, or its scheduler is.
        """
        self.pipeline, self.name = pipeline, type(pipeline).__name__
        if self.name not in _ARGUMENTS:
            raise UserError(f"the pipeline is a {self.name}; expected one of {', '.join(_ARGUMENTS)}")
        if not hasattr(pipeline.scheduler, "alphas_cumprod"):
            kind = type(pipeline.scheduler).__name__
            raise UserError(f"the scheduler is a {kind}, which has no alphas_cumprod; expected one such as DDIMScheduler or DDPMScheduler")
        self.is_pixart = "encoder_attention_mask" in _ARGUMENTS[self.name]
        if self.is_pixart and self.network.use_additional_conditions:
            raise UserError("this PixArt is told of sizes and shapes, as those of 1024 pixels are, which training here does not do")
        self.vae = getattr(pipeline, "vae", None)
        for part in (self.vae, *(getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2"))):
            if part is not None:
                part.requires_grad_(False).eval()
        self.scale = 1 if self.vae is None else pipeline.vae_scale_factor

    @property
    def network(self) -> Any:
        """The denoiser's network."""
        return self.pipeline.transformer if "transformer" in self.pipeline.components else self.pipeline.unet

    @property
    def resolution(self) -> int:
        """Side of the images that it makes, in pixels.

        Raises:
            ValueError: If its config names no single one.
        """
        cells = self.network.config.sample_size
        if not isinstance(cells, int):
            raise UserError(f"the denoiser's sample_size is {cells}, which is no side of a square; give --resolution")
        return cells * self.scale

    def choose_side(self, side: int | None) -> int:
        """Take the side of images in pixels, or that of its own.

        Raises:
            ValueError: If it does not fit the denoiser's cells.
        """
        chosen, cell = side or self.resolution, self.scale * self.network.config.get("patch_size", 1)
        if chosen % cell:
            raise UserError(f"resolution is {chosen}; expected a multiple of {cell}, the side of the denoiser's cell")
        return chosen

    def denoiser(self, target: Target | None = None) -> Denoiser:
        """The part that trains, with another target if one is named.

        Raises:
            ValueError: If the pipeline's own target is not known.
        """
        return Denoiser(self.network, **self._settings() | ({} if target is None else {"target": target}))

    def path_denoiser(self) -> PathDenoiser:
        """The same for the steps of sampled paths; raises as ``denoiser``."""
        return PathDenoiser(self.network, **self._settings())

    def _settings(self) -> dict[str, Any]:
        config = self.pipeline.scheduler.config
        own = config.prediction_type
        if own not in ("epsilon", "sample", "v_prediction", "k"):
            raise UserError(f"the scheduler's prediction_type is {own!r}; expected epsilon, sample, v_prediction or k")
        clips = config.get("clip_sample") or config.get("thresholding")
        return {
            "alphas_cumprod": self.pipeline.scheduler.alphas_cumprod,
            "target": own,
            "channels": self.network.config.in_channels,
            "share": config.get(SHARE, 0.5),
            "clip": config.get("clip_sample_range", 1.0) if clips else None,
        }

    def to(self, device: torch.device) -> None:
        """Move what encodes."""
        self.pipeline.to(device)

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], *, side: int, device: torch.device) -> Conditions:
        """What the denoiser is told of each caption; captions that are the same are encoded once.

        Args:
            captions: A picture each.
            side: Of the pictures in pixels, which Stable Diffusion XL is told: of all of it, as its own sampling tells by default.
            device: Of the denoiser.
        """
        distinct = list(dict.fromkeys(captions))
        with without_warnings():
            found = self.pipeline.encode_prompt(prompt=distinct, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)
        places = torch.tensor([distinct.index(caption) for caption in captions], device=device)
        told: dict[str, Any] = {name: values[places] for name, values in zip(_ARGUMENTS[self.name], found, strict=False) if name}
        if self.name != _XL:
            return told | ({"added_cond_kwargs": {}} if self.is_pixart else {})
        if self.pipeline.config.force_zeros_for_empty_prompt:
            # As its guidance has it where there is no caption.
            empty = torch.tensor([caption == "" for caption in captions], device=device)
            told = {name: values.masked_fill(empty.view(-1, *[1] * (values.ndim - 1)), 0) for name, values in told.items()}
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=told["text_embeds"].dtype, device=device).expand(len(captions), -1)
        return {"added_cond_kwargs": {"text_embeds": told.pop("text_embeds"), "time_ids": sizes}, **told}

    def tell_cut(self, captions: Sequence[str]) -> None:
        """Say how many captions are longer than the text encoder reads; diffusers prints what is cut off each time that it encodes one."""
        told = self.encode_captions([""], side=self.scale, device=self.pipeline.device)
        longest = told["encoder_hidden_states"].shape[1]
        tokens = self.pipeline.tokenizer(list(captions), verbose=False)["input_ids"]
        if cut := sum(len(ids) > longest for ids in tokens):
            print(f"{cut:,} of {len(captions):,} captions are longer than the {longest} tokens that the text encoder reads, and are cut")

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """(R, C, s, s) what is denoised: the mean of the encoder's latents, or the (R, 3, S, S) pixels of -1 to 1 themselves."""
        if self.vae is None:
            return pixels
        found = self.vae.encode(pixels.to(self.vae.dtype))
        # A tiny autoencoder has latents and no distribution.
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return latents.to(pixels.dtype) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_images(self, images: Tensor) -> Tensor:
        """(R, 3, S, S) pixels of what was denoised."""
        if self.vae is None:
            return images
        return self.vae.decode(images.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0].to(images.dtype)

    def save(self, folder: Path, denoiser: Denoiser) -> None:
        """Write the pipeline as diffusers does, with the target in its scheduler's config.

        Diffusers loads it and samples from it; where the target is k it loads it and says that it doesn't know how to sample.
        """
        share = {} if denoiser.share is None else {SHARE: denoiser.share.item()}
        self.pipeline.scheduler.register_to_config(prediction_type=denoiser.target, **share)
        self.pipeline.save_pretrained(folder, safe_serialization=True)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Leave out what diffusers would print at every call."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_pipeline(source: str) -> TextToImage:
    """Load a pipeline in float32.

    Raises:
        ValueError: If diffusers is not installed, or there is no such pipeline.
    """
    kind, folder = _import_pipelines(), find_pipeline(source)
    with named_errors(source):
        pipeline = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **_absent_parts(folder))
    pipeline.set_progress_bar_config(disable=True)
    return TextToImage(pipeline)


def find_pipeline(source: str) -> Path:
    """The folder of a pipeline: its own, or where the hub's files are kept, fetched if they are not there yet; raises as loading."""
    if Path(source).is_dir():
        return Path(source)
    check_folder(source)
    with named_errors(source):
        return Path(_import_pipelines().download(source, use_safetensors=True))


def fingerprint_pipeline(source: str) -> dict[str, str]:
    """Hash the parts of a pipeline by name, with all files that diffusers may read of them; raises as loading."""
    folder = find_pipeline(source)
    index = folder / "model_index.json"
    parts = {name: folder / name for name in sorted(read_json_object(index)) if (folder / name).is_dir()}
    files = {name: sorted(path for path in part.rglob("*") if path.is_file()) for name, part in parts.items()}
    read = {name: [path for path in own if path.suffix not in OTHER_WEIGHTS] for name, own in files.items()}
    return {name: hash_files(own) for name, own in {index.name: [index], **read}.items()}


def _import_pipelines() -> Any:
    try:
        from diffusers import DiffusionPipeline
        from diffusers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise UserError("text-to-image pipelines need diffusers: pip install 'mmalign[image]'") from error
    disable_progress_bar()
    return DiffusionPipeline


def _absent_parts(folder: Path) -> dict[str, None]:
    """Parts that a pipeline in pixel space was saved without: diffusers wants them named."""
    index = folder / "model_index.json"
    if not index.is_file():
        return {}
    return {"vae": None} if read_json_object(index).get("vae", ()) == [None, None] else {}
