"""``mmalign publish``: a checkpoint with its card, scored pairs with a card of theirs, or report pages to a repository of the Hub."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mmalign.errors import UserError
from mmalign.files import SCORED, SCORING, SUMMARY, read_json_object
from mmalign.options.publish import PublishOptions
from mmalign.reports.data_card import space_card, write_data_card

RepoType = Literal["model", "dataset", "space"]
_CARD = "README.md"
# What a finished run leaves beside these is of this machine: checkpoints, caches, logs of trackers.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", _CARD)
_SECRETS = {
    "a token of the Hub": re.compile(rb"\bhf_[A-Za-z0-9]{20,}"),
    "a key of an API": re.compile(rb"\bsk-[A-Za-z0-9_-]{20,}"),
    "a key of a cloud": re.compile(rb"\bAKIA[A-Z0-9]{16}\b"),
}
_WEIGHTS = (".safetensors", ".parquet", ".png", ".jpg")


class Upload(NamedTuple):
    """What goes to the Hub: the kind of repository, and each file by its name there, as a path or as its content."""

    kind: RepoType
    files: Mapping[str, Path | bytes]


def run(options: PublishOptions) -> None:
    """List what goes, and send it in one commit.

    Raises:
        UserError: If the folder holds nothing that can be published, a file holds a secret, or the Hub refuses.
    """
    try:
        validate_repo_id(options.repo)
    except HFValidationError as error:
        raise UserError(f"--repo is {options.repo!r}; expected OWNER/NAME ({error})") from error
    upload = collect(options)
    check_secrets(upload.files)
    print(f"{upload.kind} {options.repo}" + (" (private)" if options.private else ""))
    sizes = {name: len(content) if isinstance(content, bytes) else content.stat().st_size for name, content in upload.files.items()}
    for name, size in sizes.items():
        print(f"  {size:>15,} bytes  {name}")
    print(f"  {sum(sizes.values()):>15,} bytes in {len(sizes)} files")
    if options.dry_run:
        print("nothing was sent (--dry-run)")
        return
    print(f"published: {send(options, upload)}")


def collect(options: PublishOptions) -> Upload:
    """Find what the folder holds.

    Raises:
        UserError: If it holds nothing of the three kinds, or what a reader of the Hub could not load.
    """
    folder = options.folder
    for kind, (marks, collect_files) in _KINDS.items():
        if any((folder / mark).is_file() for mark in marks):
            return Upload(kind, collect_files(options))
    expected = "; ".join(f"{kind}: {' or '.join(marks)}" for kind, (marks, _) in _KINDS.items())
    raise UserError(f"{folder} holds nothing to publish; expected ({expected})")


def _collect_model(options: PublishOptions) -> dict[str, Path | bytes]:
    folder = options.folder
    if not (folder / _CARD).is_file():
        raise UserError(f"{folder} has no {_CARD}: is the training finished? Give its command again, or write a card")
    files: dict[str, Path | bytes] = {path.name: path for path in _matching(folder, _MODEL_FILES)}
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder} holds no weights (*.safetensors)")
    card = ModelCard.load(folder / _CARD, ignore_metadata_errors=True)
    adapter = read_json_object(folder / "adapter_config.json") if "adapter_config.json" in files else None
    base = options.base_model or (adapter["base_model_name_or_path"] if adapter else card.data.base_model)
    if base and (Path(str(base)).exists() or str(base).startswith(("/", "."))):
        raise UserError(f"the card or the adapter names {base} as its base, a folder of this machine; give its hub id with --base-model")
    if options.base_model:
        card.data.base_model = options.base_model
        files[_CARD] = str(card).encode()
        if adapter is not None:
            files["adapter_config.json"] = json.dumps(adapter | {"base_model_name_or_path": options.base_model}, indent=2).encode()
    return files


def _collect_scores(options: PublishOptions) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {path.name: path for path in _matching(options.folder, (SCORED, SUMMARY, SCORING))}
    own = options.folder / _CARD
    files[_CARD] = own if own.is_file() else write_data_card(options.folder, repo=options.repo, license=options.license).encode()
    return files


def _collect_pages(options: PublishOptions) -> dict[str, Path | bytes]:
    pages = _matching(options.folder, ("*.html", "*.csv", "*.png", "*.svg"))
    files: dict[str, Path | bytes] = {path.name: path for path in pages}
    first = "report.html" if "report.html" in files else next(path.name for path in pages if path.suffix == ".html")
    files[_CARD] = space_card(title=options.repo.split("/")[-1], first=first).encode()
    return files


_KINDS: Mapping[RepoType, tuple[tuple[str, ...], Callable[[PublishOptions], dict[str, Path | bytes]]]] = {
    "model": (("config.json", "adapter_config.json", "dual_head.json"), _collect_model),
    "dataset": ((SCORED,), _collect_scores),
    "space": (("report.html", "rows.html", "difficulty.html", "training.html"), _collect_pages),
}
"""Kind -> files that a folder is known by, and what of it goes."""


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def check_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Refuse files that hold what looks like a key; the key itself is not repeated.

    Raises:
        UserError: With the file.
    """
    for name, content in files.items():
        if name.endswith(_WEIGHTS):
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        for what, pattern in _SECRETS.items():
            if pattern.search(text):
                raise UserError(f"{name} holds what looks like {what}; take it out before this is published")


def send(options: PublishOptions, upload: Upload) -> str:
    """Make the repository where it is missing, and commit the files.

    Returns:
        Its address.

    Raises:
        UserError: If there is no token, no network, or no right to write.
    """
    api = HfApi()
    sdk = "static" if upload.kind == "space" else None
    try:
        place = api.create_repo(options.repo, repo_type=upload.kind, private=options.private or None, exist_ok=True, space_sdk=sdk)
        operations = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        api.create_commit(place.repo_id, operations, repo_type=upload.kind, commit_message=options.message)
    except LocalTokenNotFoundError as error:
        raise UserError("no token of the Hub: run hf auth login, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set: unset it to publish, or look with --dry-run") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"the Hub refuses {options.repo} with status {status}: {error.server_message or error}") from error
    return str(place)
