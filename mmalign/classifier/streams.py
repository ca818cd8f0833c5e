"""The rows of a training run: two endless streams of images, labelled and unlabelled."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmalign.classifier.splits import Indices, LabelSplit
from mmalign.errors import UserError


class StreamRows(Dataset):
    """Row i of an endless pair of streams: one labelled image and M unlabelled ones. Each stream is one permutation after another."""

    def __init__(self, split: LabelSplit, *, num_rows: int, unlabeled_per_label: int, include_labeled: bool, seed: int) -> None:
        """Set up both streams.

        Raises:
            ValueError: If a stream has no images.
        """
        self.labeled = split.labeled
        self.unlabeled = np.union1d(split.labeled, split.unlabeled) if include_labeled else split.unlabeled
        self.num_rows, self.per_label, self.seed = num_rows, unlabeled_per_label, seed
        self._held: dict[tuple[int, int], Indices] = {}
        if len(self.labeled) == 0 or (unlabeled_per_label and len(self.unlabeled) == 0):
            raise UserError(
                f"the split has {len(split.labeled)} labelled and {len(self.unlabeled)} unlabelled images; expected both, "
                "or --include-labeled, or --unlabeled-per-label 0"
            )

    def __len__(self) -> int:
        """Rows of the whole run: steps by batch."""
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Positions of the row's images, and how often each stream has been through (which fixed view to take)."""
        first = index * self.per_label
        unlabeled = [self._at(1, self.unlabeled, first + i) for i in range(self.per_label)]
        return {"labeled": [self._at(0, self.labeled, index)], "unlabeled": unlabeled}

    def _at(self, stream: int, pool: Indices, position: int) -> tuple[int, int]:
        turn, place = divmod(position, len(pool))
        if (stream, turn) not in self._held:
            # The two permutations of a stream that a batch can touch, and no more.
            self._held = {key: value for key, value in self._held.items() if key[0] != stream or abs(key[1] - turn) <= 1}
            self._held[stream, turn] = np.random.default_rng((self.seed, stream, turn)).permutation(len(pool))
        return int(pool[self._held[stream, turn][place]]), turn
