"""The order of a curriculum: its buckets, its shuffling, and its parts where several processes share it."""

import itertools

import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler

from mmalign.training.sampler import BucketSampler, PassSampler


def test_buckets_follow_one_another_and_are_shuffled_within() -> None:
    sampler = BucketSampler(103, num_buckets=4, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 103
    edges = [0, 25, 51, 77, 103]
    for start, end in itertools.pairwise(edges):
        assert sorted(order[start:end]) == list(range(start, end))
        assert order[start:end] != list(range(start, end))


def test_an_epoch_is_shuffled_anew_and_can_be_drawn_again() -> None:
    sampler = BucketSampler(100, num_buckets=4, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first == list(BucketSampler(100, num_buckets=4, seed=3))
    assert list(BucketSampler(100, num_buckets=4, seed=4)) != first


def test_as_many_buckets_as_rows_are_plain_order() -> None:
    assert list(BucketSampler(7, num_buckets=20, seed=0)) == list(range(7))


@pytest.mark.parametrize("skip", [0, 3])
def test_processes_share_one_order(skip: int) -> None:
    """As accelerate wraps a sampler, also where a run goes on inside an epoch: batch by batch in turns."""
    parts = []
    for process in range(2):
        sampler = BucketSampler(48, num_buckets=4, seed=0)
        sampler.set_epoch(2)
        shard = BatchSamplerShard(BatchSampler(sampler, batch_size=4, drop_last=False), num_processes=2, process_index=process)
        parts.append(list(SkipBatchSampler(shard, skip)))
    together = [row for pair in zip(*parts, strict=True) for batch in pair for row in batch]
    whole = BucketSampler(48, num_buckets=4, seed=0)
    whole.set_epoch(2)
    assert together == list(whole)[8 * skip :]


def test_no_buckets() -> None:
    with pytest.raises(ValueError, match="the number of buckets is 0; expected 1 or more"):
        BucketSampler(10, num_buckets=0, seed=0)


def test_passes_repeat_the_rows_of_each_step_and_fill_the_last_one_up() -> None:
    sampler = PassSampler(7, step_rows=3, passes=2, seed=5)
    order = list(sampler)
    assert len(order) == len(sampler) == 18
    steps = [order[at : at + 3] for at in range(0, 18, 3)]
    assert steps[0::2] == steps[1::2]
    rows = [row for step in steps[::2] for row in step]
    assert sorted(rows[:7]) == list(range(7))
    assert rows[7:] == rows[:2]
    sampler.set_epoch(1)
    assert list(sampler) != order
    assert list(PassSampler(2, step_rows=4, passes=1, seed=0)) in ([0, 1, 0, 1], [1, 0, 1, 0])
