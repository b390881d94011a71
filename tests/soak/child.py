"""A run in a process of its own that says by single bytes on a pipe where it is, so that it can be killed there.

The product knows nothing of it: its functions are wrapped from here. The processes are forked from one that has
imported everything and computed nothing (OpenMP's threads do not survive a fork).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGINS, TRAINS, MICRO, UPDATE, WRITES, WRITTEN, TRAINED = b"B", b"T", b"m", b"u", b"W", b"w", b"t"


def _wrap(
    owner: Any, name: str, before: Callable[..., bytes] | None, after: bytes, tell: Callable[[bytes], Any]
) -> None:
    original = getattr(owner, name)

    def wrapped(*values: Any, **named: Any) -> Any:
        if before is not None:
            tell(before(*values, **named))
        result = original(*values, **named)
        tell(after)
        return result

    setattr(owner, name, wrapped)


def _say_where(tell: Callable[[bytes], Any]) -> None:
    import torch

    from halfbyte.tune import loop, run
    from halfbyte.tune.state import State

    batch_loss = loop.batch_loss

    def told(*values: Any) -> Any:
        total = batch_loss(*values)
        if torch.is_grad_enabled():
            tell(MICRO)
        return total

    loop.batch_loss = told
    save = State.save

    def saved(self: State, folder: Path, best: Path | None = None) -> Path:
        if (folder / f"step-{self.progress.step:06d}").exists():  # nothing is written
            return save(self, folder, best)
        tell(WRITES)
        place = save(self, folder, best)
        tell(WRITTEN)
        return place

    State.save = saved  # type: ignore[method-assign]
    _wrap(State, "update", None, UPDATE, tell)
    _wrap(run, "run_training", lambda *_, **__: TRAINS, TRAINED, tell)


class Child:
    """`halfbyte` with `arguments`, forked off; what it prints goes to `log`."""

    def __init__(self, arguments: list[str], log: Path, variables: dict[str, str]) -> None:
        self.seen = b""
        self.began, self.trains_after = time.monotonic(), 0.0  # seconds until its training began
        self.writes: list[float] = []  # seconds from the begin of a checkpoint's write to its end
        self._write_began: float | None = None
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            self._run(arguments, log, variables, writer)
        os.close(writer)

    def _run(self, arguments: list[str], log: Path, variables: dict[str, str], writer: int) -> None:
        code = 99
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(variables)
            from halfbyte import cli

            _say_where(lambda byte: os.write(writer, byte))
            parser = cli.make_parser
            cli.make_parser = lambda: (os.write(writer, BEGINS), parser())[1]  # main is at work
            code = cli.main(arguments)
        finally:
            os._exit(code)

    def wait_for(self, byte: bytes, count: int) -> bool:
        """Until it has said `byte` so many times; False when it ended before."""
        while self.seen.count(byte) < count:
            if not self._read(None):
                return False
        return True

    def pass_time(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._read(left):
            pass

    def _read(self, seconds: float | None) -> bool:
        """Take in what it said, waiting for at most `seconds`; False when there is nothing or it has ended."""
        if not select.select([self._reader], [], [], seconds)[0]:
            return False
        found = os.read(self._reader, 4096)
        self.seen += found
        now, read_before = time.monotonic(), self._write_began
        for byte in (found[i : i + 1] for i in range(len(found))):
            if byte == TRAINS:
                self.trains_after = now - self.began
            elif byte == WRITES:
                self._write_began = now
            elif byte == WRITTEN and self._write_began is not None:
                if self._write_began == read_before:  # not come in one with its begin
                    self.writes.append(now - self._write_began)
                self._write_began = None
        return bool(found)

    def end(self, number: int | None = None) -> int:
        """Send it the signal, if any, and wait; its exit code, or minus the signal that ended it."""
        if number is not None:
            os.kill(self.pid, number)
        while self._read(None):
            pass
        os.close(self._reader)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> int:
        return self.end(signal.SIGKILL)

    def where(self, micro_batches: int) -> str:
        """Where it was when it ended, in words."""
        if TRAINED in self.seen:
            return "after the training"
        if TRAINS not in self.seen:
            return "before the training"
        if self.seen.count(WRITES) > self.seen.count(WRITTEN):
            return "inside a checkpoint write"
        done = self.seen.rpartition(UPDATE)[2].count(MICRO) if UPDATE in self.seen else self.seen.count(MICRO)
        return "between micro-batches" if 0 < done < micro_batches else "elsewhere in the training"
