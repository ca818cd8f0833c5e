"""Answers of a model behind an OpenAI-compatible endpoint that reads images: vLLM, SGLang, ``transformers serve``, or a hosted one."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.images import digest_images, load_image
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.evaluation.answers import Answer, Question, strip_own
from mmalign.evaluation.judges.endpoint import OpenAIJudge
from mmalign.files import write_whole


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
        parts: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
        if question.image is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": self._encode(question.image)}})
        return {"messages": [{"role": "user", "content": parts}], "max_tokens": question.max_new_tokens}

    def _encode(self, name: str) -> str:
        """The picture as every other model sees it, without loss."""
        held = io.BytesIO()
        load_image(name, root=self._root).save(held, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


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
