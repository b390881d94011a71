"""A log gets a line now and then, a terminal a bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from halfbyte import progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made)
    return made


def test_a_log_says_how_far_it_is_every_half_minute(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.items_bar(Console(file=stream, width=80), "evaluate [tuned]") as show:
        for done in range(101):
            clock.now = 3.0 * done
            show(done, 100)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "evaluate [tuned]: 10 of 100, 4 min left" and len(lines) == 10
    assert lines[-2:] == ["evaluate [tuned]: 90 of 100, 30 s left", "evaluate [tuned]: 100 of 100, 0 s left"]


def test_what_was_done_before_does_not_count_for_the_speed(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.items_bar(Console(file=stream, width=80), "evaluate") as show:
        show(900, 1000)
        clock.now = 50.0
        show(910, 1000)
    assert stream.getvalue() == "evaluate: 910 of 1,000, 8 min left\n"


def test_bytes_in_a_log_and_what_is_quick_says_nothing(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.bytes_bar(Console(file=stream, width=80)) as show:
        show("pack", 0, 16 * 10**9)
        clock.now = 40.0
        show("pack", 10**9, 16 * 10**9)
    assert stream.getvalue() == "pack: 1.00 of 16.00 GB, 10 min left\n"
    assert progress.left(1, 2, 40.0, 1) == "" and progress.left(1, 1001, 0.0) == "11 h 07 min left"


def test_on_a_terminal_and_where_nothing_is_to_be_said_there_are_no_lines(clock: Clock) -> None:
    for disable, console in (
        (True, Console(file=io.StringIO())),
        (False, Console(file=io.StringIO(), force_terminal=True)),
    ):
        with progress.items_bar(console, "check", disable=disable) as show:
            clock.now += 100.0
            show(5, 10)
        assert "of 10," not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_second_way_through_and_a_number_that_is_not_known(clock: Clock) -> None:
    stream = io.StringIO()
    with progress.items_bar(Console(file=stream, width=80), "check") as show:
        for done in (1000, 5000, 10_000):
            clock.now += 20.0
            show(done, None)
        clock.now = 100.0
        show(1000, 10_000)
        clock.now = 140.0
        show(5000, 10_000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "check: 5,000" and lines[-1] == "check: 5,000 of 10,000, 50 s left"
