"""Timing an operation, and the prices of its units of work that explain the measured times best."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte.plan.calibration import Cost, Units

_SMALLEST, _LARGEST = 16 << 20, 256 << 20  # bytes of what the processor's cache is filled with
LEAST, SECONDS = 5, 0.03  # runs of a measurement, and seconds after which no more are made


@dataclass
class Points:
    """Measured (units, seconds) of one operation. `whole` is what the error of each is relative to: its own seconds, or
    those of what it is the remainder of."""

    units: list[Units] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def add(self, units: Units, seconds: float, whole: float | None = None) -> None:
        self.units.append(units)
        self.seconds.append(seconds)
        self.whole.append(seconds if whole is None else whole)

    def fit(self) -> Cost:
        """Seconds of each unit, none negative, so that the sum of the squared relative errors is least. Points that
        are remainders bend nothing: the noise of the whole would be theirs."""
        from scipy.optimize import nnls

        names = list(dict.fromkeys(name for units in self.units for name in units))
        counted = np.array([[float(units.get(name, 0.0)) for name in names] for units in self.units])
        measured, whole = np.array(self.seconds), np.maximum(np.array(self.whole), 1e-9)
        relative = counted / whole[:, None]
        scale = np.maximum(relative.max(axis=0), 1e-300)
        found, _ = nnls(relative / scale, measured / whole)
        prices = found / scale
        fitted = relative @ prices
        points: list[list[float]] = []
        if self.whole == self.seconds:
            points = [[*map(float, counts), 1 / max(float(share), 0.05)]
                      for counts, share in zip(counted, fitted, strict=True)]  # fmt: skip
        error = float(np.abs(fitted - measured / whole).mean())
        return Cost({name: float(price) for name, price in zip(names, prices, strict=True)}, points, error)


def seconds(work: Callable[[], object], cold: bool = False) -> float:
    """What a run takes, `cold` after the processor's cache was filled with something else, as in a step; the first one,
    which prepares code and memory, does not count."""

    def measure() -> float:
        if cold:
            _other().max()
        return once(work)

    work()
    return typical(list(_repeated(measure)))


@functools.cache
def _other() -> Tensor:
    """What fills the cache. Some servers' hold all that is timed here, and none holds a model."""
    return torch.ones(min(_LARGEST, max(_cache_bytes(), _SMALLEST) * 3 // 2) // 4)


def _cache_bytes() -> int:
    """Of the largest cache that the first processor has; 0 where the system does not tell."""
    found = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text().strip()
            found.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
    return max(found)


def typical(times: list[float]) -> float:
    """The median: a step has the luck of all runs, not of the best."""
    return statistics.median(times)


def once(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _repeated(measure: Callable[[], Any], least: int = LEAST) -> Iterator[Any]:
    began, runs = time.perf_counter(), 0
    while runs < least or (time.perf_counter() - began < SECONDS and runs < 200):
        yield measure()
        runs += 1


def both(
    forward: Callable[[], Tensor], *, fresh: Callable[[], object] = lambda: None, least: int = LEAST
) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass, of `least` runs at least; `fresh` clears the gradients of the last
    one, as the loop does."""

    def measure() -> tuple[float, float]:
        fresh()
        began = time.perf_counter()
        made = forward()
        middle = time.perf_counter()
        made.backward(torch.ones_like(made))  # type: ignore[no-untyped-call]
        return middle - began, time.perf_counter() - middle

    return _halves(measure, least)


def through(layers: Sequence[torch.nn.Module], x: Tensor, gradient: Tensor) -> tuple[float, float]:
    """Seconds of the forward pass of one of `layers`, and of its backward pass: all of them go forward and then, in
    turn, back, as in a model, so that what they read has left the processor's cache where they are many."""

    def measure() -> tuple[float, float]:
        inputs = [x.detach().requires_grad_() for _ in layers]
        for layer in layers:
            layer.zero_grad(set_to_none=False)  # as in the loop, gradients are added to what is there
        began = time.perf_counter()
        made = [layer(one) for layer, one in zip(layers, inputs, strict=True)]
        middle = time.perf_counter()
        while made:
            made.pop().backward(gradient)
        return (middle - began) / len(layers), (time.perf_counter() - middle) / len(layers)

    return _halves(measure, max(2, LEAST - len(layers)))


def _halves(measure: Callable[[], tuple[float, float]], least: int = LEAST) -> tuple[float, float]:
    measure()
    found = list(_repeated(measure, least))
    return typical([one for one, _ in found]), typical([other for _, other in found])
