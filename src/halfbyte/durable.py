"""Files that are there whole or not at all, after a kill and after a power cut too.

They are written beside their place under a name that begins with a dot and ends in `.part`, flushed to disk, renamed,
and the folder is flushed as well: a rename that is not on disk yet can be lost with the power.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PART = ".part"


def part_of(file: Path) -> Path:
    """Where a file is written before it takes its place. Always the same: a kill leaves one at most."""
    return file.with_name(f".{file.name.lstrip('.')}{PART}")


def write_text(file: Path, text: str) -> None:
    """Write `text` (UTF-8) in place of `file`. Raises OSError that names the file; what was there then stays."""
    part = part_of(file)
    try:
        part.write_text(text, encoding="utf-8")
        put(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def put(part: Path, place: Path) -> None:
    """Flush the file or folder `part` and rename it to `place`, for good. Raises OSError."""
    flush(part)
    part.replace(place)
    flush(place.parent)


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the entries of a folder, are on disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():  # Windows has no handle of a folder; its journal keeps the order
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
