"""What a checkpoint is known by in caches, records and cards: hashes of its weights and of its processor's files."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import snapshot_download

from mmalign.errors import UserError
from mmalign.files import hash_file
from mmalign.held import find_held
from mmalign.models.load import find_base, find_processor, named_errors, read_config_values, resolve_dtype
from mmalign.options.precision import Dtype, Quantization

WEIGHTS = ("*.safetensors",)
PROCESSOR = (
    "tokenizer*",
    "*processor_config.json",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "spiece.model",
)
_NO_SETTINGS = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type"}
"""Fields of ``adapter_config.json`` that change nothing of what an adapter computes on its base."""


def fingerprint_checkpoint(source: str, *, dtype: Dtype, quantization: Quantization = "none") -> str:
    """Hash a checkpoint's weights and processor files, an adapter's base included.

    Args:
        source: Folder or hub id.
        dtype: Precision in which the model runs: log-probabilities depend on it.
        quantization: So do they on this.

    Returns:
        ``weights <12 hex digits>, processor <12 hex digits>, <dtype>``, and the quantisation where there is one.

    Raises:
        ValueError: If the folder has no safetensors weights, or the hub's files can't be had.
    """
    if (held := find_held(source)) is not None:
        return f"weights {held.weights}, processor {held.processor_files}, {held.dtype}"
    folder = fetch_checkpoint(source)
    weights = _hash_weights(folder, fetch_checkpoint)
    if weights is None:
        raise UserError(f"{source} has no safetensors weights to take a fingerprint of")
    place = find_processor(str(folder))
    processor = held.processor_files if (held := find_held(place)) is not None else hash_processor(fetch_checkpoint(place))
    precision = [str(resolve_dtype(dtype)).removeprefix("torch."), *([] if quantization == "none" else [quantization])]
    return f"weights {weights}, processor {processor}, {', '.join(precision)}"


def hash_local_weights(source: str) -> str | None:
    """Hash the weights of a checkpoint in a folder, an adapter's base included where it is in one; None for what is in no folder."""
    return _hash_weights(Path(source), Path) if Path(source).is_dir() else None


def _hash_weights(folder: Path, place: Callable[[str], Path]) -> str | None:
    """Hash a checkpoint's weights, and its base's where it is an adapter; None where it has none."""
    weights, settings = _find(folder, WEIGHTS), ""
    if (folder / "adapter_config.json").is_file():
        weights += _find(place(find_base(str(folder))), WEIGHTS)
        settings = _adapter_settings(folder)
    return hash_files(weights, settings) if weights else None


def hash_processor(folder: Path) -> str:
    """Hash the files of a processor that was saved in a folder."""
    return hash_files(_find(folder, PROCESSOR))


def fetch_checkpoint(source: str) -> Path:
    """Return the folder of a checkpoint: of a hub id, the cache's, fetched where it is not there yet.

    Raises:
        ValueError: If the hub's files can't be had.
    """
    if Path(source).is_dir():
        return Path(source)
    with named_errors(source):
        return Path(snapshot_download(source, allow_patterns=[*WEIGHTS, *PROCESSOR, "*config.json"]))


def _find(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _adapter_settings(folder: Path) -> str:
    """How an adapter computes with its weights, such as ``lora_alpha``; not where its base lies, nor in which order PEFT wrote a set."""
    values = read_config_values(folder / "adapter_config.json")
    settings = {name: sorted(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return json.dumps({name: value for name, value in settings.items() if name not in _NO_SETTINGS}, sort_keys=True)


def hash_files(files: Iterable[Path], settings: str = "") -> str:
    """Hash files with their names, and what else makes the model, to 12 hex digits."""
    digest = hashlib.sha256(settings.encode())
    for path in files:
        digest.update(f"{path.name} {hash_file(path)}\n".encode())
    return digest.hexdigest()[:12]
