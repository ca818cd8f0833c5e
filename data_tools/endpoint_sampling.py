"""Responses that a model behind an OpenAI-compatible endpoint samples."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from data_tools.sample_options import DrawOptions
from mmalign.data.images import digest_images
from mmalign.errors import UserError
from mmalign.evaluation.endpoint_answers import connect_endpoint
from mmalign.evaluation.judges.image_questions import image_request

logger = logging.getLogger(__name__)


class EndpointSampler:
    """Asks for each response by a request with a seed of its own; what came is kept in ``OUT/sampled.jsonl`` and not asked for again."""

    def __init__(self, options: DrawOptions) -> None:
        """Prepare; nothing is asked yet.

        Raises:
            ValueError: If the decoding settings hold what is sent for each response.
        """
        if options.endpoint_decoding.get("seed") is not None:
            raise UserError("--endpoint-decoding holds a seed, which would make all responses alike; give --seed, which seeds each apart")
        self._sends_seed = "seed" not in options.endpoint_decoding
        self._samples, self._max_new_tokens = options.samples, options.max_new_tokens
        self._asked: dict[str, tuple[str, Image.Image, int]] = {}
        usual = {"temperature": options.temperature, "top_p": options.top_p, **({"top_k": options.top_k} if options.top_k else {})}
        cache = options.out / "sampled.jsonl"
        self._endpoint = connect_endpoint(options, model=options.model, cache=cache, request=self._request, usual=usual)

    def read(self, prompt: str, image: Image.Image) -> tuple[str, Image.Image]:
        """See ``Sampler``: what it can't read the endpoint itself says."""
        return prompt, image

    def __call__(self, questions: Sequence[tuple[str, Image.Image]], *, seeds: Sequence[int]) -> list[list[str]]:
        """Sample to each question, with a seed for each.

        Raises:
            ValueError: If the endpoint leaves requests without a response; those that came are kept.
        """
        self._asked = {}
        keys = [self._keys(*question, seed) for question, seed in zip(questions, seeds, strict=True)]
        said = iter(self._endpoint.ask([key for row in keys for key in row]))
        responses = [[next(said).strip() for _ in row] for row in keys]
        if self._samples > 1 and len(responses) > 1 and all(len(set(row)) == 1 for row in responses):
            logger.warning(
                "the endpoint gave %d equal responses to each of %d questions; a server may decode greedily whatever the temperature: "
                "transformers serve does where the model's generation_config.json has no do_sample",
                self._samples,
                len(responses),
            )
        return responses

    def _keys(self, prompt: str, image: Image.Image, seed: int) -> list[str]:
        """Name the requests of a question in the cache, and hold what they ask."""
        known = {"text": prompt, "image": digest_images([image]), "max_tokens": self._max_new_tokens}
        seeds = [request_seed(seed, number) for number in range(self._samples)]
        keys = [json.dumps({**known, "seed": one}) for one in seeds]
        self._asked |= {key: (prompt, image, one) for key, one in zip(keys, seeds, strict=True)}
        return keys

    def _request(self, key: str) -> Mapping[str, Any]:
        prompt, image, seed = self._asked[key]
        body = image_request(prompt, image, max_tokens=self._max_new_tokens)
        return {**body, "seed": seed} if self._sends_seed else body


def request_seed(seed: int, number: int) -> int:
    """Seed a response by its question's seed and its number: 31 bits, as every server takes them, different for each number."""
    first = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4])
    return (first + number) % 2**31
