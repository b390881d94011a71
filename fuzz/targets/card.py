"""A model's card: the licence that it states."""

from __future__ import annotations

from fuzz.check import folder
from halfbyte.select.licence import licence_of

FOLDER = folder()
SEEDS = [text.encode() for text in (
    "---\nlicense: apache-2.0\n---\n# A model\n", "---\nlicense: other\nlicense_name: x\n---\n",
    "# x\n\nLicense: MIT\n",
    "---\nlicense: [a, b]\n---\n", "---\nlicense: &a [*a]\n---\n", "\n" * 3000 + "licens", "# " * 2000,
    "---\na: 2001-99-99\n---\n",
    "---\n" + "[" * 2000 + "\n---\n", "---\nlicense: !!python/name:os.system\n---\n",
    "---\nlicense: " + "1:" * 180 + "1.5\n---\n", "---\nlicense: " + "1:" * 95_000 + "1\n---\n",
    "---\na: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nlicense: *c\n---\n",
)]  # fmt: skip


def run(data: bytes) -> None:
    (FOLDER / "README.md").write_bytes(data)
    found = licence_of(str(FOLDER), FOLDER)
    assert found.value is None or len(found.value) <= 80
