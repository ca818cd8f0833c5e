"""Any multimodal LLM that stock transformers load, as a model of lmms-eval: ``--model mmalign --model_args pretrained=DIR``."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from mmalign.data.encode import encode_questions
from mmalign.data.images import load_image
from mmalign.data.rows import Message
from mmalign.data.workers import refuse_several
from mmalign.engine.generation import generate
from mmalign.engine.prefix import probe_prefix
from mmalign.errors import UserError
from mmalign.evaluation.harness.decoding import choose_decoding
from mmalign.models.load import load_mllm
from mmalign.options.precision import Dtype

_DEFAULT_LENGTH = 128


class _Request(NamedTuple):
    """A request of lmms-eval with its images at hand."""

    place: int
    prompt: str
    images: list[Image.Image]
    settings: dict[str, Any]


class HarnessModel(lmms):
    """Answers lmms-eval's generation tasks in one process, with the model's own processor and chat template."""

    is_simple = True

    def __init__(
        self, pretrained: str, *, batch_size: int | str = 1, dtype: Dtype = "auto", device: str | None = None, **unknown: Any
    ) -> None:
        """Load the model.

        Args:
            pretrained: Checkpoint folder or hub id; a folder with a LoRA adapter loads its base below it.
            batch_size: Prompts at once.
            dtype: Precision of the weights.
            device: As torch names it; the accelerator where there is one, if not given.
            unknown: Refused: lmms-eval hands on every model argument that is typed.

        Raises:
            ValueError: If an argument is unknown, or there are several processes.
        """
        super().__init__()
        # It passes max_batch_size on whether or not it was typed.
        unknown.pop("max_batch_size", None)
        if unknown:
            raise UserError(f"unknown model arguments {', '.join(unknown)}; known: pretrained, dtype, batch_size, device")
        refuse_several("lmms-eval")
        self.batch_size = int(batch_size)
        model, self.processor = load_mllm(pretrained, dtype=dtype)
        # The class of a loaded model is known at run time only.
        self.model: Any = model
        if device is None and torch.accelerator.is_available():
            device = str(torch.accelerator.current_accelerator())
        self.model.to(device or "cpu")
        self._shared: bool | None = None

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer each request as its task says; the order is kept."""
        responses = [""] * len(requests)
        with tqdm(total=len(requests), desc="answering", unit="question", leave=False) as bar:
            for batch in self._batches(requests):
                for request, response in zip(batch, self._answer(batch), strict=True):
                    responses[request.place] = response
                    self.cache_hook.add_partial("generate_until", requests[request.place].args[:2], response)
                bar.update(len(batch))
        return responses

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("tasks that compare log-likelihoods are not supported; choose one of output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("tasks of several rounds are not supported; choose one of output_type generate_until")

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[_Request]]:
        """Requests with the same settings together, those with images apart from those without, and about the same length in a batch."""

        def sort_key(place: int) -> tuple[str, int]:
            return str(sorted(requests[place].args[1].items())), len(requests[place].args[0])

        order = sorted(range(len(requests)), key=sort_key)
        for _, places in groupby(order, key=lambda place: sort_key(place)[0]):
            todo = list(places)
            for start in range(0, len(todo), self.batch_size):
                read = [self._read(place, requests[place]) for place in todo[start : start + self.batch_size]]
                for has_images in (True, False):
                    batch = [request for request in read if bool(request.images) is has_images]
                    if batch:
                        yield batch

    def _read(self, place: int, instance: Instance) -> _Request:
        context, settings, doc_to_visual, doc_id, task, split = instance.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        odd = [type(visual).__name__ for visual in visuals if not isinstance(visual, Image.Image)]
        if odd:
            raise UserError(f"task {task} shows {', '.join(sorted(set(odd)))}; expected images: video and audio are not supported")
        # Images stand before the text, as in training; a placeholder that the task writes would be one too many.
        text = context.replace(getattr(self.processor, "image_token", "<image>"), "").strip()
        return _Request(place, text, [load_image(image) for image in visuals], settings)

    def _answer(self, batch: Sequence[_Request]) -> list[str]:
        encoded = [encode_questions(self.processor, images=request.images, prompts=[[_message(request)]]) for request in batch]
        settings, pad = batch[0].settings, self.processor.tokenizer.pad_token_id
        if self._shared is None:
            self._shared = probe_prefix(self.model, encoded[0], pad_token_id=pad).shared
        answers = generate(
            self.model,
            encoded,
            max_new_tokens=settings.get("max_new_tokens") or _DEFAULT_LENGTH,
            pad_token_id=pad,
            decoding=choose_decoding(settings, self.model.generation_config),
            # lmms-eval seeds torch.
            seeds=torch.randint(2**62, (len(batch), 1)).tolist(),
            shared=self._shared,
        )
        return [_stop(self.processor.decode(best.ids, skip_special_tokens=True), settings) for ((best,),) in answers]


def _message(request: _Request) -> Message:
    return Message(role="user", content=[*({"type": "image"} for _ in request.images), {"type": "text", "text": request.prompt}])


def _stop(text: str, settings: Mapping[str, Any]) -> str:
    """Cut a response at the first of the task's stop words. lmms-eval's default is a blank line, so captioning tasks set none."""
    until = settings.get("until") or []
    for word in [until] if isinstance(until, str) else until:
        if word:
            text = text.split(word)[0]
    return text.strip()
