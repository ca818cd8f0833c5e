"""Questions about images as texts that a judge and its cache know them by."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.images import digest_images, load_image
from mmalign.evaluation.answers import Question


class ImageQuestions:
    """Each question is a key of its text, its picture and its longest answer, so that a cache serves every run that asks the same."""

    def __init__(self, image_root: Path) -> None:
        """Hold the folder of the images."""
        self.image_root = image_root
        self._digests: dict[str, str] = {}
        self._by_key: dict[str, Question] = {}

    def add(self, question: Question) -> str:
        """Return a question's key, after a look at its image.

        Raises:
            ValueError: If the image is missing or broken.
        """
        if question.image is not None and question.image not in self._digests:
            self._digests[question.image] = digest_images([load_image(question.image, root=self.image_root)])
        image = None if question.image is None else self._digests[question.image]
        key = json.dumps({"text": question.prompt, "image": image, "max_tokens": question.max_new_tokens})
        self._by_key[key] = question
        return key

    def __getitem__(self, key: str) -> Question:
        return self._by_key[key]

    def request(self, key: str) -> Mapping[str, Any]:
        """The body of an endpoint's request, but for the model and the decoding settings."""
        question = self._by_key[key]
        # The picture as every other model sees it.
        image = None if question.image is None else load_image(question.image, root=self.image_root)
        return image_request(question.prompt, image, max_tokens=question.max_new_tokens)


def image_request(text: str, image: Image.Image | None, *, max_tokens: int) -> dict[str, Any]:
    """The body of a request, but for the model and the decoding settings: the picture without loss, then the text."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        held = io.BytesIO()
        image.save(held, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": max_tokens}
