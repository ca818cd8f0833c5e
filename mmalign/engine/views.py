"""A pair seen with several images: the row's own, a weakened one, another, or none; each with the responses that objectives ask about.

Each image and its responses share a row of the batch, as chosen and rejected do. The rows with own images come first, then those of each
other kind, all in the order of the pairs, so that a cell's responses stand at regular distances.

Shape legend: B = pairs, K = scored tokens, R = responses in the batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.data.encode import EncodedPrompt, encode_responses, refuse_same_responses
from mmalign.data.messages import Message, without_images
from mmalign.data.rows import PairRow
from mmalign.data.weaken import weaken_turns
from mmalign.engine.logps import ResponseLogps
from mmalign.errors import UserError
from mmalign.losses.image_terms import CHOSEN, REJECTED, Cell, CellLogps, ImageKind, ResponseKind
from mmalign.losses.scores import Logps, ScoredTokens
from mmalign.options.rows import AnswerEnd, WeakenOptions

_IMAGES: tuple[ImageKind, ...] = ("own", "weakened", "other", "none")
_RESPONSES: tuple[ResponseKind, ...] = ("chosen", "rejected", "other")


@dataclass(frozen=True)
class Views:
    """Which images a pair is seen with, and which responses each is asked about."""

    responses: Mapping[ImageKind, tuple[ResponseKind, ...]]
    """The own image first, with chosen and rejected at least."""

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "Views":
        """The views that hold these cells, and the pair itself."""
        wanted = {CHOSEN, REJECTED, *cells}
        found = {image: tuple(name for name in _RESPONSES if Cell(image, name) in wanted) for image in _IMAGES}
        return cls({image: names for image, names in found.items() if names})

    @property
    def cells(self) -> list[Cell]:
        """All of them, in the order of a pair's responses."""
        return [Cell(image, name) for image, names in self.responses.items() for name in names]

    @property
    def alone(self) -> bool:
        """Whether there is nothing but the pair itself."""
        return self.cells == [CHOSEN, REJECTED]

    @property
    def need_other(self) -> bool:
        """Whether rows must have another image."""
        return "other" in self.responses

    def places(self, cell: Cell, pairs: int, *, device: torch.device | None = None) -> Tensor:
        """(B,) numbers of a cell's responses in a batch of B pairs."""
        before = 0
        for image, names in self.responses.items():
            if image == cell.image:
                return before + len(names) * torch.arange(pairs, device=device) + names.index(cell.response)
            before += pairs * len(names)
        raise AssertionError(f"{cell} is no view")


NO_VIEWS = Views.of(())
"""The pair itself."""


def encode_views(
    processor: Any, row: PairRow, views: Views, options: WeakenOptions, *, answer_end: AnswerEnd, max_length: int | None
) -> list[EncodedPrompt]:
    """Tokenise a pair with the images beside its own.

    Args:
        processor: The policy's.
        row: The pair, with its other images where a view needs them.
        views: What is asked for.
        options: How images are weakened.
        answer_end: As in ``encode_responses``.
        max_length: The same.

    Returns:
        One prompt per image, in the order of the views.

    Raises:
        ValueError: As ``encode_responses``, and if the row has no image of its own.
    """
    if not row.images:
        raise UserError("the row has no image, and the objective compares images; leave such rows out, or take an objective of pairs alone")
    texts = {"chosen": row.chosen, "rejected": row.rejected, "other": row.chosen_other}
    ends = {"chosen": row.ends[0], "rejected": row.ends[1], "other": row.ends[0]}
    encoded = []
    for image, names in views.responses.items():
        images, prompt = _see(row, image, options)
        encoded.append(
            encode_responses(
                processor,
                images=images,
                prompt=prompt,
                responses=[texts[name] for name in names],
                ends=[ends[name] for name in names],
                answer_end=answer_end,
                max_length=max_length,
            )
        )
    refuse_same_responses(encoded[0], first=2)
    return encoded


def _see(row: PairRow, image: ImageKind, options: WeakenOptions) -> tuple[list[Image.Image], list[Message]]:
    """The images and the prompt of a view."""
    if image == "weakened":
        return weaken_turns(row.images, row.prompt, options)
    if image == "none":
        return [], without_images(row.prompt)
    return (row.images if image == "own" else row.images_other), row.prompt


def split_views(
    views: Views, policy: ResponseLogps, reference: Logps | None, *, pairs: int
) -> tuple[ScoredTokens, Logps, Logps | None, dict[Cell, CellLogps]]:
    """Part a batch's log-probabilities into those of the pairs, as the objectives of pairs take them, and those of each cell.

    Args:
        views: How the batch was laid out.
        policy: Of all its responses.
        reference: The same; None where there is none.
        pairs: B.

    Returns:
        The pairs' tokens, the policy's log-probabilities of them and the reference's, and all cells.
    """

    def take(places: Tensor) -> tuple[ScoredTokens, Logps, Logps | None]:
        number = torch.full((policy.scored.num_responses,), -1, device=device)
        number[places] = torch.arange(len(places), device=device)
        tokens, kept = policy.scored.regroup(number[policy.scored.response], num_responses=len(places))
        return tokens, _pick(policy, places, kept), None if reference is None else _pick(reference, places, kept)

    device = policy.sums.device
    both = [views.places(cell, pairs, device=device) for cell in (CHOSEN, REJECTED)]
    cells = {cell: CellLogps(*take(views.places(cell, pairs, device=device))) for cell in views.cells}
    return *take(torch.stack(both, 1).flatten()), cells


def _pick(logps: Logps, places: Tensor, kept: Tensor) -> Logps:
    """Those of some responses, and of their tokens."""
    return Logps(logps.sums[places], *(None if values is None else values[kept] for values in (logps.token_logps, logps.token_logits)))
