"""Records in CSV and TSV."""

from __future__ import annotations

from fuzz.check import folder
from halfbyte.data.records import load_records

FOLDER = folder()
COMMAS, TABS = str(FOLDER / "data.csv"), str(FOLDER / "data.tsv")
SEEDS = [first + text for first in (b"\0", b"\1") for text in (
    b"prompt,completion\na,b\nc,d\n", b'a,b\n"1, 2","3 ""x"""\n', b"a\tb\n1\t2\n", b"a;b\n1;2\n", b"a,a\n1,2\n",
    b"a,b\n1\n1,2,3\n", b'a,b\n"open', b"a,b\r\n\r\n1,2\r", b"a\n\0\n", b"\xef\xbb\xbfa\n1\n", b"\xff", b"",
    b"," * 3000,
    b'a\n"' + b"x" * 3000 + b'"\n',
)]  # fmt: skip


def run(data: bytes) -> None:
    """The first byte chooses the suffix."""
    source = TABS if data[:1] and data[0] & 1 else COMMAS
    with open(source, "wb") as stream:  # noqa: PTH123 it is faster
        stream.write(data[1:])
    assert load_records(source)
