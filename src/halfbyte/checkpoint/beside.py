"""A folder that is there completely or not at all: made beside its place under another name, then renamed.

All of it is on disk before the rename, which after a power cut could otherwise be there before the bytes of its files.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halfbyte import durable
from halfbyte.errors import CheckpointError


@contextmanager
def made_beside(out: Path, need: int, note: str) -> Iterator[Path]:
    """A folder that takes the place of `out` when all went well, and of which nothing stays otherwise.

    `need` bytes must be free. Where another process was faster, an `out` that holds the file `note` is as good.
    Raises CheckpointError for a disk that is full or can't be written, which any OSError of the body is taken for: what
    it reads, it reads within `reading`.
    """
    mark = f".{out.name}.{socket.gethostname()}-"
    folder = out.parent / f"{mark}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out.parent, mark)
        free = shutil.disk_usage(out.parent).free
        if free < need + (1 << 24):
            raise CheckpointError(
                "there is not enough room on this disk",
                where=out.parent,
                found=f"{free / 1e6:,.0f} MB free, {need / 1e6:,.0f} MB needed",
                do="free some space, or name a folder on another disk",
            )
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            durable.flush(file)
        _put(folder, out, note)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            "the disk is full" if full else "the packed model can't be written",
            where=out.parent,
            found=f"{error.strerror or error} after {need / 1e9:.1f} GB were asked for" if full else error,
            do="free some space, or name a folder on another disk" if full else "name a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """What can't be read of a source is not blamed on the disk that is written to. Raises CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError("a file of the checkpoint can't be read", where=error.filename or place,
                              found=error.strerror or error, do="check the file and its disk") from None  # fmt: skip


def _put(folder: Path, out: Path, note: str) -> None:
    """Rename `folder` to `out`. Another process may have been faster; what it made is as good."""
    try:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        durable.put(folder, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (out / note).is_file():
            raise


def _remove_stale(parent: Path, mark: str) -> None:
    """Remove what processes of this machine left that were killed before they could clean up."""
    for folder in parent.glob(f"{mark}*.partial"):
        pid = folder.name.removeprefix(mark).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
