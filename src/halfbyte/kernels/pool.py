"""Memory for what native kernels return: a block that is given up is kept for the next result of the same size.

A new block costs a page fault for every 4 kB, and a step makes and forgets the same sizes over and over: from the
system each time, as `memory.hold_little` has it, that was up to a tenth of a training step (500,000 faults). The pool
never holds more than was in use at once, since it was last cleared: where a block of a new size would be beyond that,
as many are unmapped first, of those that were given up longest ago, as make room for it.

Rejected: letting glibc keep what is freed, since short-lived and long-lived blocks then lie among each other, and a
step needs a fifth (with every layer recomputed: half) more; buffers with names, which autograd may still hold;
unmapping as much as is mapped, always: the backward pass, whose sizes are others, then empties the pool before the
next forward pass (1.7 GB mapped anew in each step of the 1B shape in fp32, where now it is 30 MB).
"""

from __future__ import annotations

import math
import mmap
import sys
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18  # bytes from which on a tensor lies in a block
_MAPPED = 1 << 20  # bytes from which on glibc maps a tensor by itself (memory.hold_little)
_HUGE = 2 << 20  # of a huge page
_FLAGS: dict[str, Any] = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}


class Pool:
    """Blocks of memory by size. Finalisers give blocks back at any moment, within any other method, too; so that takes
    no lock, and each of its steps is one of a set or a list."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []  # given up longest ago first
        self._places: set[int] = set()  # the addresses of those in use
        self._held = self._most = 0  # bytes of all blocks, and the most of them that were in use at once
        self._lock = threading.RLock()  # of both

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU whose values are anything."""
        if math.prod(shape) * dtype.itemsize < LARGE:
            return torch.empty(shape, dtype=dtype)
        return self._filled(torch.empty(shape, dtype=dtype, device="meta"))

    def empty_like(self, tensor: Tensor) -> Tensor:
        """As `torch.empty_like`: dense, in the order in which the elements of `tensor` lie, if that is dense, too."""
        if tensor.numel() * tensor.itemsize < LARGE or tensor.device.type != "cpu":
            return torch.empty_like(tensor)
        return self._filled(torch.empty_like(tensor, device="meta"))

    def lasting(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """`torch.empty` for what stays while others come and go; a block where glibc's heap would hold it (`keep`)."""
        if device.type != "cpu" or not LARGE <= math.prod(shape) * dtype.itemsize < _MAPPED:
            return torch.empty(shape, dtype=dtype, device=device)
        return self.empty(shape, dtype)

    def keep(self, tensor: Tensor) -> Tensor:
        """`tensor`, which torch made and a backward pass will read; a copy in a block if it lies in glibc's heap.

        There, what stays would stand between the holes of all that came and went: a step of a small model took up to
        half as much memory again."""
        if tensor.device.type != "cpu" or not LARGE <= tensor.numel() * tensor.itemsize < _MAPPED:
            return tensor
        if tensor.untyped_storage().data_ptr() in self._places:
            return tensor
        return self.empty_like(tensor).copy_(tensor)

    def clear(self) -> None:
        """Give the system back what is not in use."""
        with self._lock:
            self._unmap(down_to=0)
            self._most = self._held - self.free_bytes

    @property
    def free_bytes(self) -> int:
        return sum(map(len, self._free))

    def _filled(self, meta: Tensor) -> Tensor:
        """A tensor with memory laid out as `meta` is."""
        view = memoryview(block := self._take(meta.nbytes))
        storage = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
        self._places.add(storage.data_ptr())
        # the storage holds the view, and nobody else
        weakref.finalize(view, self._give_up, block, storage.data_ptr()).atexit = False
        return torch.empty(0, dtype=meta.dtype).set_(storage, 0, meta.shape, meta.stride())

    def _give_up(self, block: mmap.mmap, place: int) -> None:
        self._places.discard(place)
        self._free.append(block)

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            self._most = max(self._most, self._held - self.free_bytes + size)
            for block in reversed(self._free[:]):  # used last, so it may still be in the cache
                if len(block) == size:
                    self._free.remove(block)
                    return block
            self._unmap(down_to=self._most - size)
            block = self._map(size)
            self._held += size
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _unmap(self, *, down_to: int) -> None:
        """Forget free blocks until all blocks are `down_to` bytes, or none is free."""
        while self._held > down_to and self._free:
            self._held -= len(self._free.pop(0))

    def _map(self, size: int) -> mmap.mmap:
        try:
            return mmap.mmap(-1, size, **_FLAGS)
        except OSError:
            self.clear()
        try:
            return mmap.mmap(-1, size, **_FLAGS)
        except OSError as error:
            raise MemoryError(f"{size:,} bytes for a result of a native kernel can't be had: {error}") from None


pool = Pool()
