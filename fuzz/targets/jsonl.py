"""Records in JSONL and JSON."""

from __future__ import annotations

from fuzz.records import reader, seeds

SEEDS = seeds([
    b'{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n', b'[{"a": 1}, {"a": 2.5e3, "b": [null, true]}]',
    b"\xef\xbb\xbf{}\n\n{}", b'{"a": NaN}', b"[1, 2]", b'{"a": "\\ud800"}', b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe",
    b"[{}\n,\n{}]", b"[" + b"9" * 5000 + b"]", b'"text"', b"", b'{"a": 1} {"b": 2}',
])  # fmt: skip
run = reader("jsonl", "json")
