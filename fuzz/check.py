"""What counts as a finding: any exception but our own, more than a second, a message that is not fit to be printed."""

from __future__ import annotations

import atexit
import importlib
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from halfbyte.errors import HalfbyteError

SECONDS = 1.0  # of processor time that an input may take
LONGEST = 12_000  # characters of an error
NAMES = sorted(file.stem for file in (Path(__file__).parent / "targets").glob("[a-z]*.py"))
_ODD = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # no letter, mark or space
_MEMORY = Path("/dev/shm")


def target(name: str, seconds: float = SECONDS) -> Callable[[bytes], None]:
    """The function of one entry point, checked."""
    run: Callable[[bytes], None] = importlib.import_module(f"fuzz.targets.{name}").run

    def checked(data: bytes) -> None:
        started = time.thread_time()
        try:
            run(data)
        except HalfbyteError as error:
            _check_message(str(error))
        took = time.thread_time() - started
        if took > seconds:
            raise TimeoutError(f"{took:.2f} s for {len(data)} bytes")

    return checked


def seeds(name: str) -> list[bytes]:
    """The inputs that are written down for an entry point."""
    made: list[bytes] = importlib.import_module(f"fuzz.targets.{name}").SEEDS
    return made


def folder() -> Path:
    """A new folder, in memory where there is such a thing, for as long as the process runs."""
    made = Path(tempfile.mkdtemp(prefix="halfbyte-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _check_message(text: str) -> None:
    text.encode("utf-8")
    odd = {letter for letter in text if unicodedata.category(letter) in _ODD and letter not in "\n\t\u200c\u200d"}
    if odd:
        raise AssertionError(f"an error with characters that can't be printed: {odd!r} in {text!r}")
    if len(text) > LONGEST:
        raise AssertionError(f"an error of {len(text)} characters")
