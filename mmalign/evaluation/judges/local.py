"""A judge on this machine: a causal or multimodal LLM that stock transformers load.

Shape legend: B = prompts in a batch, N = longest prompt in tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mmalign.data.encode import EncodedPrompt, batch_prompts
from mmalign.data.rows import Message
from mmalign.engine.generation import generate
from mmalign.engine.prefix import counts_tokens, probe_prefix
from mmalign.errors import UserError
from mmalign.evaluation.judges.cache import JudgementCache
from mmalign.evaluation.reasoning import decode_answer
from mmalign.files import hash_file
from mmalign.models.fingerprint import fetch_checkpoint
from mmalign.models.load import check_exists, check_safetensors, from_pretrained, load_mllm, load_whole, resolve_dtype
from mmalign.models.processors import give_padding
from mmalign.options.precision import Dtype


class CheckpointJudge:
    """What judges on this machine share: a greedy model from a folder, loaded when it is first needed, and a cache of its replies."""

    def __init__(self, model_dir: Path | str, *, cache: Path, batch_size: int, dtype: Dtype, **decoding: Any) -> None:
        """Prepare; the model is loaded at the first prompt that the cache doesn't answer.

        Args:
            model_dir: Folder of the checkpoint, or hub id.
            cache: JSONL file of judgements. Their key holds the hash of the weights, so a changed model is asked anew.
            batch_size: Prompts at once.
            dtype: Precision of the weights.
            decoding: What of its settings all prompts share.

        Raises:
            ValueError: If there is no checkpoint.
        """
        check_exists(str(model_dir), "config.json", "adapter_config.json")
        self._name, self._folder = Path(model_dir).resolve().name, fetch_checkpoint(str(model_dir))
        self._batch_size, self._dtype = batch_size, dtype
        self._loaded: tuple[Any, Any] | None = None
        self._shared: bool | None = None
        self._decoding = {"do_sample": False, **decoding, "dtype": str(resolve_dtype(dtype))}
        identity = {"model": self.name, "sha256": hash_checkpoint(self._folder), "decoding": self._decoding}
        self._cache = JudgementCache(cache, judge=identity)

    @property
    def name(self) -> str:
        """The folder's name, or the last part of the hub id."""
        return self._name

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How it answers; without a longest answer where each prompt has its own."""
        return dict(self._decoding)


class LocalJudge(CheckpointJudge):
    """Answers greedily with a local model; each batch is cached as it comes."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        cache: Path,
        max_new_tokens: int = 1024,
        batch_size: int = 8,
        dtype: Dtype = "auto",
        option: str | None = None,
    ) -> None:
        """Prepare a causal LLM with a chat template, or a multimodal LLM, which is asked without image.

        ``option`` is what the user sets ``max_new_tokens`` by, for advice.

        Raises:
            ValueError: If the folder holds no checkpoint.
        """
        super().__init__(model_dir, cache=cache, batch_size=batch_size, dtype=dtype, max_new_tokens=max_new_tokens)
        self._max_new_tokens, self._option = max_new_tokens, option

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Answer each prompt; the order is kept, and equal prompts are asked once."""
        # Prompts of about the same length pad each other little.
        missing = sorted(self._cache.missing(prompts), key=len)
        with tqdm(total=len(missing), desc="judging", unit="prompt", leave=False) as bar:
            for start in range(0, len(missing), self._batch_size):
                batch = missing[start : start + self._batch_size]
                for prompt, (response, cut) in zip(batch, self._answer(batch), strict=True):
                    self._cache.add(prompt, response, cut=cut)
                bar.update(len(batch))
        self._cache.warn_of_cut(prompts, advice="raise max_new_tokens" + (f" in {self._option}" if self._option else ""))
        return [self._cache[prompt] for prompt in prompts]

    def _answer(self, prompts: Sequence[str]) -> list[tuple[str, bool]]:
        """Return each response, and whether it ended at the longest length."""
        if self._loaded is None:
            self._loaded = _load(self._folder, self._dtype)
        model, processor = self._loaded
        asked = _tokenize(processor, prompts)
        encoded = _encode(asked, together=not counts_tokens(model))
        pad = getattr(processor, "tokenizer", processor).pad_token_id
        if self._shared is None:
            self._shared = probe_prefix(model, encoded[0], pad_token_id=pad).shared
        new = generate(model, encoded, max_new_tokens=self._max_new_tokens, pad_token_id=pad, shared=self._shared)
        answers = [answer for prompt in new for (answer,) in prompt]
        return [(decode_answer(processor, one.ids, prompt=ids), one.end is None) for one, ids in zip(answers, asked, strict=True)]


def hash_checkpoint(folder: Path) -> str:
    """Hash what decides the answers: configs, tokenizer, template and weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"no checkpoint at {folder}: expected a folder with config.json; merge an adapter into its base first")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in {".json", ".jinja", ".model", ".safetensors", ".txt"}]
    return hashlib.sha256("".join(f"{path.name} {hash_file(path)}\n" for path in files if path.is_file()).encode()).hexdigest()


def _load(folder: Path, dtype: Dtype) -> tuple[Any, Any]:
    source = str(folder)
    # Some multimodal configs stand in the causal mapping too, which would load half of the model.
    if type(from_pretrained(AutoConfig, source, trust_remote_code=False)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        model, processor = load_mllm(source, dtype=dtype)
    else:
        check_safetensors(source)
        model = load_whole(AutoModelForCausalLM, source, dtype=resolve_dtype(dtype), trust_remote_code=False).eval()
        processor = from_pretrained(AutoTokenizer, source, trust_remote_code=False)
        give_padding(processor)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, processor


def _tokenize(processor: Any, prompts: Sequence[str]) -> list[list[int]]:
    is_tokenizer = not hasattr(processor, "tokenizer")
    batch = batch_prompts(processor, [[_message(prompt, plain=is_tokenizer)] for prompt in prompts])
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def _encode(asked: Sequence[list[int]], *, together: bool) -> list[EncodedPrompt]:
    """The prompts as questions behind the words that all of them begin with, or each alone."""
    shared = _shared_length([ids[:-1] for ids in asked]) if together else 0
    groups = [(asked, shared)] if shared else [([ids], len(ids) - 1) for ids in asked]
    return [
        EncodedPrompt(
            prefix_ids=list(group[0][:start]),
            responses=[list(ids[start:]) for ids in group],
            scored=[],
            token_types={},
            images={},
            response_types=[{} for _ in group],
        )
        for group, start in groups
    ]


def _shared_length(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with; of the first and the last in order, all have what these two have."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _message(prompt: str, *, plain: bool) -> Message:
    # Templates of multimodal models iterate over parts; those of text models expect a string.
    return Message(role="user", content=prompt if plain else [{"type": "text", "text": prompt}])
