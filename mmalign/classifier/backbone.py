"""Backbones of a classifier: any timm architecture, or the vision tower of a CLIP or SigLIP.

Shape legend: B = images, D = feature width, H = height, W = width.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import load_model_config_from_hf, parse_model_name
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionModelWithProjection, SiglipVisionModel

from mmalign.errors import UserError
from mmalign.files import expected_form, read_json_object
from mmalign.models.load import check_folder, check_safetensors, load_whole, named_errors
from mmalign.options.classifier import Library

_TOWERS: dict[str, Any] = {"clip_vision_model": CLIPVisionModelWithProjection, "siglip_vision_model": SiglipVisionModel}


Statistic = tuple[float, float, float]
"""Of red, green and blue."""


class Tower(nn.Module):
    """A vision tower whose output is a feature vector: CLIP's projected embedding, SigLIP's pooled one."""

    def __init__(self, tower: nn.Module) -> None:
        """Wrap a vision model of transformers."""
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D)."""
        output = self.tower(pixel_values=pixels)
        return output.image_embeds if hasattr(output, "image_embeds") else output.pooler_output


def build_backbone(library: Library, architecture: str, values: Mapping[str, Any]) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        library: Where it comes from.
        architecture: timm's name, or clip_vision_model or siglip_vision_model.
        values: timm: keywords of ``create_model``; transformers: values of the tower's config.

    Raises:
        ValueError: If there is no such architecture.
    """
    if library == "timm":
        return create_timm(architecture, values, pretrained=False, num_classes=0)
    if architecture not in _TOWERS:
        raise UserError(f"architecture is {architecture!r}; expected one of {', '.join(_TOWERS)}")
    return Tower(_TOWERS[architecture]._from_config(_tower_config(architecture, values)))


def load_backbone(library: Library, architecture: str, values: Mapping[str, Any], *, source: str) -> nn.Module:
    """Load a backbone as ``build_backbone`` makes it with published weights: timm's own (``source`` is its name), or a tower's checkpoint.

    Raises:
        ValueError: If there are no such weights.
    """
    if library == "timm":
        return create_timm(source, values, pretrained=True, num_classes=0)
    check_safetensors(source)
    return Tower(load_whole(_TOWERS[architecture], source, config=_tower_config(architecture, values), dtype=torch.float32))


def check_weights(path: Path) -> None:
    """Check that there is a file of weights.

    Raises:
        ValueError: If it isn't there, or is of another kind.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(f"backbone weights {path} not found as a file .safetensors; write one with safetensors.torch.save_file")


def load_weights(backbone: Any, path: Path) -> None:
    """Fill a timm backbone with a file's weights, by their names; a classifier's own in the file are left out.

    Raises:
        ValueError: If the file can't be read, or its weights are not the backbone's.
    """
    with named_errors(str(path)):
        found = load_file(path)
    wanted, named = backbone.state_dict(), backbone.default_cfg.get("classifier", "fc")
    # A distilled DeiT has two.
    heads = tuple(f"{head}." for head in ((named,) if isinstance(named, str) else named))
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unknown = [name for name in found if name not in wanted and not name.startswith(heads)]
    other = [name for name, value in found.items() if name in wanted and value.shape != wanted[name].shape]
    for names, what in ((missing, "lacks"), (unknown, "has unknown"), (other, "has other shapes of")):
        if names:
            raise UserError(f"{path} {what} {', '.join(names[:3])} ({len(names)} such weights); expected those of the timm backbone")
    backbone.load_state_dict({name: value for name, value in found.items() if name in wanted}, strict=False)


def create_timm(architecture: str, values: Mapping[str, Any] = MappingProxyType({}), **fixed: Any) -> Any:
    """Build a timm model.

    Args:
        architecture: timm's name, hf-hub:OWNER/NAME or local-dir:FOLDER.
        values: Keywords of ``timm.create_model`` that the user gives.
        **fixed: Those that mmalign gives.

    Raises:
        ValueError: If there is none of that name, its files can't be had, or a keyword is no one's, both's or without a value.
    """
    empty = [name for name, value in values.items() if value is None]
    if empty:
        # timm passes over them; and what stands so in YAML is most often "name:value" without the space.
        raise UserError(f"{architecture} is given {', '.join(map(repr, empty))} without a value; write '{{name: value}}', with the space")
    check_folder(architecture.removeprefix("local-dir:"))
    if Path(architecture).is_dir():
        raise UserError(f"{architecture} is a folder; timm takes a folder as local-dir:{architecture}")
    try:
        with named_errors(architecture):
            return timm.create_model(architecture, **values, **fixed)
    except RuntimeError as error:
        near = timm.list_models(f"*{architecture.split('_')[0][:6]}*")[:3]
        raise UserError(f"timm has no model {architecture!r}: {error}; near it: {', '.join(near) or 'none'}") from error


def read_timm_config(source: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Find what rebuilds a timm model without the place that its weights came from: timm's own name, and keywords.

    Args:
        source: timm's name, hf-hub:OWNER/NAME or local-dir:FOLDER, that could be built.
        values: The user's keywords, which win.
    """
    kind, name = parse_model_name(source)
    if not kind:
        return source, dict(values)
    if kind == "hf-hub":
        _, architecture, held = load_model_config_from_hf(name)
    else:
        config = read_json_object(Path(name) / "config.json")
        with expected_form(Path(name) / "config.json"):
            architecture, held = config["architecture"], config.get("model_args")
    return architecture, {**{key: value for key, value in (held or {}).items() if key != "num_classes"}, **values}


def read_tower_config(source: str) -> tuple[str, dict[str, Any]]:
    """Read the kind and the config of a CLIP's or SigLIP's vision tower.

    Raises:
        ValueError: If ``source`` has no such tower.
    """
    check_folder(source)
    with named_errors(source):
        config = AutoConfig.from_pretrained(source)
    projection = getattr(config, "projection_dim", None)
    config = getattr(config, "vision_config", config)
    if config.model_type not in _TOWERS:
        raise UserError(f"{source} is a {config.model_type}; expected a vision tower of {', '.join(_TOWERS)}, or a model that has one")
    values = config.to_diff_dict()
    if projection is not None:
        values["projection_dim"] = projection
    return config.model_type, {key: value for key, value in values.items() if key not in ("dtype", "transformers_version")}


@torch.no_grad()
def find_feature_width(backbone: nn.Module, image_size: int) -> int:
    """Find D by running a black image of the student's size.

    Raises:
        ValueError: If the backbone can't take images of that size, or gives something other than a vector per image.
    """
    training = backbone.training
    try:
        features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the backbone can't take images of {image_size} x {image_size} pixels ({error}); choose another size, or, where a timm model "
            f"has one, give it this one as a keyword: '{{img_size: {image_size}}}'"
        ) from error
    backbone.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"the backbone gives features of shape {shape}; expected one vector per image")
    return features.shape[1]


def find_statistics(library: Library, architecture: str, backbone: nn.Module) -> tuple[Statistic, Statistic]:
    """Find mean and deviation of the pixels that a backbone's published weights were trained with."""
    if library == "timm":
        settings = resolve_model_data_config(backbone)
        return tuple(settings["mean"]), tuple(settings["std"])
    if architecture == "siglip_vision_model":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _tower_config(architecture: str, values: Mapping[str, Any]) -> Any:
    return AutoConfig.for_model(architecture, **{key: value for key, value in values.items() if key != "model_type"})
