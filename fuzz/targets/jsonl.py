"""Records in JSONL and JSON."""

from __future__ import annotations

from fuzz.check import folder
from halfbyte.data.records import load_records

FOLDER = folder()
LINES, WHOLE = str(FOLDER / "data.jsonl"), str(FOLDER / "data.json")
SEEDS = [first + text for first in (b"\0", b"\1") for text in (
    b'{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n', b'[{"a": 1}, {"a": 2.5e3, "b": [null, true]}]',
    b"\xef\xbb\xbf{}\n\n{}", b'{"a": NaN}', b"[1, 2]", b'{"a": "\\ud800"}', b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe",
    b"[{}\n,\n{}]", b"[" + b"9" * 5000 + b"]", b'"text"', b"", b'{"a": 1} {"b": 2}',
)]  # fmt: skip


def run(data: bytes) -> None:
    """The first byte chooses the suffix."""
    source = WHOLE if data[:1] and data[0] & 1 else LINES
    with open(source, "wb") as stream:  # noqa: PTH123 it is faster
        stream.write(data[1:])
    assert load_records(source)
