"""The inputs that are kept: a text file for each entry point, one input a line in base64, so that they are few files.

They are the smallest of those that libFuzzer collects: inputs that each reach code which others do not. Crashes that
were found and mended stay at the top, below the line `# findings`, whatever they reach.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

KEPT = Path(__file__).parent / "corpora"
ROOM = 30_000  # characters of a file, findings apart
_FINDINGS, _OTHERS = "# findings", "# corpus"


def load(name: str) -> list[bytes]:
    """The findings, and the other inputs that are kept."""
    return [*_part(name, _FINDINGS), *_part(name, _OTHERS)]


def _part(name: str, part: str) -> list[bytes]:
    file = KEPT / f"{name}.txt"
    here, found = "", []
    for line in file.read_text(encoding="ascii").splitlines() if file.is_file() else ():
        if line.startswith("#"):
            here = line
        elif here == part:
            found.append(base64.b64decode(line))
    return found


def keep(name: str, inputs: list[bytes], findings: list[bytes] | None = None) -> int:
    """Write the smallest of `inputs`, as many as there is room for, below all findings; returns how many there are."""
    found = list(dict.fromkeys([*_part(name, _FINDINGS), *(findings or [])]))
    others, room = [], ROOM
    for data in sorted(set(inputs) - set(found), key=lambda data: (len(data), data)):
        line = base64.b64encode(data).decode()
        if (room := room - len(line) - 1) < 0:
            break
        others.append(line)
    lines = [_FINDINGS, *(base64.b64encode(data).decode() for data in found), _OTHERS, *others]
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="ascii")
    return len(found) + len(others)


def unpack(inputs: list[bytes], folder: Path) -> None:
    """A file for each input, as libFuzzer wants them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def pack(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()]
