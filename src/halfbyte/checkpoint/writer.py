"""Writing safetensors as the values come, one tensor at a time, in any order.

The format puts the header first and allows no gap, so every tensor's size must be known before the first is written.
It is, from shapes alone, but for the few bytes of JSON in each quant state: those tensors come last in the file, the
header gets room for the longest they can be, and what it does not need is filled with spaces, which the format allows.

Order in a file: what is a multiple of 64 bytes long first, then of 32, and so on. So everything starts at a multiple of
its element size, nearly everything at one of 64, and a mapped tensor never has to be copied for its alignment.

Pages that are written but not on disk yet are memory that the system can't take back; so the writer waits for the disk
every `FLUSH` bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.source import INDEX, SINGLE

FLUSH = 32_000_000  # bytes written and not yet on disk, at most
SHARD = 5_000_000_000  # bytes of a file, at most, unless one tensor is larger
_CHUNK = 1 << 20  # elements converted at once


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name, safetensors' dtype and shape. `room`: at most so many bytes, not known yet."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    room: int | None = None

    @property
    def nbytes(self) -> int:
        return self.room if self.room is not None else math.prod(self.shape) * DTYPES[self.dtype][1]


class _File:
    """One safetensors file on its way."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.entries = {e.name: e for e in sorted((e for e in entries if e.room is None), key=_alignment, reverse=True)}
        self.late = {e.name: e for e in entries if e.room is not None}
        self.late_bytes: dict[str, bytes] = {}
        self.offsets: dict[str, int] = {}
        end = 0
        for name, entry in self.entries.items():
            self.offsets[name] = end
            end += entry.nbytes
        self.end = end
        self.room = -(-(8 + len(self._header({n: e.nbytes for n, e in self.late.items()}))) // 64) * 64
        self.stream: BinaryIO = path.open("xb", buffering=0)
        self.dirty = 0

    def _header(self, late_sizes: dict[str, int]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, entry in self.entries.items():
            place = [self.offsets[name], self.offsets[name] + entry.nbytes]
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": place}
        end = self.end
        for name, size in late_sizes.items():
            header[name] = {"dtype": self.late[name].dtype, "shape": [size], "data_offsets": [end, end + size]}
            end += size
        return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()

    def write(self, offset: int, data: memoryview) -> None:
        self.stream.seek(offset)
        while data:
            written = self.stream.write(data[:FLUSH])
            self.dirty += written
            data = data[written:]
            if self.dirty >= FLUSH:
                self.flush()

    def flush(self) -> None:
        os.fsync(self.stream.fileno())
        self.dirty = 0

    def finish(self) -> int:
        """Write what was waiting and the header; returns the file's size."""
        header = self._header({name: len(data) for name, data in self.late_bytes.items()})
        header = header.ljust(self.room - 8)
        self.write(0, memoryview(len(header).to_bytes(8, "little") + header))
        late = b"".join(self.late_bytes.values())
        self.write(self.room + self.end, memoryview(late))
        self.flush()
        self.stream.close()
        return self.room + self.end + len(late)


def _alignment(entry: Entry) -> int:
    """The largest power of two up to 64 that divides the entry's length."""
    return math.gcd(entry.nbytes, 64)


class Writer:
    """Writes the tensors of `units` to `folder`: one file, or shards and an index. A unit is never split."""

    def __init__(self, folder: Path, units: Iterable[Sequence[Entry]]) -> None:
        shards: list[list[Entry]] = [[]]
        for unit in units:
            size = sum(entry.nbytes for entry in unit)
            if shards[-1] and sum(entry.nbytes for entry in shards[-1]) + size > SHARD:
                shards.append([])
            shards[-1] += unit
        names = [SINGLE] if len(shards) == 1 else [
            f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))
        ]  # fmt: skip
        self.folder = folder
        self.files: dict[str, _File] = {}
        self._file_of: dict[str, str] = {}
        try:
            for name, entries in zip(names, shards, strict=True):
                self.files[name] = _File(folder / name, entries)
                self._file_of |= {entry.name: name for entry in entries}
        except BaseException:
            self.close()
            raise
        self._left = set(self._file_of)
        self._written: Counter[str] = Counter()

    def write(self, name: str, pieces: Iterable[Tensor]) -> None:
        """Write the tensor `name`, whose values come in pieces that follow each other in memory order.

        Pieces of another dtype than announced are converted, a few MB at a time.
        """
        for piece in pieces:
            self.append(name, piece)
        self.end(name)

    def append(self, name: str, piece: Tensor) -> None:
        """Write what follows of the tensor `name`; `end` tells that it is complete."""
        file = self.files[self._file_of[name]]
        if name in file.late:
            file.late_bytes[name] = waiting = file.late_bytes.get(name, b"") + bytes(_bytes(piece))
            if len(waiting) > file.late[name].nbytes:
                raise ValueError(f"{name} takes {len(waiting)} bytes, more than were set aside")
            return
        dtype: torch.dtype = getattr(torch, DTYPES[file.entries[name].dtype][0])
        for chunk in _as_dtype(piece, dtype):
            data = _bytes(chunk)
            file.write(file.room + file.offsets[name] + self._written[name], data)
            self._written[name] += len(data)

    def end(self, name: str) -> None:
        """The tensor `name` is complete. Raises ValueError where that is not what was announced."""
        self._left.remove(name)
        announced = self.files[self._file_of[name]].entries.get(name)
        if announced is not None and self._written[name] != announced.nbytes:
            raise ValueError(
                f"{name}: {self._written[name]} bytes were written where {announced.nbytes} were announced"
            )

    def finish(self) -> int:
        """Complete all files, write the index if there are several, and return the bytes of all."""
        if self._left:
            raise ValueError(f"never written: {', '.join(sorted(self._left)[:5])}")
        for file in self.files.values():  # the header lists waiting tensors in the order in which they lie
            file.late_bytes = {name: file.late_bytes[name] for name in file.late}
        total = sum(file.finish() for file in self.files.values())
        if len(self.files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self._file_of.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return total

    def close(self) -> None:
        """Let go of all files, complete or not."""
        for file in self.files.values():
            file.stream.close()


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The values as `dtype`: as they are, or converted chunk by chunk in one buffer; use each before the next."""
    flat = tensor.reshape(-1)
    if flat.dtype == dtype:
        yield flat
        return
    buffer = torch.empty(min(_CHUNK, len(flat)), dtype=dtype)
    for first in range(0, len(flat), _CHUNK):
        chunk = flat[first : first + _CHUNK]
        yield buffer[: len(chunk)].copy_(chunk)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array) if flat.numel() else memoryview(b"")
