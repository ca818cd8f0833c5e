"""The judge that options name: one behind an endpoint, or a local model."""

from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.judges.endpoint import OpenAIJudge, choose_key_variable, merge_decoding
from mmalign.evaluation.judges.local import LocalJudge, read_length
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
    length = read_length(options.judge_decoding, default=1024, option="--judge-decoding")
    return LocalJudge(options.judge, cache=cache, max_new_tokens=length, option="--judge-decoding")
