"""The header of a safetensors file."""

from __future__ import annotations

import struct

from fuzz.check import folder
from halfbyte.checkpoint.headers import read_header
from tests.checkpoint.hostile import HOSTILE, tensor, whole

FILE = folder() / "model.safetensors"
SEEDS = [b"\1" + text for text in HOSTILE.values() if len(text) < 2000]
SEEDS += [b"\1" + whole({"a": tensor(0, 4), "b": tensor(4, 12, "F32", [2])}, 12),
          b'\0\4{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"format":"pt"}}']  # fmt: skip


def run(data: bytes) -> None:
    """An odd first byte: a whole file. Else the second byte is the length of the data, and the header's is right."""
    if data[:1] and data[0] & 1:
        file = data[1:]
    else:
        text = data[2:]
        file = struct.pack("<Q", len(text)) + text + bytes(data[1] if len(data) > 1 else 0)
    FILE.write_bytes(file)
    for name, info in read_header(FILE).items():
        assert name and 0 <= info.start <= info.end <= len(file)
