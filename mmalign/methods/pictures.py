"""Training on pictures as answers: the methods of words, with rows whose responses are a model's picture tokens.

The tokenizer of pictures stays as it is, so pictures are tokenised once, before training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from mmalign.data.caches import digest_text
from mmalign.data.encode import EncodedPrompt
from mmalign.data.pictures import (
    CAPTION,
    CODES,
    PICTURE,
    PICTURE_LIST,
    PICTURE_PAIR,
    caption_words,
    encode_pictures,
    read_caption,
    read_pictures,
)
from mmalign.data.rows import check_scores
from mmalign.engine.batch import collate_prompts
from mmalign.engine.choosing import fold_in
from mmalign.engine.logps import unwrap
from mmalign.engine.pictures import drop_words
from mmalign.errors import UserError
from mmalign.losses.doubles import to_double
from mmalign.losses.list_kernel import ListObjective
from mmalign.losses.pair_kernel import PairObjective
from mmalign.methods.listwise import ListwiseMethod
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.responses import Objective, ResponsesMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.models.picture_tokens import find_picture_tokens
from mmalign.options.methods import ListwiseOptions, PreferenceOptions, SftOptions
from mmalign.pictures.tokenizing import add_codes
from mmalign.training.method import Method


class PictureRows:
    """Reads the pictures of rows for one model, whose parts that have no say in them stop training."""

    def __init__(
        self, model: nn.Module, processor: Any, options: SftOptions | PreferenceOptions | ListwiseOptions, columns: Sequence[str]
    ) -> None:
        """Ask the model how it draws.

        Raises:
            ValueError: If it does not, or not at the size that is asked for.
        """
        self.tokens = find_picture_tokens(unwrap(model), side=options.picture_side)
        self.processor, self.options, self.columns = processor, options, tuple(columns)
        for module in self.tokens.idle():
            module.requires_grad_(False)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode a row's pictures, and tokenise its caption."""
        row = read_pictures(raw, self.columns, index=index, image_root=self.options.image_root)
        self._encode(row.caption, [[0] * self.tokens.size])

    def check_inputs(self) -> Mapping[str, Any]:
        """What ``check`` depends on beside how words are read."""
        return {"pictures": [list(self.columns), self.tokens.size]}

    def tokenize(self, dataset: Dataset) -> Dataset:
        """Add the codes of pictures that have none."""
        return add_codes(dataset, self.columns, self.tokens, self.processor, image_root=self.options.image_root)

    def encode(self, raw: Mapping[str, Any]) -> EncodedPrompt:
        """Caption and codes."""
        held = [raw[CODES[name]] for name in self.columns]
        return self._encode(read_caption(raw), held[0] if self.columns == PICTURE_LIST else held)

    def _encode(self, caption: str, codes: Sequence[Sequence[int]]) -> EncodedPrompt:
        return encode_pictures(self.processor, caption, codes, form=self.tokens, max_length=self.options.max_length)


class PictureResponses(ResponsesMethod[Objective]):
    """What pairs and lists of pictures have in common."""

    picture_columns: Sequence[str]
    pictures: PictureRows

    @classmethod
    def build(cls, options: PreferenceOptions | ListwiseOptions) -> tuple[nn.Module, Any, Method]:
        """Load policy and reference, and ask how the policy draws.

        Raises:
            ValueError: As the methods of words, and if the model draws no pictures, or the reference is in columns.
        """
        if options.reference == "cached":
            raise UserError("pictures have no cached log-probabilities; use --reference copy or adapter-off")
        model, processor, method = super().build(options)
        assert isinstance(method, PictureResponses)
        method.pictures = PictureRows(model, processor, options, cls.picture_columns)
        return model, processor, method

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row, and check its numbers."""
        self.pictures.check(raw, index=index)
        self.check_numbers(raw)

    def check_inputs(self) -> Mapping[str, Any]:
        """As of words, and how pictures are read."""
        return {**super().check_inputs(), **self.pictures.check_inputs()}

    def prepare(self, dataset: Dataset) -> Dataset:
        """As of words, and pictures become codes."""
        return self.pictures.tokenize(super().prepare(dataset))

    def encode_row(self, raw: Mapping[str, Any], *, index: int) -> list[EncodedPrompt]:
        """Caption and codes."""
        return [self.pictures.encode(raw)]


class PicturePreferenceMethod(PictureResponses[PairObjective], PreferenceMethod):
    """Any pair objective on two pictures of a caption."""

    summary = "a multimodal LLM, trained on pairs of pictures"
    picture_columns = PICTURE_PAIR

    def __init__(self, processor: Any, options: Any, **reference: Any) -> None:
        """Keep the parts; see ``ResponsesMethod``.

        Raises:
            ValueError: If an objective compares images of the prompt.
        """
        super().__init__(processor, options, **reference)
        if not self.views.alone:
            raise UserError(f"objective {', '.join(options.objective)} compares images of the prompt, and a caption has none; take dpo")
        self.columns = (CAPTION, *PICTURE_PAIR, *self.objective_columns)


class PictureListwiseMethod(PictureResponses[ListObjective], ListwiseMethod):
    """Any list objective on scored pictures of a caption."""

    summary = "a multimodal LLM, trained on lists of scored pictures"
    picture_columns = PICTURE_LIST

    def __init__(self, processor: Any, options: Any, **reference: Any) -> None:
        """Keep the parts; see ``ResponsesMethod``.

        Raises:
            ValueError: If an objective reads steps of words.
        """
        super().__init__(processor, options, **reference)
        if self.steps:
            raise UserError(f"objective {', '.join(options.objective)} reads steps of words, and a picture has none; take plackett_luce")
        self.columns = (CAPTION, *PICTURE_LIST, "scores")

    def check_numbers(self, raw: Mapping[str, Any]) -> None:
        """A score for each picture, in the objective's range, and a preference among them."""
        scores, count = raw["scores"], len(raw[PICTURE_LIST[0]])
        if not isinstance(scores, list) or len(scores) != count:
            raise UserError(f"scores are {scores!r}; expected {count} numbers, one for each picture of images_responses")
        check_scores(scores, what="picture", sampled=self.sampled)
        super().check_numbers(raw)


class PictureSupervisedMethod(SupervisedMethod):
    """Mean negative log-likelihood of picture tokens; some rows are drawn without their caption."""

    summary = "a multimodal LLM, fine-tuned to draw captions"
    columns: Sequence[str] = (CAPTION, *PICTURE)
    options: SftOptions
    pictures: PictureRows

    @classmethod
    def build(cls, options: SftOptions) -> tuple[nn.Module, Any, Method]:
        """Load the model, and ask how it draws."""
        model, processor, method = super().build(options)
        assert isinstance(method, PictureSupervisedMethod)
        method.pictures = PictureRows(model, processor, options, PICTURE)
        return model, processor, method

    def _encode(self, raw: Mapping[str, Any], index: int = 0) -> EncodedPrompt:
        return self.pictures.encode(raw)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row's picture, and tokenise its caption."""
        self.pictures.check(raw, index=index)

    def check_inputs(self) -> Mapping[str, Any]:
        """As of words, and how pictures are read."""
        return {**super().check_inputs(), **self.pictures.check_inputs()}

    def prepare(self, dataset: Dataset) -> Dataset:
        """Pictures become codes."""
        return self.pictures.tokenize(dataset)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As of words, with the places of each row's caption, and a key by which it is dropped."""
        encoded = [self._encode(row) for row in rows]
        batch = collate_prompts(encoded, pad_token_id=self.processor.tokenizer.pad_token_id)
        caption = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for number, prompt in enumerate(encoded):
            caption[number, : len(prompt.prefix_ids)] = torch.tensor(caption_words(self.processor, prompt.prefix_ids))
        keys = torch.tensor([int(digest_text(prompt), 16) - 2**63 for prompt in encoded])
        batch["layout"] |= {"caption": caption, "row_key": keys}
        return batch

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Drop captions: which ones depends on the rows, the step and the seed alone, so that a run that resumes drops the same."""
        layout = batch["layout"]
        seeds = fold_in(fold_in(layout["row_key"], step), self.options.seed)
        dropped = drawn_shares(seeds) < self.options.caption_dropout
        words = layout["caption"] & dropped.to(seeds.device)[:, None]
        return drop_words(batch, words, pads=self.pictures.tokens.pads, pad_token_id=self.processor.tokenizer.pad_token_id)


def drawn_shares(seeds: Tensor) -> Tensor:
    """Turn (P,) seeds into numbers from 0 to 1."""
    return to_double((seeds >> 11) & (2**53 - 1)) / 2**53
