"""Questions about images, and responses that a model samples to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from data_tools.endpoint_sampling import EndpointSampler
from data_tools.read_prompts import encode_question
from data_tools.sample_options import DrawOptions
from data_tools.scoring import Sampled, Scorer
from mmalign.data.encode import EncodedPrompt
from mmalign.data.images import SUFFIXES, load_image
from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Sampling
from mmalign.engine.generation import generate
from mmalign.engine.prefix import probe_prefix
from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import hash_file

Source = tuple[list[Sampled], Path, Mapping[str, str] | None, dict[str, str]]


def load_source(source: Path, *, prompts: Sequence[str], image_root: Path | None, gold: str | None = None) -> Source:
    """Read what to ask.

    Args:
        source: A folder, or a JSONL file.
        prompts: What to ask about each image of a folder.
        image_root: Folder of the images.
        gold: Key of a JSONL file's rows that holds a teacher's answer.

    Returns:
        Items without responses, the folder of their images, the word table where the truth is known, and the hashes of the files.

    Raises:
        ValueError: If there is nothing to ask, or the images' folder is not known.
    """
    if gold is not None and source.is_dir():
        raise UserError(f"--gold {gold} is a key of the rows of a JSONL file; {source} is a folder, which has no teacher's answers")
    if (source / "chair.jsonl").is_file():
        chair = load_chair(source)
        items = [Sampled(question, chair.truths[question.id], None, []) for question in chair.questions()]
        return items, image_root or source / "images", chair.words, {path.name: hash_file(path) for path in chair.files}
    if source.is_dir():
        if not prompts:
            raise UserError(f"{source} is a folder of images; say what to ask about each with --prompts")
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"no images in {source}")
        names = [path.relative_to(source).as_posix() for path in paths]
        questions = [Question(f"{name}/{i}", name, prompt) for name in names for i, prompt in enumerate(prompts)]
        hashes = {name: hash_file(path) for name, path in zip(names, paths, strict=True)}
        return [Sampled(question, None, None, []) for question in questions], source, None, hashes
    if image_root is None:
        raise UserError(f"name the folder that the images of {source} lie in with --image-root")
    rows = read_jsonl(source)
    if not rows:
        raise UserError(f"{source} has no questions")
    items = [_item(row, number, source, gold) for number, row in enumerate(rows, start=1)]
    return items, image_root, None, {source.name: hash_file(source)}


def _item(row: Mapping[str, Any], number: int, source: Path, gold: str | None) -> Sampled:
    images = row.get("images")
    image = images[0] if isinstance(images, list) and len(images) == 1 else row.get("image")
    prompt = row.get("prompt", row.get("question"))
    if not isinstance(image, str) or not isinstance(prompt, str):
        raise UserError(
            f"{source}, row {number} has keys {', '.join(row)}; expected image (a path), prompt (text), and perhaps id, reference, answer"
        )
    given = row.get("answer")
    answers = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UserError(f"{source}, row {number}: answer is {given!r}; expected text, or a list of texts that are all right")
    taught = None if gold is None else row.get(gold)
    if gold is not None and (not isinstance(taught, str) or not taught.strip()):
        raise UserError(f"{source}, row {number}: {gold} is {taught!r}; expected the teacher's answer, which --gold names, as text")
    question = Question(str(row.get("id", number)), image, prompt)
    return Sampled(question, None, row.get("reference"), [], tuple(answers), taught)


class Sampler(Protocol):
    """Samples responses to prompts about images."""

    def read(self, prompt: str, image: Image.Image) -> Any:
        """Make a question ready. Raises ``UserError`` where the model can't be asked."""
        ...

    def __call__(self, questions: Sequence[Any], *, seeds: Sequence[int]) -> list[list[str]]:
        """Sample to each question that was read, with a seed for each."""
        ...


def build_decoding(options: DrawOptions) -> Sampling | Beams:
    """Return how responses are drawn or searched for.

    Raises:
        ValueError: If a setting is out of range.
    """
    drawn = Sampling(options.temperature, options.top_p, options.top_k, answers=options.samples)
    return drawn if options.search == "sample" else Beams(options.samples, answers=options.samples)


def build_sampler(options: DrawOptions, decoding: Sampling | Beams, load: Callable[[str], tuple[Any, Any]]) -> Sampler:
    """Build the sampler of the model that the options name."""
    if options.endpoint is not None:
        return EndpointSampler(options)
    return ResponseSampler(*load(options.model), sampling=decoding, max_new_tokens=options.max_new_tokens)


class ResponseSampler:
    """Samples responses to questions about images. A response depends on its question's seed and its number, not on its batch."""

    def __init__(self, model: Any, processor: Any, *, sampling: Sampling | Beams, max_new_tokens: int) -> None:
        """Prepare; whether responses share their prompt's cache is asked at the first question. Beams find the likeliest responses."""
        self._model, self._processor, self._sampling = model, processor, sampling
        self._max_new_tokens = max_new_tokens
        self._shared: bool | None = None

    def read(self, prompt: str, image: Image.Image) -> EncodedPrompt:
        """See ``Sampler``: the processor refuses some questions."""
        return encode_question(self._processor, prompt, image)

    def __call__(self, questions: Sequence[EncodedPrompt], *, seeds: Sequence[int]) -> list[list[str]]:
        """Sample to each question that was read, with a seed for each."""
        pad = self._processor.tokenizer.pad_token_id
        if self._shared is None:
            self._shared = probe_prefix(self._model, questions[0], pad_token_id=pad).shared
        answers = generate(
            self._model,
            questions,
            max_new_tokens=self._max_new_tokens,
            pad_token_id=pad,
            decoding=self._sampling,
            seeds=[[seed] for seed in seeds],
            shared=self._shared,
        )
        return [[self._processor.decode(one.ids, skip_special_tokens=True).strip() for one in question] for (question,) in answers]


def sample_chunk(
    sampler: Sampler, items: Sequence[Sampled], scorer: Scorer, *, image_root: Path, folder: Path, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Sample and score the responses of a chunk.

    Args:
        sampler: Samples the responses.
        items: The questions.
        scorer: Scores the responses.
        image_root: Folder of the images.
        folder: The chunk's own, for the scorer's work in progress.
        seeds: Of the questions.

    Returns:
        For each item ``responses`` (the teacher's behind the sampled ones), ``scores``, ``gold`` and what else the scorer keeps, or the
        ``reason`` why its image can't be used.
    """
    read: dict[int, Any] = {}
    lines: dict[int, dict[str, Any]] = {}
    for i, item in enumerate(items):
        try:
            read[i] = sampler.read(item.question.prompt, load_image(item.question.image, root=image_root))
        except UserError as error:
            lines[i] = {"reason": str(error)}
    if read:
        answers = sampler(list(read.values()), seeds=[seeds[i] for i in read])
        good = [_answered(items[i], found) for i, found in zip(read, answers, strict=True)]
        for i, item, kept in zip(read, good, scorer.lines(good, folder=folder), strict=True):
            lines[i] = {"responses": item.responses, **kept} | ({} if item.gold is None else {"gold": item.gold})
    return [lines[i] for i in range(len(items))]


def _answered(item: Sampled, responses: Sequence[str]) -> Sampled:
    return replace(item, responses=[*responses, *([] if item.gold is None else [item.gold])])
