"""Records in CSV and TSV."""

from __future__ import annotations

from fuzz.records import reader, seeds

SEEDS = seeds([
    b"prompt,completion\na,b\nc,d\n", b'a,b\n"1, 2","3 ""x"""\n', b"a\tb\n1\t2\n", b"a;b\n1;2\n", b"a,a\n1,2\n",
    b"a,b\n1\n1,2,3\n", b'a,b\n"open', b"a,b\r\n\r\n1,2\r", b"a\n\0\n", b"\xef\xbb\xbfa\n1\n", b"\xff", b"",
    b"," * 3000,
    b'a\n"' + b"x" * 3000 + b'"\n',
])  # fmt: skip
run = reader("csv", "tsv")
