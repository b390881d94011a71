from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from halfbyte.kernels.pool import pool
from halfbyte.model.cache import ReservedLayer, chosen_rows, keep_rows, new_cache
from tests.evaluate.models import plain_model

CAPACITY = 40


def states(tokens: int, *, rows: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 6, generator=generator), torch.randn(rows, 2, tokens, 4, generator=generator)


def filled(layer: ReservedLayer | DynamicLayer, *lengths: int) -> tuple[Tensor, Tensor]:
    for place, tokens in enumerate(lengths):
        seen: tuple[Tensor, Tensor] = layer.update(*states(tokens, seed=place))
    return seen


def kinds(family: str, capacity: int | None = CAPACITY, **options: object) -> list[tuple[type, bool]]:
    cache = new_cache(plain_model(family, **options).net.config, capacity)
    return [(type(layer), layer.is_sliding) for layer in cache.layers]


def test_it_holds_what_transformers_own_layer_holds_in_one_buffer() -> None:
    ours, theirs = ReservedLayer(CAPACITY), DynamicLayer()
    assert ours.get_seq_length() == theirs.get_seq_length() == 0
    assert ours.get_mask_sizes(7) == theirs.get_mask_sizes(7) == (7, 0)
    places = set()
    for step, tokens in enumerate((7, 1, 1, 3)):
        found, expected = ours.update(*states(tokens, seed=step)), theirs.update(*states(tokens, seed=step))
        for a, b, shown in zip(found, expected, (ours.keys, ours.values), strict=True):
            assert torch.equal(a, b) and torch.equal(shown, b)
            assert a.stride()[1:] == (CAPACITY * a.shape[-1], a.shape[-1], 1)
        places.add((found[0].data_ptr(), found[1].data_ptr()))
    assert len(places) == 1  # nothing moved
    assert ours.get_seq_length() == 12
    assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1) == (13, 0)
    assert ours.get_max_length() == CAPACITY


def test_buffers_that_would_lie_in_the_heap_do_not(monkeypatch) -> None:
    sizes = list[int]()
    monkeypatch.setattr(pool, "_map", lambda size: sizes.append(size) or type(pool)._map(pool, size))
    pool.clear()
    layer = ReservedLayer(256)
    keys = torch.zeros(1, 4, 8, 128)
    layer.update(keys, keys)
    assert sizes == 2 * [4 * 4 * 256 * 128]


def test_more_than_was_reserved_is_refused() -> None:
    layer = ReservedLayer(CAPACITY)
    filled(layer, CAPACITY)
    with pytest.raises(ValueError, match=r"41 tokens do not fit .* reserved for 40"):
        filled(layer, 1)


def test_rows_are_dropped_where_they_lie() -> None:
    layer = ReservedLayer(CAPACITY)
    keys, values = (seen.clone() for seen in filled(layer, 7, 2))
    room = layer.keys.data_ptr()
    layer.keep([0, 4, 2])  # 1 and 3 ended; the last row moves up
    assert torch.equal(layer.keys, keys[[0, 4, 2]]) and torch.equal(layer.values, values[[0, 4, 2]])
    assert layer.keys.data_ptr() == room
    more = states(1, rows=3, seed=9)
    found = layer.update(*more)
    assert torch.equal(found[0], torch.cat([keys[[0, 4, 2]], more[0]], dim=2))
    for wrong, where in (([1, 0], "row 1 can't move to 0"), ([2, 0], "row 0 can't move to 1")):
        with pytest.raises(ValueError, match=where):
            layer.keep(wrong)
    assert torch.equal(layer.keys, found[0])  # what can't be done is not begun


def test_rows_are_chosen_into_buffers_of_their_own() -> None:
    layer = ReservedLayer(CAPACITY)
    keys, values = (seen.clone() for seen in filled(layer, 7, 2))
    before = layer.keys
    layer.batch_select_indices(torch.tensor([3, 3, 0, 1, 4, 2, 3]))
    assert torch.equal(layer.keys, keys[[3, 3, 0, 1, 4, 2, 3]])
    assert torch.equal(layer.values, values[[3, 3, 0, 1, 4, 2, 3]])
    layer.update(*states(1, rows=7))
    assert torch.equal(before, keys)
    layer.reorder_cache(torch.tensor([2, 0]))
    layer.batch_repeat_interleave(2)
    assert torch.equal(layer.keys[:, :, :9], keys[[0, 0, 3, 3]])
    layer.crop(-1)
    assert torch.equal(layer.keys, keys[[0, 0, 3, 3]])
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.keys.shape[2] == 0


def test_cropping_is_that_of_transformers_own_layer() -> None:
    ours, theirs = ReservedLayer(CAPACITY), DynamicLayer()
    for layer in (ours, theirs):
        layer.crop(-3)  # nothing is there yet
        filled(layer, 7, 2)
        layer.crop(0)
        layer.crop(-3)
        with pytest.raises(ValueError, match="4"):
            layer.crop(4)
    assert ours.get_seq_length() == theirs.get_seq_length() == 6
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    ours.crop(-9)
    assert ours.get_seq_length() == 0


def test_which_layers_are_reserved() -> None:
    assert kinds("llama") == [(ReservedLayer, False)] * 2
    assert kinds("llama", None) == [(DynamicLayer, False)] * 2
    assert kinds("mistral") == [(DynamicSlidingWindowLayer, True)] * 2  # a window of 16
    assert kinds("mistral", sliding_window=CAPACITY) == [(ReservedLayer, True)] * 2  # which is never reached
    assert kinds("gemma3") == [(DynamicSlidingWindowLayer, True), (ReservedLayer, False)]
    assert isinstance(new_cache(plain_model().net.config, CAPACITY), DynamicCache)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_cache_with_chosen_rows_leaves_the_first_one_alone(family: str) -> None:
    cache = new_cache(plain_model(family).net.config, CAPACITY)
    for layer in range(2):
        cache.update(*states(12), layer)
    seen = [layer.keys.clone() for layer in cache.layers]
    rows = torch.tensor([4, 4, 1])
    other = chosen_rows(cache, rows)
    keep_rows(other, [0, 2])
    for layer in range(2):
        other.update(*states(1, rows=2, seed=7), layer)
    assert other.get_seq_length() == 13 and cache.get_seq_length() == 12
    for mine, before in zip(cache.layers, seen, strict=True):
        assert torch.equal(mine.keys, before)
    assert torch.equal(other.layers[1].keys[:, :, :12], seen[1][[4, 1]])
    keep_rows(cache, [0, 4])
    assert [layer.keys.shape[0] for layer in cache.layers] == [2, 2]
    assert torch.equal(cache.layers[0].keys, seen[0][[0, 4]])
