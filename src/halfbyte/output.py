"""Where words go, and what happens when they can't be written: the reader of a pipe has left, a log's disk is full, the
terminal is gone.

A verb that only prints has then done its work. One that works for hours must neither end in silence nor go on for
nobody: it is stopped as by Ctrl-C, and the rest of what it has to say goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
from typing import NoReturn

from rich.console import Console


class OutputLost(KeyboardInterrupt):
    """Nobody can read what is printed any more. What handles Ctrl-C handles this."""


class Output(Console):
    """The console of a verb. `works`: it does more than print, so a lost output stops it (OutputLost, once); otherwise
    that is a BrokenPipeError."""

    def __init__(self, *, works: bool = False, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        self.works, self.lost = works, False

    def _check_buffer(self) -> None:  # through which all goes, that of bars, too
        try:
            super()._check_buffer()
        except OSError as error:
            if not self.works:
                raise
            self._lose(error.strerror or str(error))

    def on_broken_pipe(self) -> None:
        if not self.works:
            raise BrokenPipeError
        self._lose("the pipe is closed")

    def _lose(self, why: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # what is left in buffers has to go somewhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        if self.stderr:
            self.quiet = True
        self.stderr = True
        if not self.lost:
            self.lost = True
            _stop(why)


def _stop(why: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"the output can't be written ({why}): stopping\n".encode())
    raise OutputLost
