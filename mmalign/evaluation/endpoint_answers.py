"""Answers of a model behind an OpenAI-compatible endpoint that reads images: vLLM, SGLang, ``transformers serve``, or a hosted one."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.images import digest_images, load_image
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, Question, strip_own
from mmalign.evaluation.judges.endpoint import OpenAIJudge, choose_key_variable, merge_decoding
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


def image_request(text: str, image: Image.Image | None, *, max_tokens: int) -> dict[str, Any]:
    """The body of a request, but for the model and the decoding settings: the picture without loss, then the text."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        held = io.BytesIO()
        image.save(held, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": max_tokens}


class EndpointQuestions:
    """Questions as an endpoint's requests: known by text, image and longest answer, so that a cache serves every run that asks the same."""

    def __init__(self, questions: Sequence[Question], *, image_root: Path, rejects: Rejects, max_new_tokens: int | None) -> None:
        """Look at all images once; questions about broken ones go to ``rejects``.

        Raises:
            ValueError: If too many are broken.
        """
        self._root = image_root
        self._images: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self._by_key: dict[str, Question] = {}
        digests: dict[str, str] = {}
        for question in questions:
            try:
                if question.image is not None and question.image not in digests:
                    digests[question.image] = digest_images([load_image(question.image, root=image_root)])
            except UserError as error:
                rejects.add(question.id, str(error))
                continue
            length = max_new_tokens or question.max_new_tokens
            image = None if question.image is None else digests[question.image]
            key = json.dumps({"text": question.prompt, "image": image, "max_tokens": length})
            self.keys[question.id] = key
            self._by_key[key] = question._replace(max_new_tokens=length)
        rejects.check(len(questions), final=True)

    def request(self, key: str) -> Mapping[str, Any]:
        """The body of a question's request, but for the model and the decoding settings."""
        question = self._by_key[key]
        # The picture as every other model sees it.
        image = None if question.image is None else load_image(question.image, root=self._root)
        return image_request(question.prompt, image, max_tokens=question.max_new_tokens)


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
