"""Answers of a model behind an OpenAI-compatible endpoint that reads images: vLLM, SGLang, ``transformers serve``, or a hosted one."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, Question, strip_own
from mmalign.evaluation.judges.endpoint import OpenAIJudge, choose_key_variable, merge_decoding
from mmalign.evaluation.judges.image_questions import ImageQuestions
from mmalign.files import write_whole
from mmalign.options.endpoint import EndpointOptions


def connect_endpoint(
    options: EndpointOptions,
    *,
    model: str,
    cache: Path,
    request: Callable[[str], Mapping[str, Any]],
    usual: Mapping[str, Any],
) -> OpenAIJudge:
    """Prepare to ask the model of this name; see ``OpenAIJudge``. ``usual`` is what is sent where the options don't say otherwise."""
    return OpenAIJudge(
        url=str(options.endpoint),
        model=model,
        cache=cache,
        api_key_env=choose_key_variable(options.endpoint_key_env, str(options.endpoint)),
        decoding=merge_decoding(options.endpoint_decoding, usual=usual),
        concurrency=options.endpoint_concurrency,
        max_retries=options.endpoint_retries,
        timeout=options.endpoint_timeout,
        option="--endpoint-decoding",
        request=request,
        accept_empty=True,
    )


class EndpointQuestions:
    """A benchmark's questions as an endpoint's requests."""

    def __init__(self, questions: Sequence[Question], *, image_root: Path, rejects: Rejects, max_new_tokens: int | None) -> None:
        """Look at all images once; questions about broken ones go to ``rejects``.

        Raises:
            ValueError: If too many are broken.
        """
        asked = ImageQuestions(image_root)
        self.request = asked.request
        self.keys: dict[str, str] = {}
        for question in questions:
            try:
                self.keys[question.id] = asked.add(question._replace(max_new_tokens=max_new_tokens or question.max_new_tokens))
            except UserError as error:
                rejects.add(question.id, str(error))
        rejects.check(len(questions), final=True)


def ask_endpoint(endpoint: OpenAIJudge, asked: EndpointQuestions, questions: Sequence[Question], *, out: Path) -> list[Answer]:
    """Ask every question, and save the answers as JSON lines in the questions' order, as ``generate_answers`` does.

    What was answered is in the endpoint's cache: a stopped run resumes with the rest.

    Args:
        endpoint: Whose requests are ``asked.request``.
        asked: The questions whose images could be read.
        questions: All of them.
        out: JSONL file of the answers.

    Raises:
        ValueError: If questions are left without an answer.
    """
    good = [question for question in questions if question.id in asked.keys]
    keys = [asked.keys[question.id] for question in good]
    rows = [
        {
            "id": question.id,
            "image": question.image,
            "prompt": question.prompt,
            "response": response.strip(),
            "ended": not endpoint.was_cut(key),
        }
        for question, key, response in zip(good, keys, endpoint.ask(keys), strict=True)
    ]
    write_whole(out, "".join(json.dumps(row) + "\n" for row in rows))
    return strip_own(rows)
