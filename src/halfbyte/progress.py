"""Progress for people: a bar on a terminal, and elsewhere, in a log, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # seconds between two lines of a log

Items = Callable[[int, int | None], None]  # done, in all
Bytes = Callable[[str, int, int], None]  # of what, done, in all


@contextmanager
def items_bar(console: Console, text: str, *, disable: bool = False) -> Iterator[Items]:
    """A callback that shows how many items are done."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=disable or not console.is_terminal) as bar:
        line, log = bar.add_task(text, total=None), _Log(console)

        def progress(done: int, total: int | None) -> None:
            bar.update(line, completed=done, total=total)
            if not disable and log.is_due(done):
                log.say(text, done, total, f"{done:,} of {total:,}" if total else f"{done:,}")

        yield progress


@contextmanager
def bytes_bar(console: Console) -> Iterator[Bytes]:
    """A callback that shows how many bytes are done; there is nothing to see until it is called."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        lines, log = {}, _Log(console)

        def progress(what: str, done: int, total: int) -> None:
            if what not in lines:
                lines[what] = bar.add_task(what, total=total)
            bar.update(lines[what], completed=done, total=total)
            if log.is_due(done):
                log.say(what, done, total, f"{done / 1e9:.2f} of {total / 1e9:.2f} GB")

        yield progress


def left(done: int, total: int, since: float, first: int = 0) -> str:
    """The time that is left, in words, after `done` of `total`; `first` of them were done at `since` (monotonic)."""
    made = done - first
    if made <= 0:
        return ""
    seconds = (total - done) * (time.monotonic() - since) / made
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s left" if seconds < 90 else f"{minutes // 60} h {minutes % 60:02} min left" if (
        minutes >= 100) else f"{minutes} min left"  # fmt: skip


class _Log:
    """When a log gets a line: not on a terminal, and `EVERY` so many seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = self.said = time.monotonic()
        self.first: int | None = None  # what was done already when it was asked first: an evaluation that goes on
        self.last = 0

    def is_due(self, done: int) -> bool:
        if self.first is None or done < self.last:  # the first, or a second way through
            self.first, self.began = done, time.monotonic()
        self.last = done
        return not self.console.is_terminal and time.monotonic() - self.said >= EVERY

    def say(self, what: str, done: int, total: int | None, text: str) -> None:
        self.said = time.monotonic()
        rest = left(done, total, self.began, self.first or 0) if total else ""
        self.console.print(f"{what}: {text}{', ' * bool(rest)}{rest}", markup=False, highlight=False, soft_wrap=True)
