"""The cache that is written in place against the stock one, through every way in which rows change."""

import copy

import pytest
import torch
from transformers import DynamicCache, Qwen2Config
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mmalign.engine.growing_cache import FIRST, MOST, GrowingLayer, grow_in_place

CONFIG = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"])


@pytest.fixture
def caches() -> tuple[DynamicCache, DynamicCache]:
    """Equal ones of three rows and five tokens: one stays as it is."""
    stock, ours = DynamicCache(config=CONFIG), DynamicCache(config=CONFIG)
    append((stock, ours), 3, 5)
    grow_in_place(ours)
    return stock, ours


def append(caches: tuple[DynamicCache, DynamicCache], rows: int, tokens: int) -> None:
    for number in range(2):
        keys, values = torch.randn(2, rows, 2, tokens, 4)
        stock, ours = (cache.update(keys.clone(), values.clone(), number) for cache in caches)
        for one, other in zip(stock, ours, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    stock, ours = (cache.get_seq_length() for cache in caches)
    assert stock == ours


def test_only_layers_that_hold_all_tokens_are_written_in_place(caches: tuple[DynamicCache, DynamicCache]) -> None:
    assert [type(layer) for layer in caches[1].layers] == [GrowingLayer, DynamicSlidingWindowLayer]
    assert [type(layer) for layer in caches[0].layers] == [DynamicLayer, DynamicSlidingWindowLayer]


def test_tokens_are_appended_without_a_copy_while_there_is_room(caches: tuple[DynamicCache, DynamicCache]) -> None:
    for room in (FIRST, 2 * FIRST, 4 * FIRST):
        append(caches, 3, 1)
        place = caches[1].layers[0].keys.data_ptr()
        for _ in range(room):
            append(caches, 3, 1)
            assert caches[1].layers[0].keys.data_ptr() == place
    append(caches, 3, 1)
    assert caches[1].layers[0].keys.data_ptr() != place
    append(caches, 3, 3 * MOST)


def test_rows_are_chosen_cut_and_copied(caches: tuple[DynamicCache, DynamicCache]) -> None:
    append(caches, 3, 1)
    for order in ([2, 0, 0, 1], [3, 1]):
        for cache in caches:
            cache.batch_select_indices(torch.tensor(order))
        append(caches, len(order), 1)
    for cache in caches:
        cache.reorder_cache(torch.tensor([1, 0]))
    append(caches, 2, 1)
    for cache in caches:
        cache.layers[0].crop(-2)
    # A copy goes its own way, and what it was made of stays.
    before = caches[1].layers[0].keys.clone()
    append(copy.deepcopy(caches), 2, 1)
    torch.testing.assert_close(caches[1].layers[0].keys, before, rtol=0, atol=0)
    append(caches, 2, 2)
