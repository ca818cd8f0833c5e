"""Training a denoiser on preferences between paths that were sampled.

Shape legend: B = rows, R = 2 B paths, chosen, rejected, chosen, ..., K = steps, ... = channels, height and width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.denoisers.draws import draw_rows
from mmalign.denoisers.method import ROW, ImagePreferenceMethod
from mmalign.denoisers.paths import PATH_COLUMNS, PathPair, read_path_pair
from mmalign.errors import UserError

SCORES = ("score_chosen", "score_rejected")


class PathPreferenceMethod(ImagePreferenceMethod):
    """Objectives of text on a step's log-ratio, the same step of both paths (D3PO, arXiv:2311.13231); one is drawn each time."""

    def __init__(self, *args: Any, **parts: Any) -> None:
        """Keep the parts; arguments are those of pictures.

        Raises:
            ValueError: As of pictures, and if the objective reads what paths do not have.
        """
        super().__init__(*args, **parts)
        if unknown := [name for name in self.num_columns if name not in SCORES]:
            raise UserError(f"the objective reads the columns {', '.join(unknown)}; paths have {', '.join(SCORES)}: choose another")
        self.columns = PATH_COLUMNS

    def read_pair(self, raw: Mapping[str, Any]) -> PathPair:
        """Read a row."""
        network, scheduler = self.source.network, self.source.pipeline.scheduler
        return read_path_pair(raw, channels=network.config.in_channels, num_times=len(scheduler.alphas_cumprod))

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Read the row."""
        self.read_pair(raw)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Captions, their paths one behind the other, and the numbers of the rows.

        Raises:
            ValueError: If paths were sampled at several resolutions.
        """
        pairs = [self.read_pair(row) for row in rows]
        paths = [path for pair in pairs for path in (pair.chosen, pair.rejected)]
        sizes = sorted({tuple(path.latents.shape[-2:]) for path in paths})
        if len(sizes) > 1:
            raise UserError(f"paths of {' and '.join(f'{high} x {wide}' for high, wide in sizes)} in one data set; expected one size")
        return {
            "captions": [pair.caption for pair in pairs],
            "latents": [path.latents for path in paths],
            "times": [path.times for path in paths],
            "guidance": torch.tensor([path.guidance for path in paths]).view(-1, 1, 1, 1),
            "counts": torch.full((len(pairs),), 2),
            "rows": torch.tensor([row[ROW] for row in rows]),
            "numbers": {name: torch.tensor([getattr(pair, name) for pair in pairs]) for name in SCORES},
        }

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Encode, and draw a step for each row, of all but the last, which is no Gaussian."""
        latents, times, captions = (batch[name] for name in ("latents", "times", "captions"))
        drawn = draw_rows(batch["rows"].tolist(), step=step, seed=self.seed, shape=(), num_times=1)
        chances = drawn.chance.repeat_interleave(2).tolist()
        begins = [int(chance * (len(own) - 1)) for chance, own in zip(chances, times, strict=True)]

        def pick(values: Sequence[Tensor], *, after: int) -> Tensor:
            return torch.stack([value[begin + after] for value, begin in zip(values, begins, strict=True)])

        side = latents[0].shape[-1] * self.source.scale
        inputs = {
            "noisy": pick(latents, after=0),
            "reached": pick(latents, after=1),
            "times": pick(times, after=0),
            "reached_times": pick(times, after=1),
            "conditions": self.show(captions, batch, side=side),
            "blank": None if (batch["guidance"] == 1).all() else self.show([""] * len(captions), batch, side=side),
            "guidance": batch["guidance"],
        }
        return {"inputs": inputs, **{name: batch[name] for name in ("counts", "numbers")}}
