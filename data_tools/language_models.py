"""The language model of a builder: a local one, or one behind an OpenAI-compatible endpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mmalign.errors import UserError


class NamesModel(Protocol):
    """Options that name a language model."""

    @property
    def llm(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def llm_name(self) -> str | None: ...
    @property
    def api_key_env(self) -> str | None: ...
    @property
    def llm_decoding(self) -> Mapping[str, Any]: ...
    @property
    def out(self) -> Path: ...


def describe_language_model(options: NamesModel, llm: Any) -> dict[str, Any]:
    """Tell what a language model's replies come from, to know a run again: its name, and a local one's weights."""
    from mmalign.models.fingerprint import fingerprint_checkpoint

    return {"llm": llm.name, "llm_weights": None if options.llm is None else fingerprint_checkpoint(options.llm, dtype="auto")}


def load_language_model(options: NamesModel, *, decoding: Mapping[str, Any], max_new_tokens: int) -> Any:
    """Load the model, behind a cache of its replies in the folder of the result.

    Args:
        options: Either ``llm``, a folder, or ``url`` and ``llm_name``.
        decoding: What the endpoint is sent with each request, where the user does not say otherwise; a local model decodes greedily.
        max_new_tokens: Longest reply of a local model, likewise.

    Returns:
        An object with ``name`` and ``ask(prompts) -> list[str]``.

    Raises:
        ValueError: If not exactly one is named, or a setting is none that can be set.
    """
    if (options.llm is None) == (options.url is None) or (options.url is None) != (options.llm_name is None):
        raise UserError("name one language model: --llm DIR, or --url URL with --llm-name NAME")
    cache = options.out / "replies.jsonl"
    if options.llm is not None:
        from mmalign.evaluation.judges.local import LocalJudge, read_length

        length = read_length(options.llm_decoding, default=max_new_tokens, option="--llm-decoding")
        return LocalJudge(options.llm, cache=cache, max_new_tokens=length)
    from mmalign.evaluation.judges.endpoint import OpenAIJudge, merge_decoding

    assert options.url is not None
    assert options.llm_name is not None
    return OpenAIJudge(
        url=options.url,
        model=options.llm_name,
        cache=cache,
        api_key_env=options.api_key_env,
        decoding=merge_decoding(options.llm_decoding, usual=decoding),
        option="--llm-decoding",
    )
