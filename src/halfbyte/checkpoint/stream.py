"""Reading ahead and writing behind, so that packing runs at the speed of the disk.

One thread computes. Another asks the system for the bytes that come next (they land in its page cache, not in this
process), and a third writes what is ready and waits for the disk. Both keep a bounded distance, so that memory does not
depend on the size of the model.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

AHEAD = 256_000_000  # bytes asked for beyond the work in hand, at most
BEHIND = 128_000_000  # bytes computed and not yet written, at most, unless one piece is larger
_STEP = 1 << 17  # bytes of one request: Linux cuts longer ones down to the device's readahead, which is often this


@dataclass(frozen=True)
class Span:
    """Bytes of a file that will be read."""

    file: Path
    start: int
    end: int


class ReadAhead:
    """Context manager: asks for the spans of each piece of work, in order, before `reached` comes to it.

    Does nothing on systems without posix_fadvise (macOS, Windows), and nothing more once a request is refused: what it
    would have brought is then read when it is touched.
    """

    def __init__(self, work: Sequence[Sequence[Span]], distance: int = AHEAD) -> None:
        self._work, self._distance = work, distance
        self._ends = [0]  # bytes of the work up to and with each piece
        for spans in work:
            self._ends.append(self._ends[-1] + sum(span.end - span.start for span in spans))
        self._allowed, self._stopped = distance, False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="halfbyte-read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        if hasattr(os, "posix_fadvise"):
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def reached(self, index: int) -> None:
        """The piece of work `index` begins."""
        with self._moved:
            self._allowed = self._ends[index + 1] + self._distance
            self._moved.notify()

    def _run(self) -> None:
        position = 0
        for spans in self._work:
            for span in spans:
                try:
                    file = os.open(span.file, os.O_RDONLY)
                except OSError:
                    return
                try:
                    for start in range(span.start, span.end, _STEP):
                        count = min(_STEP, span.end - start)
                        position += count
                        if not self._may(position):
                            return
                        os.posix_fadvise(file, start, count, os.POSIX_FADV_WILLNEED)
                except OSError:
                    return
                finally:
                    os.close(file)

    def _may(self, position: int) -> bool:
        """Wait until the bytes before `position` may be asked for; False when that is no longer wanted."""
        with self._moved:
            while not self._stopped and position > self._allowed:
                self._moved.wait()
            return not self._stopped


class WriteBehind:
    """Context manager: does what it is given on a thread of its own, in order, at most `limit` bytes behind.

    What goes wrong there is raised by the next `put`, or at the end. Leaving the context waits for what is left, or,
    after an error, drops it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, Callable[[], object]]] = deque()
        self._held = 0  # bytes of what waits and of what is being written
        self._error: BaseException | None = None
        self._ended = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="halfbyte-write-behind", daemon=True)

    def __enter__(self) -> WriteBehind:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._moved:
            if error is not None:
                self._waiting.clear()
            self._ended = True
            self._moved.notify_all()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def put(self, nbytes: int, write: Callable[[], object]) -> None:
        """Call `write`, which holds on to `nbytes`, later; waits while too much is held already."""
        with self._moved:
            while self._error is None and self._held and self._held + nbytes > self._limit:
                self._moved.wait()
            if self._error is not None:
                raise self._error
            self._waiting.append((nbytes, write))
            self._held += nbytes
            self._moved.notify_all()

    def _run(self) -> None:
        while True:
            with self._moved:
                while not self._waiting and not self._ended:
                    self._moved.wait()
                if not self._waiting:
                    return
                nbytes, write = self._waiting.popleft()
            try:
                write()
            except BaseException as error:  # whatever it is, it belongs to whoever waits
                with self._moved:
                    self._error = error
                    self._waiting.clear()
                    self._moved.notify_all()
                return
            del write  # and with it the tensors that it held
            with self._moved:
                self._held -= nbytes
                self._moved.notify_all()
