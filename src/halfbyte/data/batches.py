"""Batches: in which order items are taken, how a step is cut into micro-batches, and how those are padded or packed.

All of it is a function of the seed and the step's number, so a resumed run needs no more than that number. An epoch
takes every item once, in an order of its own; its last step holds what is left over. Within a step items are sorted by
length before they are cut, so that neighbours share their padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfbyte.data.encode import Item
from halfbyte.model.loss import IGNORED

WIDTH = 16  # tokens


@dataclass(frozen=True)
class Batch:
    """Right-padded items, or items end to end in one row, whose positions begin anew with each (`positions`).
    `labels[b, t]` is the token at t itself (not shifted) or IGNORED."""

    input_ids: Tensor  # int64 [B, T]
    attention_mask: Tensor  # int64 [B, T]: 1, or 0 for padding
    labels: Tensor  # int64 [B, T]
    positions: Tensor | None = None  # int64 [1, T] of items in a row, None where each has a row of its own


def steps_per_epoch(items: int, batch: int) -> int:
    """Optimiser steps that an epoch of `items` items takes."""
    return -(-items // batch)


@lru_cache(maxsize=4)
def order(items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(items) for an epoch, the same on every platform.

    The items are sorted by the raw 64-bit words of PCG64(seed, epoch), a stream that NumPy promises never to change
    (it does not promise that of its shuffles).
    """
    words = np.random.PCG64([seed, epoch]).random_raw(items)
    permutation = np.argsort(words, kind="stable").astype(np.int64)
    permutation.setflags(write=False)
    return permutation


def step_items(items: int, step: int, batch: int, seed: int) -> list[int]:
    """The numbers of the items that optimiser step `step` (counted from 0 over all epochs) takes; at most `batch`."""
    epoch, place = divmod(step, steps_per_epoch(items, batch))
    taken: list[int] = order(items, seed, epoch)[place * batch : (place + 1) * batch].tolist()
    return taken


def step_order(items: Sequence[Item], step: int, batch: int, seed: int) -> list[Item]:
    """The items of an optimiser step, the longest first (so that a lack of memory shows at once)."""
    chosen = [items[number] for number in step_items(len(items), step, batch, seed)]
    return sorted(chosen, key=lambda item: -len(item))


def micro_batches(chosen: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """`chosen`, so many at once, in its order."""
    return (chosen[start : start + size] for start in range(0, len(chosen), size))


def collate(items: Sequence[Item], pad_id: int) -> Batch:
    """One batch of `items`, padded on the right to the longest of them; several items to a multiple of WIDTH.

    With few widths, the libraries below build and keep their code for few shapes.
    """
    longest = max(map(len, items))
    shape = (len(items), longest if len(items) == 1 else -(-longest // WIDTH) * WIDTH)
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for row, item in enumerate(items):
        length, tokens = len(item), torch.tensor(item.tokens, dtype=torch.int64)
        ids[row, :length] = tokens
        mask[row, :length] = 1
        labels[row, :length] = tokens.masked_fill(~torch.tensor(item.learned), IGNORED)
    return Batch(ids, mask, labels)


def pack(items: Sequence[Item], pad_id: int) -> Batch:
    """One row of `items`, end to end, without padding between them; its end is filled to a multiple of WIDTH, as an
    item of which nothing is learned. One item alone is as `collate` has it.

    An item's first token is no label: the token before it is another item's.
    """
    if len(items) == 1:
        return collate(items, pad_id)
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for item in items:
        own = item.ids
        ids += own
        labels += [i if learned else IGNORED for i, learned in zip(own, item.learned, strict=True)]
        labels[-len(own)] = IGNORED
        positions += range(len(own))
    rest = -len(ids) % WIDTH
    ids += [pad_id] * rest
    labels += [IGNORED] * rest
    positions += range(rest)
    row = torch.tensor([ids, labels, positions], dtype=torch.int64)
    return Batch(row[:1], torch.ones_like(row[:1]), row[1:2], row[2:])
