"""The order of rows where they are not simply shuffled."""

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from mmalign.errors import UserError


class EpochSampler(Sampler[int]):
    """An order that every process draws alike from seed and epoch, and takes its batches of."""

    def __init__(self, seed: int) -> None:
        """Begin with the first epoch."""
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling of an epoch."""
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        """Draws the epoch's order."""
        return torch.Generator().manual_seed(self.seed + self.epoch)


class PassSampler(EpochSampler):
    """Shuffles the rows anew every epoch, and gives those of each step to several steps in a row.

    An epoch's last step is filled up with its first rows, so that every step has as many.
    """

    def __init__(self, num_rows: int, *, step_rows: int, passes: int, seed: int) -> None:
        """Take the number of rows, those of a step over all processes, and the steps that have the same."""
        super().__init__(seed)
        self.num_rows, self.step_rows, self.passes = num_rows, step_rows, passes

    def __len__(self) -> int:
        return -(-self.num_rows // self.step_rows) * self.step_rows * self.passes

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_rows, generator=self.generator()).tolist()
        filled = list(itertools.islice(itertools.cycle(order), len(self) // self.passes))
        for start in range(0, len(filled), self.step_rows):
            yield from filled[start : start + self.step_rows] * self.passes


class BucketSampler(EpochSampler):
    """Goes through the rows in the data set's order, in buckets that follow one another and are each shuffled anew every epoch."""

    def __init__(self, num_rows: int, *, num_buckets: int, seed: int) -> None:
        """Take the number of rows, and of buckets per epoch; where there are as many buckets as rows, nothing is shuffled.

        Raises:
            ValueError: If there is no bucket.
        """
        if num_buckets < 1:
            raise UserError(f"the number of buckets is {num_buckets}; expected 1 or more, such as 20")
        super().__init__(seed)
        self.num_rows = num_rows
        self.num_buckets = min(num_buckets, num_rows)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        edges = [bucket * self.num_rows // self.num_buckets for bucket in range(self.num_buckets + 1)]
        for start, end in itertools.pairwise(edges):
            yield from (start + torch.randperm(end - start, generator=generator)).tolist()
