"""Ctrl-C and SIGTERM while a run trains."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SAID = b"\nstopping after this micro-batch; the state and the adapter are saved (again: stop at once)\n"


class Stopped(Exception):
    """Raised between micro-batches when the run is asked to stop; the step is done again on resume."""


@contextmanager
def stop_signals(say: bool = True) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM only ask to stop, by what this gives; a second one stops at once (KeyboardInterrupt).

    They are said on standard error, unless not to `say`, by a bare write: a handler may come in the midst of any other.
    """
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with contextlib.suppress(OSError):
            os.write(2, _SAID if say else b"")

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs the thread handles signals
        old = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
