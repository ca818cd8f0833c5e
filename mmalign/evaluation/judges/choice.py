"""The judge that options name: one behind an endpoint, or a local model."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.judges.endpoint import OpenAIJudge, choose_key_variable, merge_decoding
from mmalign.evaluation.judging import Judge
from mmalign.options.judges import JudgeOptions


def choose_judge(options: JudgeOptions, *, cache: Path) -> Judge | None:
    """Return the judge, whose replies are kept in ``cache``, or None where none is named.

    Raises:
        ValueError: If an endpoint is named without a model, a model without an endpoint, or two judges.
    """
    if (options.judge_url is None) != (options.judge_model is None):
        raise UserError("a judge behind an endpoint needs both --judge-url and --judge-model")
    if options.judge_url is not None and options.judge is not None:
        raise UserError("give one of --judge-url and --judge")
    if options.judge_url is not None:
        return OpenAIJudge(
            url=options.judge_url,
            model=str(options.judge_model),
            cache=cache,
            api_key_env=choose_key_variable(options.judge_key_env, options.judge_url),
            decoding=merge_decoding(options.judge_decoding),
            concurrency=options.judge_concurrency,
            max_retries=options.judge_retries,
            timeout=options.judge_timeout,
            option="--judge-decoding",
        )
    if options.judge is None:
        return None
    return build_local(options.judge, options.judge_decoding, cache=cache, option="--judge-decoding")


def build_local(source: str, decoding: Mapping[str, Any], *, cache: Path, option: str, default: int = 1024) -> Judge:
    """Build a local judge. Who asks none does not wait for the libraries of models.

    Args:
        source: Folder or hub id.
        decoding: Its settings, as ``read_length`` reads them.
        cache: File of its replies.
        option: That names the settings, for errors.
        default: Longest answer in tokens where the settings name none.

    Raises:
        ValueError: If there is no checkpoint, or the settings name anything else.
    """
    judge = import_module("mmalign.evaluation.judges.local").LocalJudge
    built: Judge = judge(source, cache=cache, max_new_tokens=read_length(decoding, default=default, option=option), option=option)
    return built


def read_length(decoding: Mapping[str, Any], *, default: int, option: str) -> int:
    """Return the longest answer that a local judge's settings name.

    Raises:
        ValueError: If they name anything else, or no number of tokens.
    """
    length = decoding.get("max_new_tokens", default)
    if set(decoding) - {"max_new_tokens"} or not isinstance(length, int) or length < 1:
        raise UserError(f"{option} is {dict(decoding)}; a local model decodes greedily and takes max_new_tokens alone")
    return length
