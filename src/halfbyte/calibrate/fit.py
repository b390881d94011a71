"""Timing an operation, and the prices of its units of work that explain the measured times best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte.plan.calibration import Cost, Units

LEAST, SECONDS = 4, 0.03  # runs of a measurement, and seconds after which no more are made


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


def seconds(work: Callable[[], object]) -> float:
    """What a run takes; the first one, which prepares code and memory, does not count."""
    work()
    return quiet(list(_repeated(lambda: once(work))))


def quiet(times: list[float]) -> float:
    """The lower quartile: what a run takes while nothing else runs, without the luck of the single best."""
    return sorted(times)[len(times) // 4]


def once(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _repeated(measure: Callable[[], Any]) -> Iterator[Any]:
    began, runs = time.perf_counter(), 0
    while runs < LEAST or (time.perf_counter() - began < SECONDS and runs < 200):
        yield measure()
        runs += 1


def both(
    forward: Callable[[], Tensor], gradient: Tensor | None = None, *, fresh: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass; `fresh` drops the gradients of the last one, as the loop does."""

    def measure() -> tuple[float, float]:
        fresh()
        began = time.perf_counter()
        made = forward()
        middle = time.perf_counter()
        made.backward(torch.ones_like(made) if gradient is None else gradient)  # type: ignore[no-untyped-call]
        return middle - began, time.perf_counter() - middle

    measure()
    found = list(_repeated(measure))
    return quiet([one for one, _ in found]), quiet([other for _, other in found])
