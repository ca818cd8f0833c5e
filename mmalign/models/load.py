"""Load multimodal LLMs and CLIP models from disk or the hub, always through the stock auto classes."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import find_adapter_config_file

from mmalign.errors import UserError
from mmalign.files import read_json_object
from mmalign.held import find_held
from mmalign.models.held import HeldModel
from mmalign.models.processors import check_processor, give_padding
from mmalign.models.quantize import keep_gradients, quantization_options, recorded_quantization
from mmalign.options.precision import Attention, Dtype, Quantization

logger = logging.getLogger(__name__)

MOST_LAYERS = 10_000
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"}


def resolve_dtype(dtype: Dtype) -> torch.dtype:
    """Return the torch dtype; ``auto`` is float32 on the CPU and bfloat16 on an accelerator."""
    if dtype == "auto":
        return torch.bfloat16 if torch.accelerator.is_available() else torch.float32
    return getattr(torch, dtype)


def best_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return torch.device("cpu")
    # A launcher starts one process for each device of a machine; quantised weights must be on their own from the start.
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


def load_mllm(
    source: str,
    *,
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    attention: Attention = "sdpa",
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """Load a multimodal LLM and its processor; a folder with a LoRA adapter loads its base below it.

    Args:
        source: Checkpoint folder or hub id.
        dtype: Precision of the weights.
        quantization: Hold the language model's linear layers in 4 bits; those of an adapter's base where it is an adapter. Such a model
            is loaded to this process's accelerator.
        attention: Implementation of the language model's attention; the vision tower keeps its own.
        trust_remote_code: Run code that comes with the checkpoint. Off unless asked for.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        ValueError: If there is no checkpoint at ``source``, it is damaged, or quantised already.
    """
    if (held := _find_held_model(source, dtype, quantization)) is not None:
        give_padding(held.processor.tokenizer)
        if attention != "sdpa":
            held.model.set_attn_implementation({"text_config": attention})
        return held.model.eval(), held.processor
    check_exists(source, "config.json", "adapter_config.json")
    source = fetch_adapter(source)
    check_safetensors(source)
    options: dict[str, Any] = {"dtype": resolve_dtype(dtype), "trust_remote_code": trust_remote_code}
    processor = _read_processor(source, trust_remote_code=trust_remote_code)
    is_adapter = (Path(source) / "adapter_config.json").is_file()
    whole = find_base(source) if is_adapter else source
    if is_adapter and (trained := recorded_quantization(source)) != quantization:
        logger.warning(
            "the adapter %s was trained on weights with quantization %s, and these have %s: its numbers are others; give --quantization %s "
            "or merge it",
            *(source, trained, quantization, trained),
        )
    check_safetensors(whole)
    with named_errors(whole):
        options |= quantization_options(
            whole, quantization, dtype=resolve_dtype(dtype), device=best_device(), trust_remote_code=trust_remote_code
        )
    check_processor(processor, source, from_pretrained(AutoConfig, whole, trust_remote_code=trust_remote_code))
    give_padding(getattr(processor, "tokenizer", processor))
    base = load_whole(AutoModelForImageTextToText, whole, **options)
    keep_gradients(base)
    model = put_adapter(base, source) if is_adapter else base
    if attention != "sdpa":
        base.set_attn_implementation({"text_config": attention})
    return model.eval(), processor


def load_processor(source: str) -> Any:
    """Load a multimodal LLM's processor.

    Raises:
        ValueError: If it can't be read, or an adapter without one has a tokenizer of other tokens than its base.
    """
    return _read_processor(fetch_adapter(source), trust_remote_code=False)


def _read_processor(source: str, *, trust_remote_code: bool) -> Any:
    """The same where an adapter has been fetched: asked again, the hub answers again."""
    place = find_processor(source)
    if (held := find_held(place)) is not None:
        return held.processor
    processor = from_pretrained(AutoProcessor, place, trust_remote_code=trust_remote_code)
    if place != source and (Path(source) / "tokenizer_config.json").is_file():
        own, theirs = from_pretrained(AutoTokenizer, source).get_vocab(), getattr(processor, "tokenizer", processor).get_vocab()
        if own != theirs:
            raise UserError(
                f"the adapter {source} has a tokenizer of other tokens than its base {place} ({len(own):,} and {len(theirs):,}) and no "
                "processor_config.json: save the processor that it was trained with beside it"
            )
    return processor


def find_processor(source: str) -> str:
    """Say which checkpoint has a model's processor: of an adapter in a folder that has none, as PEFT saves it, the base."""
    folder = Path(source)
    is_bare = (folder / "adapter_config.json").is_file() and not any(folder.glob("*processor_config.json"))
    return find_base(source) if is_bare else source


def fetch_adapter(source: str) -> str:
    """Fetch an adapter from the hub.

    Returns:
        Its folder; anything else as it is named.

    Raises:
        ValueError: If the hub's files can't be had.
    """
    if find_held(source) is not None or Path(source).exists() or _is_path(source):
        return source
    with named_errors(source):
        return source if find_adapter_config_file(source) is None else snapshot_download(source)


def load_clip(source: str, *, dtype: Dtype = "auto") -> tuple[nn.Module, Any]:
    """Load a contrastive image-text model (CLIP and its like) and its processor, in eval mode.

    Raises:
        ValueError: If there is no checkpoint at ``source``, or it has no image and text features.
    """
    held = _find_held_model(source, dtype, "none")
    model, processor = (held.model.eval(), held.processor) if held is not None else _read_clip(source, dtype)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise UserError(f"{source} is a {type(model).__name__}; expected a contrastive model such as CLIPModel")
    return model, processor


def _read_clip(source: str, dtype: Dtype) -> tuple[nn.Module, Any]:
    check_exists(source, "config.json")
    check_safetensors(source)
    model = load_whole(AutoModel, source, dtype=resolve_dtype(dtype), trust_remote_code=False).eval()
    return model, from_pretrained(AutoProcessor, source, trust_remote_code=False)


def _find_held_model(source: str, dtype: Dtype, quantization: Quantization) -> HeldModel | None:
    """Return a model that is in memory; None where ``source`` is none.

    Raises:
        ValueError: If it is asked for in another precision than it has.
    """
    held: HeldModel | None = find_held(source)
    if held is None:
        return None
    if quantization != "none" or (dtype != "auto" and held.dtype != dtype):
        wanted = dtype if quantization == "none" else quantization
        raise UserError(f"{source} is in {held.dtype}, and {wanted} is asked for; load it so, or give its folder")
    return held


def load_config(source: str) -> Any:
    """Load a checkpoint's config alone, to look before the weights are loaded.

    Raises:
        ValueError: If there is no checkpoint at ``source``, or its config is damaged.
    """
    if (held := find_held(source)) is not None:
        return held.model.config
    check_exists(source, "config.json")
    return from_pretrained(AutoConfig, source, trust_remote_code=False)


def from_pretrained(kind: Any, source: str, **options: Any) -> Any:
    """Call ``kind.from_pretrained``.

    Raises:
        ValueError: With the checkpoint's name, if files are missing, damaged, or hold no ``kind``.
    """
    with named_errors(source):
        return kind.from_pretrained(source, **options)


def load_whole(kind: Any, source: str, **options: Any) -> Any:
    """Load a model whose every weight is in its checkpoint.

    Raises:
        ValueError: If weights are missing, which transformers would draw at random, or have other shapes than the config says.
    """
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = from_pretrained(kind, source, **options)
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}; expected a whole checkpoint"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise UserError(
            f"{source} has {len(mismatched)} weights of other shapes than its config says, such as {name}: {tuple(found)}, expected "
            f"{tuple(expected)}; give it the config.json that its weights were saved with"
        )
    return model


def read_adapter_config(source: str) -> PeftConfig:
    """Read what an adapter is, and of which base.

    Raises:
        ValueError: If its weights are a pickle, its config can't be read, or it names no base, or an adapter as its base.
    """
    check_safetensors(source)
    config = from_pretrained(PeftConfig, source)
    base = config.base_model_name_or_path
    if not base or (Path(base) / "adapter_config.json").is_file():
        raise UserError(
            f"the base of the adapter {source} is {base!r}; expected a whole model: write its folder or hub id into adapter_config.json, "
            "as base_model_name_or_path"
        )
    return config


def find_base(source: str) -> str:
    """Find the model that an adapter is of.

    Raises:
        ValueError: As ``read_adapter_config``, and if it is named by a path where nothing is.
    """
    base = str(read_adapter_config(source).base_model_name_or_path)
    if _is_path(base) and not Path(base).exists() and find_held(base) is None:
        raise UserError(
            f"the base of the adapter {source} is {base!r}, and there is no such folder (seen from {Path.cwd()}); write its place into "
            "adapter_config.json, as base_model_name_or_path"
        )
    return base


def put_adapter(model: nn.Module, source: str, *, name: str = "default") -> PeftModel:
    """Put a saved adapter on its base, beside those that are on it already.

    Raises:
        ValueError: If it can't be read, or is of other layers.
    """
    config = read_adapter_config(source)
    config.inference_mode = True
    with named_errors(source):
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = PeftModel(model, config, adapter_name=name)
    load_adapter_weights(model, source, name=name, remedy="name the base that it was trained on in adapter_config.json")
    return model


def load_adapter_weights(model: PeftModel, source: str, *, name: str = "default", remedy: str) -> None:
    """Give an adapter the saved weights.

    Raises:
        ValueError: If they can't be read, or are not those of its layers; with ``remedy``.
    """
    with named_errors(source), warnings.catch_warnings():
        # Weights of another shape are left out with a line each, and missing then.
        warnings.simplefilter("ignore", UserWarning)
        weights = load_peft_weights(source, device="cpu")
        _check_shapes(model, weights, source)
        result = set_peft_model_state_dict(model, weights, adapter_name=name, ignore_mismatched_sizes=True)
    own = (model.base_model.prefix, "modules_to_save.")
    missing = [key for key in result.missing_keys if f".{name}" in key and any(part in key for part in own)]
    if odd := [*missing, *result.unexpected_keys]:
        raise UserError(f"the adapter in {source} is of other layers or shapes than this one ({len(odd)}, such as {odd[0]}); {remedy}")


def _check_shapes(model: PeftModel, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse whole weights beside the adapter's that the base has in another shape; PEFT would leave them out."""
    own = {name: weight.shape for name, weight in model.named_parameters()}
    for name, weight in weights.items():
        if own.get(name, weight.shape) != weight.shape:
            raise UserError(
                f"the adapter in {source} holds {name} of {tuple(weight.shape)}, and its base has {tuple(own[name])}: it was trained on a "
                "model whose vocabulary had been resized; save that model, and name it as base_model_name_or_path in adapter_config.json"
            )


@contextmanager
def named_errors(source: str) -> Iterator[None]:
    """Name the checkpoint in what a library says of files that are missing, on disk or on the hub, or damaged. For one call."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError, StrictDataclassError, ValueError) as error:
        if "trust_remote_code" in str(error) or ("recognize" in str(error) and _brings_code(Path(source))):
            raise UserError(
                f"{source} can't be loaded: it is built by code in its own repository, which is not run; take a checkpoint in "
                "transformers' own form, whose name often ends in -hf"
            ) from error
        where = "" if Path(source).exists() else "there is no such folder, and as a hub id: "
        # Behind it the library lists every class that it has.
        told, listed, _ = str(error).partition("\nModel type should be one of")
        is_text = listed and AutoModelForImageTextToText.__name__ in told
        remedy = " A language model alone gets its vision encoder by mmalign compose." if is_text else ""
        raise UserError(f"{source} can't be loaded: {where}{told}{remedy}") from error
    except (AttributeError, LookupError, TypeError) as error:
        # A config's value that the library looks up, such as a dtype or an activation.
        raise UserError(f"{source} can't be loaded: {type(error).__name__}: {error}") from error


def _brings_code(folder: Path) -> bool:
    """Whether a checkpoint is of a kind that transformers lacks, and names classes in files of its own."""
    try:
        config = read_json_object(folder / "config.json")
    except (OSError, UserError):
        return False
    return "auto_map" in config and str(config.get("model_type")) not in CONFIG_MAPPING


def check_folder(source: str) -> None:
    """Check that a folder is there where ``source`` can't be a hub id: asked for it, the hub would tell of the form of its ids.

    Raises:
        ValueError: If it is not.
    """
    folder = Path(source)
    is_path = folder.is_absolute() or source.startswith(".") or len(folder.parts) > 2 or folder.suffix == ".json"
    if is_path and not folder.exists():
        raise UserError(f"there is no {source}; expected a folder of a checkpoint, or a hub id such as org/name")


def check_safetensors(source: str) -> None:
    """Refuse a folder whose weights are pickles alone: reading one can run any code. A hub id is left to ``use_safetensors``.

    Raises:
        ValueError: With the files' names and how to convert them.
    """
    folder = Path(source)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES and path.name != "training_args.bin")
    if pickles:
        raise UserError(
            f"{source} holds its weights as {', '.join(pickles[:3])}, and a pickle can run any code when it is read; mmalign reads "
            "safetensors only. Where you trust the file, convert it once: load it with transformers or peft, and save_pretrained it"
        )


def check_exists(source: str, *names: str) -> None:
    """Check that a local folder has one of the files; a hub id is left to the hub.

    Raises:
        ValueError: If it has none.
    """
    if find_held(source) is not None:
        return
    folder = Path(source)
    if (folder.exists() or _is_path(source)) and not any((folder / name).is_file() for name in names):
        raise UserError(f"no checkpoint at {source}: expected a folder with {' or '.join(names)}, or a hub id such as org/name")
    for path in folder.glob("*config.json"):
        read_config_values(path)


def _is_path(source: str) -> bool:
    """Whether a name can be no hub id, which looks like a relative path of two parts."""
    folder = Path(source)
    return folder.is_absolute() or source.startswith(".") or len(folder.parts) != 2


def read_config_values(path: Path) -> dict[str, Any]:
    """Read a config file of a model or of its processor.

    Raises:
        ValueError: If it is damaged, no JSON object, or would build layers without end.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected a JSON object of config values")
    parts = [values]
    while parts:
        for key, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif ("layers" in key or key == "depth") and isinstance(value, int | float) and value > MOST_LAYERS:
                # transformers lists the kind of every layer before anything else could fail.
                raise UserError(f"{path}: {key} is {value:g}; expected at most {MOST_LAYERS:,}")
    return values
