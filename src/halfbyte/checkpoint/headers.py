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
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from halfbyte.errors import CheckpointError

LIMIT = 100_000_000  # bytes of the header: the limit of the safetensors library itself
MOST_COMMAS = 300_000  # in the header's JSON: room for 60,000 tensors in one file; many more take seconds to parse
_MOST_DIMENSIONS = 64
_MOST_FAULTS = 1000  # that are looked for
_PIECE = 1 << 20  # bytes that are read at once

Text = bytes | bytearray

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
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = header_length(stream.read(8), size, file)
            return parse_header(_pieces(stream, length, file), size, file)
    except OSError as error:
        raise CheckpointError(
            "this file can't be read", where=file, found=error.strerror, do="check the path and its permissions"
        ) from None


_LFS = b"version "  # how a pointer of Git LFS begins


def header_length(head: bytes, size: int | None, where: object) -> int:
    """The header's length, which the first 8 bytes of a file of `size` bytes (None: unknown) claim; a sane one."""
    if len(head) < 8:
        raise broken(where, f"{len(head) if size is None else size} bytes; the header's length alone takes 8")
    if head == _LFS:
        raise CheckpointError("this is a Git LFS pointer, not the file itself", where=where,
                              do="fetch the file: git lfs pull, or hf download")  # fmt: skip
    (length,) = struct.unpack("<Q", head)
    if length > LIMIT:
        raise broken(where, f"a header of {length} bytes, over the limit of {LIMIT}")
    if size is not None and 8 + length > size:
        raise broken(where, f"a header of {length} bytes in a file of {size} bytes: the file is cut")
    return int(length)


def parse_header(text: Text, size: int | None, where: object) -> dict[str, TensorInfo]:
    """The tensors that the header `text` of a file of `size` bytes (None: unknown) describes; as `read_header`."""
    faults: list[str] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in _parse(where, text).items():
        if len(faults) >= _MOST_FAULTS:
            break
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                faults.append("__metadata__: no object of strings")
            continue
        fault, info = _entry(entry, 8 + len(text)) if name.isprintable() else ("a name that can't be printed", None)
        if info is None:
            faults.append(f"{shown(name)}: {fault}")
        else:
            tensors[name] = info
    if not faults:
        _check_layout(tensors, 8 + len(text), size, faults)
    if faults:
        raise broken(where, listed(faults))
    return tensors


def broken(where: object, found: str) -> CheckpointError:
    """The error of a file that can't be right."""
    return CheckpointError(
        "this is no sound safetensors file",
        where=where,
        found=found,
        do="fetch or copy the file again; if that does not help, whoever wrote it has to write it again",
    )


def listed(faults: list[str]) -> str:
    """Faults as an error shows them: the first twenty, a line each."""
    return "\n    " + "\n    ".join(faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else []))


def shown(value: object, most: int = 100) -> str:
    """What a file says, fit to be printed: a string as it is, else its repr; cut, without control characters."""
    if isinstance(value, (list, dict)) and len(value) > most:
        text = f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    else:
        text = value[: 2 * most] if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: 2 * most])
    return text if len(text) <= most else text[:most] + "..."


def _pieces(stream: BinaryIO, length: int, where: object) -> bytearray:
    """The header's text, read piece by piece; a piece that can't be JSON ends it, so that junk costs no memory."""
    text, commas = bytearray(), 0
    while len(text) < length and (piece := stream.read(min(_PIECE, length - len(text)))):
        if not text:
            _begins(piece, where)
        if b"\0" in piece:
            raise broken(where, "a header that is no valid JSON: it holds zero bytes")
        commas += piece.count(b",")
        _check_commas(commas, length, where)
        text += piece
    return text


def _check_commas(count: int, length: int, where: object) -> None:
    if count > MOST_COMMAS:
        raise broken(where, f"a header of {length} bytes with over {MOST_COMMAS} commas: more than any model needs")


def _begins(text: Text, where: object) -> None:
    if not text.startswith(b"{"):
        found = shown(text[:20].decode("utf-8", "replace"))
        raise broken(where, f"a header that is no valid JSON, or no JSON object: it begins with '{found}', not a brace")


def _parse(where: object, text: Text) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = [shown(name) for name, count in Counter(name for name, _ in pairs).items() if count > 1]
            raise ValueError(f"named twice: {', '.join(twice[:20])}{', ...' if len(twice) > 20 else ''}")
        return found

    _begins(text, where)
    _check_commas(text.count(b","), len(text), where)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise broken(where, f"a header that is no valid JSON ({shown(str(error), 2000)})") from None
    return cast(dict[str, Any], header)


def _entry(entry: Any, data: int) -> tuple[str, TensorInfo | None]:
    """What is wrong with a tensor's entry, or the tensor; `data` is where the file's data begin."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "not described by dtype, shape and data_offsets", None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"unknown dtype {shown(repr(dtype))}", None
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not _whole(shape):
        return f"{shown(shape)} is no shape", None
    if not isinstance(offsets, list) or len(offsets) != 2 or not _whole(offsets) or offsets[0] > offsets[1]:
        return f"{shown(offsets)} is no pair of offsets", None
    if (need := math.prod(shape) * DTYPES[dtype][1]) != offsets[1] - offsets[0]:
        return f"{dtype} {shown(shape)} takes {need} bytes, its place holds {offsets[1] - offsets[0]}", None
    return "", TensorInfo(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _whole(values: Iterable[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(tensors: dict[str, TensorInfo], data: int, size: int | None, faults: list[str]) -> None:
    """The tensors must fill the data from the first to the last byte, without overlap or gap."""
    reached = data
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != reached:
            kind = "overlaps the tensor before it" if info.start < reached else "leaves a gap before it"
            faults.append(f"{shown(name)}: {kind} ({abs(info.start - reached)} bytes)")
        if len(faults) >= _MOST_FAULTS:
            return
        reached = max(reached, info.end)
    if size is not None and reached > size:
        faults.append(f"the tensors need {reached} bytes, the file has {size}: it is cut")
    elif size is not None and reached < size:
        faults.append(f"{size - reached} bytes after the last tensor belong to none")
