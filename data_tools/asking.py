"""Yes-or-no questions about images, put to a model: how likely is yes?"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from data_tools.sample_options import SampleOptions
from data_tools.scoring import Parts
from mmalign.data.rejects import Rejects
from mmalign.evaluation.answers import Answer, Question
from mmalign.evaluation.endpoint_answers import EndpointQuestions, ask_endpoint, connect_endpoint
from mmalign.evaluation.runner import generate_answers
from mmalign.evaluation.yes_no import parse_strict

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 4


class Asker(Protocol):
    """Answers yes-or-no questions."""

    def __call__(self, questions: Sequence[Question], *, file: Path) -> dict[str, float | None]:
        """Return the probability of yes by the question's id, None where the answer is neither; ``file`` is for work in progress."""
        ...


class LocalAsker:
    """Asks a local model, whose answers are written out: yes is 1, no is 0."""

    def __init__(self, model: Any, processor: Any, *, image_root: Path, batch_size: int) -> None:
        """Hold the model."""
        self.model, self.processor, self.image_root, self.batch_size = model, processor, image_root, batch_size

    def __call__(self, questions: Sequence[Question], *, file: Path) -> dict[str, float | None]:
        """See ``Asker``."""
        if not questions:
            return {}
        file.parent.mkdir(parents=True, exist_ok=True)
        # Answers that a stopped run left are to other questions, where sampling isn't exact.
        file.with_name(f"{file.name}.partial").unlink(missing_ok=True)
        with _told(file) as rejects:
            answers = generate_answers(
                self.model,
                self.processor,
                questions,
                image_root=self.image_root,
                out=file,
                rejects=rejects,
                max_new_tokens=ANSWER_TOKENS,
                batch_size=self.batch_size,
            )
        return read_verdicts(answers)


class EndpointAsker:
    """Asks the model behind the endpoint; its answers are kept in ``OUT/verdicts.jsonl`` and not asked for again."""

    def __init__(self, options: SampleOptions, *, image_root: Path) -> None:
        """Prepare; nothing is asked yet."""
        self._root = image_root
        self._asked: EndpointQuestions | None = None
        cache = options.out / "verdicts.jsonl"
        self._endpoint = connect_endpoint(options, model=options.model, cache=cache, request=self._request, usual={"temperature": 0})

    def __call__(self, questions: Sequence[Question], *, file: Path) -> dict[str, float | None]:
        """See ``Asker``."""
        if not questions:
            return {}
        file.parent.mkdir(parents=True, exist_ok=True)
        with _told(file) as rejects:
            self._asked = EndpointQuestions(questions, image_root=self._root, rejects=rejects, max_new_tokens=ANSWER_TOKENS)
            return read_verdicts(ask_endpoint(self._endpoint, self._asked, questions, out=file))

    def _request(self, key: str) -> Mapping[str, Any]:
        assert self._asked is not None
        return self._asked.request(key)


@contextmanager
def _told(file: Path) -> Iterator[Rejects]:
    """Questions that can't be asked have no answer, and are told."""
    rejects = Rejects(file.with_name("rejects.jsonl"), max_share=1.0)
    yield rejects
    if rejects.num_rejected:
        logger.warning("%d questions can't be asked, such as %s", rejects.num_rejected, rejects.first)


def build_asker(parts: Parts) -> Asker:
    """Return what asks the labeler, or without one the model that is sampled from."""
    options = parts.options
    if options.labeler is None and options.endpoint is not None:
        return EndpointAsker(options, image_root=parts.root)
    return LocalAsker(*parts.load(options.labeler or options.model), image_root=parts.root, batch_size=32)


def read_verdicts(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Read answers, the first whole word yes or no of each."""
    values = {True: 1.0, False: 0.0, None: None}
    return {answer.id: values[parse_strict(answer.response)] for answer in answers}
