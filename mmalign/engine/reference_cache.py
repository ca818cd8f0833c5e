"""Cached log-probabilities: columns of a data set, and what they were made from.

They are good for one set of weights, one processor, one text and its images. Every row keeps the fingerprint of the first two, a digest
of its own tokens and one of its decoded images, so that stale ones are found before they train anything.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PeftConfig
from torch import Tensor

from mmalign.data.encode import EncodedPrompt
from mmalign.errors import UserError
from mmalign.files import hash_file
from mmalign.models.load import named_errors, resolve_dtype
from mmalign.options.precision import Dtype, Quantization

LOGPS = ("reference_logps_chosen", "reference_logps_rejected")
TOKEN_LOGPS = ("reference_token_logps_chosen", "reference_token_logps_rejected")
LIST_LOGPS = "reference_logps_responses"
TEXT = "reference_text"
IMAGES = "reference_images"
FINGERPRINT = "reference_fingerprint"
COLUMNS = (*LOGPS, *TOKEN_LOGPS, TEXT, IMAGES, FINGERPRINT)
LIST_COLUMNS = (LIST_LOGPS, TEXT, IMAGES, FINGERPRINT)

WEIGHTS = ("*.safetensors",)
PROCESSOR = (
    "tokenizer*",
    "*processor_config.json",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
)


def cache_columns(encoded: EncodedPrompt, chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Write one pair's cache, all but the fingerprint, which all rows share.

    Args:
        encoded: The pair.
        chosen: (T,) token log-probabilities of the chosen response, float32.
        rejected: The same of the rejected one.
    """
    tokens = (chosen, rejected)
    sums = {name: value.sum().item() for name, value in zip(LOGPS, tokens, strict=True)}
    by_token = {name: value.tolist() for name, value in zip(TOKEN_LOGPS, tokens, strict=True)}
    return {**sums, **by_token, TEXT: digest_text(encoded), IMAGES: encoded.image_digest}


def cache_list_columns(encoded: EncodedPrompt, responses: Sequence[Tensor]) -> dict[str, Any]:
    """Write the cache of a prompt with several responses, all but the fingerprint.

    Args:
        encoded: The prompt.
        responses: (T,) token log-probabilities of each response, float32; their sums are kept.
    """
    return {LIST_LOGPS: [value.sum().item() for value in responses], TEXT: digest_text(encoded), IMAGES: encoded.image_digest}


def digest_text(encoded: EncodedPrompt) -> str:
    """Hash a prompt's and its responses' token ids, image tokens included, to 16 hex digits."""
    tokens = json.dumps([encoded.prefix_ids, encoded.responses])
    return hashlib.sha256(tokens.encode()).hexdigest()[:16]


def check_fingerprint(held: Sequence[str], expected: str) -> None:
    """Check that a data set's log-probabilities are those of the reference.

    Raises:
        ValueError: With both fingerprints.
    """
    for found in sorted(set(held)):
        if found != expected:
            raise UserError(
                f"the cached log-probabilities are stale: they come from {found}, the reference is {expected}; "
                "run mmalign cache-logps with the reference, or name the model they come from with --reference-model"
            )


def check_row(row: Mapping[str, Any], encoded: EncodedPrompt) -> None:
    """Check that a row's log-probabilities are those of its text and its images.

    Raises:
        ValueError: With both digests.
    """
    for what, held, found in (("text", row[TEXT], digest_text(encoded)), ("images", row[IMAGES], encoded.image_digest)):
        if held != found:
            raise UserError(
                f"the cached log-probabilities of row {row.get('id')} are stale: they are of the {what} {held or 'none'}, the row's "
                f"{what} {'is' if what == 'text' else 'are'} {found or 'none'}; run mmalign cache-logps again on these rows"
            )


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
    folder = _local_folder(source)
    weights = _find(folder, WEIGHTS)
    if (folder / "adapter_config.json").is_file():
        weights += _find(_local_folder(PeftConfig.from_pretrained(folder).base_model_name_or_path), WEIGHTS)
    if not weights:
        raise UserError(f"{source} has no safetensors weights to take a fingerprint of")
    processor = _hash(_find(folder, PROCESSOR))
    precision = [str(resolve_dtype(dtype)).removeprefix("torch."), *([] if quantization == "none" else [quantization])]
    return f"weights {_hash(weights)}, processor {processor}, {', '.join(precision)}"


def _local_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    # Fetched where they are not in the cache yet: the fingerprint is taken before the model is loaded.
    with named_errors(source):
        return Path(snapshot_download(source, allow_patterns=[*WEIGHTS, *PROCESSOR, "*config.json"]))


def _find(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {hash_file(path)}\n".encode())
    return digest.hexdigest()[:12]
