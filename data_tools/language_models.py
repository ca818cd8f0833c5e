"""The language model of a builder: a local one, or one behind an OpenAI-compatible endpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LanguageModelOptions:
    """A language model that reads and writes texts: a local one, or one behind an endpoint."""

    llm: str | None = None
    """local language model: folder or hub id"""
    url: str | None = None
    """OpenAI-compatible endpoint instead, such as http://127.0.0.1:8000/v1"""
    llm_name: str | None = None
    """the model's name at the endpoint"""
    api_key_env: str | None = None
    """environment variable that holds the endpoint's key"""
    llm_decoding: dict[str, Any] = field(default_factory=dict)
    """its settings: '{max_completion_tokens: 4096, temperature: null}'; locally max_new_tokens"""


def describe_language_model(options: LanguageModelOptions, llm: Any) -> dict[str, Any]:
    """Tell what a language model's replies come from, to know a run again: its name, and a local one's weights."""
    from mmalign.models.fingerprint import fingerprint_checkpoint

    return {"llm": llm.name, "llm_weights": None if options.llm is None else fingerprint_checkpoint(options.llm, dtype="auto")}


def load_language_model(
    options: LanguageModelOptions,
    *,
    out: Path,
    decoding: Mapping[str, Any],
    max_new_tokens: int,
    request: Callable[[str], Mapping[str, Any]] | None = None,
) -> Any:
    """Load the model, behind a cache of its replies in the folder of the result.

    Args:
        options: Either ``llm``, a folder or hub id, or ``url`` and ``llm_name``.
        out: Folder of the result.
        decoding: What the endpoint is sent with each request, where the user does not say otherwise; a local model decodes greedily.
        max_new_tokens: Longest reply of a local model, likewise.
        request: Makes the body of an endpoint's request, where a prompt is more than text.

    Returns:
        An object with ``name`` and ``ask(prompts) -> list[str]``.

    Raises:
        ValueError: If not exactly one is named, or a setting is none that can be set.
    """
    if (options.llm is None) == (options.url is None) or (options.url is None) != (options.llm_name is None):
        raise UserError("name one language model: --llm DIR, or --url URL with --llm-name NAME")
    cache = out / "replies.jsonl"
    if options.llm is not None:
        from mmalign.evaluation.judges.choice import build_local

        return build_local(options.llm, options.llm_decoding, cache=cache, option="--llm-decoding", default=max_new_tokens)
    from mmalign.evaluation.judges.endpoint import OpenAIJudge, merge_decoding, text_request

    assert options.url is not None
    assert options.llm_name is not None
    return OpenAIJudge(
        url=options.url,
        model=options.llm_name,
        cache=cache,
        api_key_env=options.api_key_env,
        decoding=merge_decoding(options.llm_decoding, usual=decoding),
        option="--llm-decoding",
        request=request or text_request,
    )
