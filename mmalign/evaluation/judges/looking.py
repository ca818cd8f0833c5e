"""A judge on this machine that looks: a multimodal LLM, asked about images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmalign.data.images import load_image
from mmalign.evaluation.answers import Question
from mmalign.evaluation.judges.image_questions import ImageQuestions
from mmalign.evaluation.judges.local import CheckpointJudge
from mmalign.evaluation.runner import answer_batch, batches, choose_rows, encode_batch
from mmalign.models.load import best_device, load_mllm
from mmalign.options.precision import Dtype


class LookingJudge(CheckpointJudge):
    """Answers greedily; questions about one image run it once, and each batch is cached as it comes."""

    def __init__(
        self, model_dir: Path | str, *, questions: ImageQuestions, cache: Path, batch_size: int = 8, dtype: Dtype = "auto"
    ) -> None:
        """Prepare a multimodal LLM; its prompts are keys of ``questions``, each of which has its longest answer.

        Raises:
            ValueError: If the folder holds no checkpoint.
        """
        super().__init__(model_dir, cache=cache, batch_size=batch_size, dtype=dtype)
        self._questions = questions

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
        encoded = encode_batch(processor, batch, images)
        if self._shared is None:
            self._shared = choose_rows(model, processor, encoded).shared
        return answer_batch(model, processor, encoded, beams=None, shared=self._shared)
