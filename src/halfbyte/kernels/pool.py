"""Memory for what native kernels return: a block that is given up is kept for the next result of the same size.

A new block costs a page fault for every 4 kB, and a step makes and forgets the same sizes over and over: from the
system each time, as `memory.hold_little` has it, that was up to a tenth of a training step (500,000 faults). Before
a block of a new size is mapped, as much as it takes is unmapped, of the blocks that were given up longest ago; so the
pool never holds more than was in use at once, but for what is cut off by blocks being whole.

Rejected: letting glibc keep what is freed, since short-lived and long-lived blocks then lie among each other, and a
step needs a fifth (with every layer recomputed: half) more; buffers with names, which autograd may still hold.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18  # bytes from which on a tensor lies in a block
_MAPPED = 1 << 20  # bytes from which on glibc maps a tensor by itself (memory.hold_little)
_HUGE = 2 << 20  # of a huge page
_FLAGS: dict[str, Any] = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}


class Pool:
    """Blocks of memory by size. Nothing here locks: a list's append and remove are one step each, as the finalisers
    that give blocks back, at any moment, need it."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []  # given up longest ago first

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
        return self.empty_like(tensor).copy_(tensor)

    def clear(self) -> None:
        """Give the system back what is not in use."""
        self._free.clear()

    @property
    def free_bytes(self) -> int:
        return sum(map(len, self._free))

    def _filled(self, meta: Tensor) -> Tensor:
        """A tensor with memory laid out as `meta` is."""
        view = memoryview(block := self._take(meta.nbytes))
        weakref.finalize(view, self._free.append, block).atexit = False  # the storage holds the view, and nobody else
        storage = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
        return torch.empty(0, dtype=meta.dtype).set_(storage, 0, meta.shape, meta.stride())

    def _take(self, size: int) -> mmap.mmap:
        for block in reversed(self._free[:]):  # used last, so it may still be in the cache
            if len(block) == size:
                try:
                    self._free.remove(block)
                except ValueError:  # another thread was faster
                    continue
                return block
        gone = 0
        with contextlib.suppress(IndexError):  # there are no more
            while gone < size:
                gone += len(self._free.pop(0))
        block = self._map(size)
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

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
