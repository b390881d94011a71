"""CUDA's streams without a card: what is asked of each is written down, and done in any order that the waits allow."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

_ORDERS = 300


class Stream:
    """A queue of work: ("wait", stream, how much of it) and whatever else a test writes into it."""

    def __init__(self) -> None:
        self.work: list[tuple[str, Any, Any]] = []

    def wait_stream(self, other: Stream) -> None:
        self.work.append(("wait", other, len(other.work)))

    def wait_event(self, event: Event) -> None:
        self.work.append(("wait", event.stream, event.done))

    def record_event(self) -> Event:
        made = Event()
        made.record(self)
        return made


class Event:
    stream: Stream
    done: int

    def record(self, stream: Stream) -> None:
        self.stream, self.done = stream, len(stream.work)


def simulate(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Make a stream the current one, of every device."""
    compute = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return compute


def advance(streams: list[Stream], seed: int, act: Callable[[str, Any, Any], None]) -> None:
    """Do the work of all streams in an order that follows from `seed`; `act` is told of all but waits."""
    make, done = random.Random(seed), dict.fromkeys(map(id, streams), 0)
    while ready := [stream for stream in streams if _is_ready(stream, done)]:
        stream = make.choice(ready)
        kind, what, value = stream.work[done[id(stream)]]
        done[id(stream)] += 1
        if kind != "wait":
            act(kind, what, value)
    assert all(done[id(stream)] == len(stream.work) for stream in streams), "they wait for each other"


def ever(raced: Callable[[list[Stream], int], bool], streams: list[Stream]) -> bool:
    """Whether `raced` finds something in one of many orders."""
    return any(raced(streams, seed) for seed in range(_ORDERS))


def _is_ready(stream: Stream, done: dict[int, int]) -> bool:
    if done[id(stream)] == len(stream.work):
        return False
    kind, what, value = stream.work[done[id(stream)]]
    return kind != "wait" or done[id(what)] >= value


def without_waits(stream: Stream) -> None:
    """Make a stream that waits for nobody."""
    stream.work = [("idle", None, None) if kind == "wait" else (kind, what, value) for kind, what, value in stream.work]
