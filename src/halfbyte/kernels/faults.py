"""What the command line says when a mapped file loses its pages while it is in use (faults.cpp has the method)."""

from __future__ import annotations

import os
import sys

from halfbyte.kernels import native

_WHAT = "a file that is mapped into memory can't be read any more"
_FOUND = "it was shortened while it was in use, or its disk refuses to read it"
_DO = (
    "put the file back (a copy in halfbyte's cache is packed again by itself) and give the command again; a run goes"
    " on from its last checkpoint with --resume"
)
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar has hidden it


def explain_lost_pages(model: str) -> bool:
    """From here on the process ends with a message and exit code 1 where the system can't give a page of a mapped file
    (SIGBUS). `model` stands in the message where the file's name can't be found out. Whether that could be set: not
    without the native library, nor on Windows.

    It is for a whole process, so the command line alone sets it, not whoever imports this package.
    """
    library, _ = native.load()
    if library is None:
        return False
    before = ("\r" + _SHOW_CURSOR if sys.stderr.isatty() else "") + f"error: {_WHAT}\n  where: "
    after = f"\n  found: {_FOUND}\n  do: {_DO}\n"
    named = "".join(letter if letter.isprintable() else "?" for letter in model)
    parts = (before, f"most likely a file of {named}, or of its packed copy", after)
    return bool(library.halfbyte_explain_lost_pages(*map(os.fsencode, parts)))
