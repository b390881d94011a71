"""Keys and values of the tokens that a batch has seen, in buffers that are reserved once.

transformers' own cache joins the old and the new keys at every step, so that each token copies all that came before it.
Here a layer keeps one buffer [B, Hkv, capacity, D] for the keys and one for the values: a step writes its own columns
and hands out views of the first `length` ones. Rows that are done with are dropped by moving the last rows into their
places; the memory stays, since the next batch is no larger.

Which layers: those that transformers itself would let grow without limit, and those with a window that the batch never
reaches, where a window drops nothing. Every other kind (a window that is reached, recurrent states, shared keys) stays
transformers' own, which drops and compresses what it must.

Legend: B rows, Hkv key/value heads, T tokens, D size of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from halfbyte.kernels.pool import pool


class ReservedLayer(CacheLayerMixin):  # type: ignore[misc]
    """The keys and values of one layer in reserved buffers. For inference: gradients do not flow through it.

    `keys` and `values` [B, Hkv, length, D] are views of what has been written so far.
    """

    is_croppable = True

    def __init__(self, capacity: int, *, is_sliding: bool = False) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.is_sliding = is_sliding  # transformers asks this to find the layers that its sliding masks are for
        self._buffers: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve room for rows and heads as in `key_states` and `value_states` [B, Hkv, T, D]."""
        self._buffers = (self._room(key_states), self._room(value_states))
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write `key_states` and `value_states` [B, Hkv, T, D] behind what is there; all of it, as views.

        Raises ValueError when there is no room left.
        """
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
        assert self._buffers is not None
        start, tokens = self.length, key_states.shape[2]
        if start + tokens > self.capacity:
            raise ValueError(f"{start + tokens} tokens do not fit into a cache that was reserved for {self.capacity}")
        self._buffers[0].narrow(2, start, tokens).copy_(key_states)
        self._buffers[1].narrow(2, start, tokens).copy_(value_states)
        return self.advance(tokens)

    @property
    def buffers(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values [B, Hkv, capacity, D], written or not; None before the first ones."""
        return self._buffers

    def advance(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Count `tokens` that were written into the buffers behind what is there; all of it, as views."""
        self.length += tokens
        return self._show()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, where they lie: row i is already in place or comes from behind the last."""
        if self._buffers is None:
            return
        moves = [(place, row) for place, row in enumerate(rows) if row != place]
        for place, row in moves:
            if row < len(rows):
                raise ValueError(f"row {row} can't move to {place} without a copy: {len(rows)} rows stay")
        for place, row in moves:
            for buffer in self._buffers:
                buffer[place, :, : self.length] = buffer[row, :, : self.length]
        self._buffers = (self._buffers[0][: len(rows)], self._buffers[1][: len(rows)])
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows `indices` of before, each as often as named, in new buffers; the old ones are left as they are."""
        if self._buffers is None:
            return
        made = []
        for seen in (self.keys, self.values):
            made.append(self._room(seen, rows=len(indices)))
            torch.index_select(seen, 0, indices.to(seen.device), out=made[-1].narrow(2, 0, self.length))
        self._buffers = (made[0], made[1])
        self._show()

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._buffers is not None:
            self.batch_select_indices(torch.arange(len(self._buffers[0])).repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens.

        Raises ValueError for a positive number, as transformers does: it used to mean the length that stays.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to forget as a negative number, not {tokens_to_remove}")
        self.length = max(0, self.length + tokens_to_remove)
        self._show()

    def reset(self) -> None:
        self.length = 0
        self._show()

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next `query_length` tokens see, and the column of the first of them."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity

    def _room(self, states: Tensor, rows: int | None = None) -> Tensor:
        batch, heads, _, size = states.shape
        shape = (batch if rows is None else rows, heads, self.capacity, size)
        return pool.lasting(shape, states.dtype, states.device)

    def _show(self) -> tuple[Tensor, Tensor]:
        if self._buffers is not None:
            self.keys, self.values = (buffer.narrow(2, 0, self.length) for buffer in self._buffers)
        return self.keys, self.values


_REPLACING = (ReservedLayer, DynamicLayer, DynamicSlidingWindowLayer)  # choosing rows writes into no tensor of before


def new_cache(config: Any, capacity: int | None = None) -> Cache:
    """An empty cache for the family of `config` (transformers'), for at most `capacity` tokens a row.

    Without a capacity every layer is transformers' own and grows as it must.
    """
    cache = DynamicCache(config=config)
    if capacity is not None:
        cache.layers = [_reserved(layer, capacity) for layer in cache.layers]
    return cache


def _reserved(layer: Any, capacity: int) -> Any:
    if type(layer) is DynamicLayer:
        return ReservedLayer(capacity)
    if type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= capacity:
        return ReservedLayer(capacity, is_sliding=True)
    return layer


def keep_rows(cache: Cache, rows: Sequence[int]) -> None:
    """Keep only these rows of a batch: row i is either already in place or comes from behind the last that stays."""
    for layer in cache.layers:
        if isinstance(layer, ReservedLayer):
            layer.keep(rows)
        else:
            layer.reorder_cache(torch.tensor(rows))  # which every kind of layer has, recurrent ones too


def chosen_rows(cache: Cache, indices: Tensor) -> Cache:
    """A cache of its own with rows `indices` of `cache`, each as often as named; `cache` stays as it is."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) if type(layer) in _REPLACING else copy.deepcopy(layer) for layer in cache.layers]
    made.reorder_cache(indices)
    return made
