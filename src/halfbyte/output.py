"""Where the program prints, and what happens when that can't be written: the reader of a pipe has left, a log's disk is
full, the terminal is gone.

What is quoted may be a stranger's data or a model's answer, and a terminal obeys escape sequences in them, which rich
lets through. Nothing that is printed here moves the cursor, changes the colour or the title, or rings.

A verb that only prints has then done its work. One that works for hours must neither end in silence nor go on for
nobody: it is stopped as by Ctrl-C, and the rest of what it has to say goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.segment import Segment

from halfbyte.errors import printable


class OutputLost(KeyboardInterrupt):
    """Nobody can read what is printed any more. What handles Ctrl-C handles this."""


class Output(Console):
    """rich's console, with its `options`, on which control characters are spelt out. `works`: its verb does more than
    print, so a lost output stops it (OutputLost, once); otherwise that is a BrokenPipeError."""

    def __init__(self, *, works: bool = False, **options: Any) -> None:
        super().__init__(**{"highlight": False, **options})
        self.works, self.lost = works, False
        self.push_render_hook(_SpeltOut())

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


class _SpeltOut(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [one if isinstance(one, Control) else _Printable(one) for one in renderables]


class _Printable:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else printable(text), style, control)
