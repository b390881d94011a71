"""Reading the header of a safetensors file: what tensors it holds, and where. No torch, no tensor data.

The format: 8 bytes with the header's length (little endian), the header (a JSON object), the data. The header gives
each tensor's dtype, shape and place in the data; together the tensors fill the data without a gap. A file from a
stranger is not trusted: nothing is allocated before its size is checked, and every claim is held against the others.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import CheckpointError

LIMIT = 100_000_000  # bytes of the header: the limit of the safetensors library itself

DTYPES: dict[str, tuple[str, int]] = {  # safetensors' name: torch's name, bytes
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: safetensors' dtype name, shape, and its first and past-the-last byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def torch_dtype(self) -> str:
        """torch's name of the dtype, e.g. "bfloat16"."""
        return DTYPES[self.dtype][0]


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, in the order of its header. Offsets count from the start of the file.

    Raises CheckpointError, with every fault found, for a file that is missing, cut, or whose header does not hold
    together.
    """
    file = Path(path)
    text, data, size = _read_text(file)
    faults: list[str] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in _parse(file, text).items():
        if name == "__metadata__":
            continue
        info = _entry(name, entry, data, faults)
        if info:
            tensors[name] = info
    if not faults:
        _check_layout(tensors, data, size, faults)
    if faults:
        shown = "\n    ".join(faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else []))
        raise _broken(file, f"\n    {shown}")
    return tensors


def _broken(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        "this is no sound safetensors file",
        where=file,
        found=found,
        do="fetch or copy the file again; if that does not help, whoever wrote it has to write it again",
    )


def _read_text(file: Path) -> tuple[bytes, int, int]:
    """The header's bytes, where the data begin, and the size of the file."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(8)
            if len(head) < 8:
                raise _broken(file, f"{size} bytes; the header's length alone takes 8")
            (length,) = struct.unpack("<Q", head)
            if length > LIMIT:
                raise _broken(file, f"a header of {length} bytes, over the limit of {LIMIT}")
            if 8 + length > size:
                raise _broken(file, f"a header of {length} bytes in a file of {size} bytes: the file is cut")
            return stream.read(length), 8 + length, size
    except OSError as error:
        raise CheckpointError(
            "this file can't be read", where=file, found=error.strerror, do="check the path and its permissions"
        ) from None


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"named twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"a header that is no valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _broken(file, "a header that is no JSON object")
    return header


def _entry(name: str, entry: Any, data: int, faults: list[str]) -> TensorInfo | None:
    whole: Callable[[Any], bool] = lambda value: type(value) is int and 0 <= value < 2**63  # noqa: E731
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        faults.append(f"{name}: not described by dtype, shape and data_offsets")
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        faults.append(f"{name}: unknown dtype {dtype!r}")
    elif not isinstance(shape, list) or not all(map(whole, shape)):
        faults.append(f"{name}: {shape!r} is no shape")
    elif not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)) or offsets[0] > offsets[1]:
        faults.append(f"{name}: {offsets!r} is no pair of offsets")
    elif (need := math.prod(shape) * DTYPES[dtype][1]) != offsets[1] - offsets[0]:
        faults.append(f"{name}: {dtype} {shape} takes {need} bytes, its place holds {offsets[1] - offsets[0]}")
    else:
        return TensorInfo(dtype, tuple(shape), data + offsets[0], data + offsets[1])
    return None


def _check_layout(tensors: dict[str, TensorInfo], data: int, size: int, faults: list[str]) -> None:
    """The tensors must fill the data from the first to the last byte, without overlap or gap."""
    reached = data
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != reached:
            kind = "overlaps the tensor before it" if info.start < reached else "leaves a gap before it"
            faults.append(f"{name}: {kind} ({abs(info.start - reached)} bytes)")
        reached = max(reached, info.end)
    if reached > size:
        faults.append(f"the tensors need {reached} bytes, the file has {size}: it is cut")
    elif reached < size:
        faults.append(f"{size - reached} bytes after the last tensor belong to none")
