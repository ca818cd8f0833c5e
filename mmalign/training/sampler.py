"""The order of rows where they are not simply shuffled."""

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from mmalign.errors import UserError


class BucketSampler(Sampler[int]):
    """Goes through the rows in the data set's order, in buckets that follow one another and are each shuffled anew every epoch.

    Every process draws the same order from seed and epoch, and takes its batches of it.
    """

    def __init__(self, num_rows: int, *, num_buckets: int, seed: int) -> None:
        """Take the number of rows, and of buckets per epoch; where there are as many buckets as rows, nothing is shuffled.

        Raises:
            ValueError: If there is no bucket.
        """
        if num_buckets < 1:
            raise UserError(f"the number of buckets is {num_buckets}; expected 1 or more, such as 20")
        self.num_rows = num_rows
        self.num_buckets = min(num_buckets, num_rows)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        edges = [bucket * self.num_rows // self.num_buckets for bucket in range(self.num_buckets + 1)]
        for start, end in itertools.pairwise(edges):
            yield from (start + torch.randperm(end - start, generator=generator)).tolist()
