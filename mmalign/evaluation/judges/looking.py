"""A judge on this machine that looks: a multimodal LLM, asked about images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmalign.data.images import load_image
from mmalign.evaluation.answers import Question
from mmalign.evaluation.judges.cache import JudgementCache
from mmalign.evaluation.judges.image_questions import ImageQuestions
from mmalign.evaluation.judges.local import hash_checkpoint
from mmalign.evaluation.runner import answer_batch, batches, choose_rows
from mmalign.models.load import best_device, load_mllm, resolve_dtype
from mmalign.options.precision import Dtype


class LookingJudge:
    """Answers greedily; questions about one image run it once, and each batch is cached as it comes."""

    def __init__(
        self, model_dir: Path | str, *, questions: ImageQuestions, cache: Path, batch_size: int = 8, dtype: Dtype = "auto"
    ) -> None:
        """Prepare; the model is loaded at the first question that the cache doesn't answer.

        Args:
            model_dir: Folder of a multimodal LLM.
            questions: What its prompts are keys of.
            cache: JSONL file of judgements. Their key holds the hash of the weights, so a changed model is asked anew.
            batch_size: Questions at once.
            dtype: Precision of the weights.

        Raises:
            ValueError: If the folder holds no checkpoint.
        """
        self._folder, self._questions, self._batch_size, self._dtype = Path(model_dir), questions, batch_size, dtype
        self._loaded: tuple[Any, Any] | None = None
        self._shared: bool | None = None
        self._decoding = {"do_sample": False, "dtype": str(resolve_dtype(dtype))}
        identity = {"model": self.name, "sha256": hash_checkpoint(self._folder), "decoding": self._decoding}
        self._cache = JudgementCache(cache, judge=identity)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._folder.resolve().name

    @property
    def decoding(self) -> Mapping[str, Any]:
        """Greedy; the longest answer is each question's own."""
        return dict(self._decoding)

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Answer each key of ``questions``; the order is kept, and equal ones are asked once."""
        # A question by its key: equal questions under other ids are one.
        missing = [self._questions[key]._replace(id=key) for key in self._cache.missing(prompts)]
        with tqdm(total=len(missing), desc="judging", unit="question", leave=False) as bar:
            for batch in batches(missing, self._batch_size):
                for row in self._answer(batch):
                    self._cache.add(row["id"], row["response"], cut=not row["ended"])
                bar.update(len(batch))
        self._cache.warn_of_cut(prompts, advice="allow longer ones")
        return [self._cache[prompt] for prompt in prompts]

    def _answer(self, batch: Sequence[Question]) -> list[dict[str, Any]]:
        if self._loaded is None:
            model, processor = load_mllm(str(self._folder), dtype=self._dtype)
            self._loaded = model.to(best_device()), processor
        model, processor = self._loaded
        names = {question.image for question in batch if question.image is not None}
        images = {name: load_image(name, root=self._questions.image_root) for name in names}
        if self._shared is None:
            self._shared = choose_rows(model, processor, batch, images).shared
        return answer_batch(model, processor, batch, images, beams=None, shared=self._shared)
