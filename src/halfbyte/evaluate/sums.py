"""Metrics as functions of sums over units, which is all that resampling and swapping need to know of them.

Method. A unit is an item, or a group of items that are not independent (editions of one LEGO set). Each unit adds a row
of K numbers; a metric is `finish` of the sum of the rows. A mean or a perplexity has two columns (numerator and
denominator), macro F1 has two for each class. So a batch of resamples is one product of matrices, `weights @ sums`, for
every metric; without a unit the sums are the total less its row; and to swap two models within some units moves the
difference of their rows from one side to the other.

Trade-off. A metric that is no function of sums over units (a median, a rank correlation) does not fit; there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]


class Statistic(Protocol):
    """A metric of `units` units as a function of their weights."""

    @property
    def units(self) -> int: ...

    def value(self, weights: Floats) -> Floats:
        """The metric [B] under `weights` [B, units]; nan where it is not defined."""

    def left_out(self) -> Floats:
        """The metric [units] without each unit in turn."""


class Sums:
    """finish(sum of the rows). `sums` [units, K] is an array or a sparse matrix; `finish` makes [B] of [B, K]."""

    def __init__(self, sums: Any, finish: Callable[[Floats], Floats]) -> None:
        self.sums, self.finish = sums, finish
        self.units: int = sums.shape[0]
        self.total: Floats = np.asarray(sums.sum(axis=0), dtype=np.float64)

    def value(self, weights: Floats) -> Floats:
        return self.finish(weights @ self.sums)

    def left_out(self) -> Floats:
        return self.finish(self.total - self.sums)

    def swapped(self, other: Sums, moved: Floats) -> Floats:
        """[B]: other's metric less this one's, once `moved` [B, K], swap @ (other.sums - self.sums), has changed sides
        (`swap` [B, units] is 1 for the units that are swapped)."""
        return other.finish(other.total - moved) - self.finish(self.total + moved)


class Ratio(Sums):
    """finish(sum of numerator / sum of denominator): a mean, a mean of some items, a perplexity.

    `numerator` and `denominator` [units]; `finish` is an increasing function of an array.
    """

    def __init__(
        self, numerator: Floats, denominator: Floats, finish: Callable[[Floats], Floats] | None = None
    ) -> None:
        super().__init__(np.stack([numerator, denominator], axis=1), self._of)
        self._then = finish or (lambda ratio: ratio)

    def _of(self, sums: Floats) -> Floats:
        above, below = sums[..., 0], sums[..., 1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.asarray(self._then(np.where(below > 0, above / below, np.nan)), dtype=np.float64)


class MacroF1(Sums):
    """The mean F1 of the classes that occur among references or answers.

    `references` and `answers` are class numbers [items] below `classes`; a negative one is no answer, which costs the
    class that it should have named but is no class itself; `unit_of` is the unit of each item. The columns are right
    answers of each class, then references and answers of it together: F1 is twice the first over the second.
    """

    def __init__(self, references: NDArray[Any], answers: NDArray[Any], unit_of: NDArray[Any], classes: int) -> None:
        units = int(unit_of.max()) + 1 if len(unit_of) else 0
        right = (references == answers) & (references >= 0)
        named = [(unit_of[there], numbers[there]) for numbers in (references, answers) for there in [numbers >= 0]]
        rows = np.concatenate([unit_of[right], *(row for row, _ in named)])
        columns = np.concatenate([references[right], *(classes + number for _, number in named)])
        super().__init__(sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(units, 2 * classes)), self._of)
        self.classes = classes

    def _of(self, sums: Floats) -> Floats:
        hits, seen = sums[..., : self.classes], sums[..., self.classes :]
        there = seen > 0.5  # weights are whole numbers
        f1 = np.divide(2 * hits, seen, out=np.zeros_like(seen), where=there)
        count = np.count_nonzero(there, axis=-1)
        return np.asarray(np.where(count > 0, f1.sum(axis=-1) / np.maximum(count, 1), np.nan))

    def left_out(self) -> Floats:
        """A unit changes its own few classes only, so that this takes no [units, classes]."""
        hits, seen = self.total[: self.classes], self.total[self.classes :]
        f1 = np.divide(2 * hits, seen, out=np.zeros_like(seen), where=seen > 0.5)
        own = self.sums[:, self.classes :].tocoo()
        less_seen = seen[own.col] - own.data
        less_hits = hits[own.col] - np.asarray(self.sums[own.row, own.col]).ravel()
        without = np.divide(2 * less_hits, less_seen, out=np.zeros_like(less_seen), where=less_seen > 0.5)
        total = f1.sum() + np.bincount(own.row, without - f1[own.col], self.units)
        count = np.count_nonzero(seen > 0.5) - np.bincount(own.row, less_seen < 0.5, self.units)
        return np.asarray(np.where(count > 0.5, total / np.maximum(count, 1), math.nan))


class Difference:
    """b less a, on the same units: a Statistic itself."""

    def __init__(self, a: Statistic, b: Statistic) -> None:
        if a.units != b.units:
            raise ValueError(f"a has {a.units} units, b has {b.units}")
        self.a, self.b, self.units = a, b, a.units

    def value(self, weights: Floats) -> Floats:
        return self.b.value(weights) - self.a.value(weights)

    def left_out(self) -> Floats:
        return self.b.left_out() - self.a.left_out()
