"""Memory-mapped tensors: the bytes of a checkpoint as torch tensors, without reading or copying them.

Method: one private mapping a file, and for each tensor a `torch.frombuffer` over its own bytes, so that a tensor's
storage is as long as the tensor (copying or saving one never drags the whole file along). A clean mapped page can be
taken back by the system at any time, so opening costs nothing and a model larger than memory still opens; for the
same reason the mapping reserves no memory (MAP_NORESERVE), which a file larger than memory needs. A private mapping
never writes to the file: whoever writes to such a tensor changes (and pays for) a copy of the page. By convention
nobody does.

Rejected: `safetensors.safe_open`, which hands out tensors of one shared storage; `UntypedStorage.from_file`, which
maps from the start of the file and is refused by the system where the file is larger than memory.
"""

from __future__ import annotations

import mmap
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.source import Checkpoint, Stored
from halfbyte.errors import CheckpointError

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Mapped:
    """The tensors of a checkpoint by name, each file mapped once, when it is first needed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._files: dict[str, mmap.mmap] = {}

    def read(self, name: str) -> Tensor:
        """The tensor `name`, mapped: dtype and shape as stored. Copied only where its start is not aligned."""
        return self._view(self.checkpoint.tensors[name])

    def read_bytes(self, name: str) -> Tensor:
        """The bytes of the tensor `name` as uint8 [bytes], whatever its dtype."""
        return self._view(self.checkpoint.tensors[name], as_bytes=True)

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system for the pages of small tensors that are about to be read: all at once, and only those.

        Touched one after another, each would wait for the disk on its own.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for name in names:
            stored = self.checkpoint.tensors[name]
            start = stored.start - stored.start % mmap.PAGESIZE
            if start < stored.end <= len(memory := self._file(stored.file)):
                memory.madvise(mmap.MADV_WILLNEED, start, stored.end - start)

    def _file(self, name: str) -> mmap.mmap:
        if name not in self._files:
            self._files[name] = map_file(self.checkpoint.path / name)
        return self._files[name]

    def _view(self, stored: Stored, *, as_bytes: bool = False) -> Tensor:
        return view(self._file(stored.file), stored, as_bytes=as_bytes)


@dataclass(frozen=True)
class Stamps:
    """What files looked like when they were opened: a mapped file that changes later changes the model with it."""

    seen: dict[Path, tuple[int, int, int, int] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Stamps:
        return cls({file: _stamp(file) for file in (checkpoint.path / name for name in checkpoint.files)})

    def listed(self) -> list[tuple[str, int, int]]:
        """Name, size and time of writing (ns) of each file that is there, as plain data."""
        return [(file.name, stamp[2], stamp[3]) for file, stamp in self.seen.items() if stamp is not None]

    def changed(self) -> list[str]:
        """The files that are not any more what they were: gone, replaced, or written to."""
        now = {file: _stamp(file) for file in self.seen}
        return [f"{file} is {'gone' if now[file] is None else 'another one'}" for file, stamp in self.seen.items()
                if now[file] != stamp]  # fmt: skip


def _stamp(file: Path) -> tuple[int, int, int, int] | None:
    """Which file it is, its size and when it was written; None: it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read(checkpoint: Checkpoint, name: str) -> Tensor:
    """The tensor `name` over a mapping of its own, which ends with the tensor: for passing over a large file once."""
    return Mapped(checkpoint).read(name)


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file privately. Raises CheckpointError if the file is gone or the system refuses."""
    try:
        with path.open("rb") as stream:
            if sys.platform == "win32":
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            flags, protection = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(stream.fileno(), 0, flags=flags, prot=protection)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "this file can't be mapped into memory", where=path, found=error, do="check that it is still there"
        ) from None


def view(memory: mmap.mmap, stored: Stored, *, as_bytes: bool = False) -> Tensor:
    """The tensor that lies at `stored` in a mapped file."""
    name, itemsize = DTYPES["U8" if as_bytes else stored.dtype]
    dtype: torch.dtype = getattr(torch, name)
    shape = (stored.nbytes,) if as_bytes else stored.shape
    if not stored.nbytes:
        return torch.empty(shape, dtype=dtype)
    if stored.end > len(memory):
        raise CheckpointError(
            "this file has become shorter since it was opened", where=stored.file, do="open the model again"
        )
    if stored.start % itemsize:
        return torch.frombuffer(bytearray(memory[stored.start : stored.end]), dtype=dtype).reshape(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        flat = torch.frombuffer(memory, dtype=dtype, count=stored.nbytes // itemsize, offset=stored.start)
    return flat.reshape(shape)
