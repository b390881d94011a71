"""Safetensors files that no honest program writes: each must end in one clear error at once, without much memory."""

from __future__ import annotations

import json
import struct


def whole(header: object, data: int = 0, *, length: int | None = None) -> bytes:
    """A file with this header (an object, or its very bytes), `data` zeros, and the header's length or a false one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def tensor(start: int, end: int, dtype: object = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


_MANY = 50_000
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "cut in the length": b"1234567",
    "the largest length": whole({}, length=2**64 - 1),
    "a length just over the limit": whole({}, length=100_000_001),
    "a length beyond the file": whole({}, length=90_000_000),
    "zeros for a header": whole(bytes(2_000_000)),
    "a web page": b"<!DOCTYPE html><html>" + b" " * 100,
    "no JSON": whole(b"{]"),
    "a list": whole([]),
    "not UTF-8": whole(b'{"a\xff":{}}'),
    "deep nesting": whole(b'{"a":' * 200_000),
    "deep lists in a shape": whole(b'{"a":{"dtype":"U8","shape":' + b"[" * 100_000),
    "a number without end": whole(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "the same tensor twice": whole(b'{"a":%s,"a":%s}' % ((json.dumps(tensor(0, 4)).encode(),) * 2), 4),
    "many names twice": whole(b"{" + b",".join(b'"%d":0' % (i // 2) for i in range(_MANY)) + b"}"),
    "many numbers": whole(b'{"a":[' + b"0," * 10_000_000 + b"0]}"),
    "many broken entries": whole({str(i): 0 for i in range(_MANY)}),
    "many overlaps": whole({str(i): tensor(0, 4) for i in range(_MANY)}, 4),
    "metadata that are none": whole({"__metadata__": [1], "a": tensor(0, 4)}, 4),
    "metadata of numbers": whole({"__metadata__": {"a": 1}, "a": tensor(0, 4)}, 4),
    "no entry": whole({"a": None}),
    "an entry with more in it": whole({"a": {**tensor(0, 4), "b": 1}}, 4),
    "an unknown dtype": whole({"a": tensor(0, 4, "X8")}, 4),
    "a dtype of a megabyte": whole({"a": tensor(0, 4, "X" * 1_000_000)}, 4),
    "a negative shape": whole({"a": tensor(0, 4, shape=[-4])}, 4),
    "an enormous shape": whole({"a": tensor(0, 4, shape=[2**62, 2**62])}, 4),
    "a shape over 64 bits": whole({"a": tensor(0, 4, shape=[2**70])}, 4),
    "a shape of fractions": whole({"a": tensor(0, 4, shape=[4.0])}, 4),
    "a shape of many dimensions": whole({"a": tensor(0, 1, shape=[2**62] * 100_000)}, 1),
    "offsets in the wrong order": whole({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, 4),
    "offsets below zero": whole({"a": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}}, 4),
    "overlapping offsets": whole({"a": tensor(0, 4), "b": tensor(2, 6)}, 6),
    "a gap": whole({"a": tensor(0, 4), "b": tensor(6, 8)}, 8),
    "offsets beyond the file": whole({"a": tensor(0, 1_000_000)}, 10),
    "data that belong to none": whole({"a": tensor(0, 4)}, 10),
    "a name that moves the cursor": whole({"\x1b[2J": tensor(0, 4)}, 4),
    "a name that is half a letter": whole(b'{"\\ud800":' + json.dumps(tensor(0, 4)).encode() + b"}", 4),
    "a name of a megabyte": whole({"n" * 1_000_000: tensor(0, 4, "X8")}, 4),
}
