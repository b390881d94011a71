"""Reading ahead and writing behind: bounded, in order, and honest about what goes wrong."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from halfbyte.checkpoint import stream
from halfbyte.checkpoint.stream import ReadAhead, Span, WriteBehind


def until(condition: object) -> None:
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.002)


def test_writes_come_in_order_and_all_of_them() -> None:
    done: list[int] = []
    with WriteBehind(limit=10) as behind:
        for number in range(50):
            behind.put(4, lambda number=number: done.append(number))
    assert done == list(range(50))


def test_no_more_is_held_than_the_limit_unless_one_piece_is_larger() -> None:
    gate, held = threading.Event(), []
    with WriteBehind(limit=10) as behind:
        behind.put(25, gate.wait)
        waiter = threading.Thread(target=lambda: (behind.put(1, lambda: None), held.append(1)))
        waiter.start()
        time.sleep(0.05)
        assert not held
        gate.set()
        waiter.join()
    assert held == [1]


def test_an_error_of_the_disk_reaches_whoever_puts_or_leaves() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), WriteBehind(limit=10) as behind:
        behind.put(5, fail)
        for _ in range(100):
            behind.put(9, lambda: None)
    with pytest.raises(OSError, match="No space"), WriteBehind(limit=10) as behind:
        behind.put(5, fail)


def test_after_an_error_outside_the_rest_is_dropped() -> None:
    done: list[int] = []
    gate = threading.Event()
    with pytest.raises(KeyboardInterrupt), WriteBehind(limit=100) as behind:
        behind.put(1, gate.wait)
        behind.put(1, lambda: done.append(1))
        threading.Timer(0.05, gate.set).start()
        raise KeyboardInterrupt
    assert not done


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice on files")
def test_reading_ahead_keeps_its_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, count, advice: asked.append((start, count)))
    monkeypatch.setattr(stream, "_STEP", 10)
    (tmp_path / "file").write_bytes(bytes(400))
    work = [[Span(tmp_path / "file", 100 * n, 100 * n + 100)] for n in range(4)]

    def reach() -> int:
        return sum(count for _, count in asked)

    with ReadAhead(work, distance=50) as ahead:
        until(lambda: reach() == 50)
        time.sleep(0.02)
        assert reach() == 50
        ahead.reached(0)  # the whole of the work in hand, and the distance beyond
        until(lambda: reach() == 150)
        time.sleep(0.02)
        assert reach() == 150
        ahead.reached(3)
        until(lambda: reach() == 400)
    assert asked == [(start, 10) for start in range(0, 400, 10)]


def test_a_file_that_is_gone_stops_the_reading_ahead_only(tmp_path: Path) -> None:
    with ReadAhead([[Span(tmp_path / "none", 0, 100)]]) as ahead:
        ahead.reached(0)
