"""Ctrl-C, SIGTERM and SIGHUP while a run trains."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_SAID = b"\nstopping after this micro-batch; the state and the adapter are saved (again: stop at once)\n"


class Stopped(Exception):
    """Raised between micro-batches when the run is asked to stop; the step is done again on resume."""


def numbers() -> list[signal.Signals]:
    """The signals that ask to stop: Ctrl-C, SIGTERM, and SIGHUP (a terminal was closed, a connection is lost), unless
    that is ignored (`nohup`)."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        found.append(hangup)
    return found


@dataclass
class Stop:
    """Whether the run was asked to stop."""

    asked: bool = False

    def __call__(self) -> bool:
        return self.asked


@contextmanager
def stop_signals(say: bool = True) -> Iterator[Stop]:
    """The signals that ask to stop only do that, by what this gives; a second one stops at once (KeyboardInterrupt).

    They are said on standard error, unless not to `say`, by a bare write: a handler may come in the midst of any other.
    """
    stop = Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        with contextlib.suppress(OSError):
            os.write(2, _SAID if say else b"")

    try:
        old = {number: signal.signal(number, handle) for number in numbers()}
    except ValueError:  # not in the main thread: whoever runs the thread handles signals
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
