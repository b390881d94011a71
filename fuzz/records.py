"""Records in a file of one of two kinds: what the targets of the readers of data share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fuzz.check import folder
from halfbyte.data.records import load_records


def seeds(texts: Sequence[bytes]) -> list[bytes]:
    """Inputs for `reader`: each text as a file of both kinds."""
    return [first + text for first in (b"\0", b"\1") for text in texts]


def reader(even: str, odd: str) -> Callable[[bytes], None]:
    """Reads an input as a file whose suffix, of these two, its first byte chooses."""
    place = folder()
    files = str(place / f"data.{even}"), str(place / f"data.{odd}")

    def run(data: bytes) -> None:
        source = files[bool(data[:1] and data[0] & 1)]
        with open(source, "wb") as stream:  # noqa: PTH123 it is faster
            stream.write(data[1:])
        assert load_records(source)

    return run
