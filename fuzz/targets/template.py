"""Templates and conversations: what becomes of a record."""

from __future__ import annotations

import json

from halfbyte.data.records import Record
from halfbyte.data.template import to_examples

SEEDS = [template + b"\n" + record for template, record in (
    (b"LEGO set {Name}, {{braces}}", b'{"Name": "x", "Price": 3}'), (b"{", b"{}"), (b"{a", b'{"a": 1}'), (b"{}", b"{}"),
    (b"{a.b}", b'{"a": {"b": 1}}'), (b"{a}", b'{"a": {"b": [1]}}'), (b"{a}", b'{"a": null}'), (b"{a}", b'{"a": [1]}'),
    (b"", b'{"prompt": "a", "completion": "b", "system": "c"}'), (b"", b'{"prompt": 3, "completion": " "}'),
    (b"", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
    (b"", b'{"messages": [{"role": ["x"], "content": null}]}'), (b"", b'{"messages": 3, "prompt": 1}'), (b"",
    b'{"x": 1}'),
    (b"", b'{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}'), (b"{\xc3\xa4}", b'{"\\ud800": 1}'),
)]  # fmt: skip


def run(data: bytes) -> None:
    """The first line is the prompt's template (empty: none), the rest the record."""
    first, _, rest = data.decode("utf-8", "surrogateescape").partition("\n")
    try:
        values = json.loads(rest)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        template = {"prompt": first, "completion": first} if first else None
        (example,) = to_examples([Record(values, "data.jsonl:1")], template)
        assert isinstance(example.prompt, str)
