"""Intervals that hold for every metric, not only for means: the bootstrap over units (see `sums`).

Method. The bootstrap resamples units by weights, so that a mean, a ratio of sums (perplexity) and macro F1 need one
loop and a batch of resamples is one product of matrices. Groups are resampled whole (the cluster bootstrap). Limits are
BCa (Efron 1987, doi:10.1080/01621459.1987.10478410): corrected for bias and, by leaving out each unit once, for skew;
the tails are those of Student's t, as the bootstrap of few units is too narrow (Hesterberg 2014, arXiv:1411.5279).
Shares of independent items get Wilson's interval (1927).

A limit is one of the values drawn, never one between two of them, so that it lies beyond 0 exactly where `Resampled.p`
is below 1 - level: interval and test can't contradict each other.

Trade-off. 2,000 to 10,000 resamples, fewer for large sets, more for a high level; the limits move by a few per cent of
the width with the seed, and everything is seeded. `scipy.stats.bootstrap` agrees (a test compares them) and was
rejected as the engine: it copies the items of each resample and of each left-out unit, knows neither groups nor cheap
ratios, and answers nan where it is degenerate.

What the intervals hold is measured (benchmarks/coverage.py, docs/statistics.md): below about 100 units, and where a few
units make up most of a metric's spread (`Estimate.doubt`), they cover less than they say; callers warn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from halfbyte.evaluate.sums import Floats, Statistic

LEVEL = 0.95
ENOUGH_UNITS = 100  # fewer: warn
SURE_UNITS = 300  # fewer do not tell an exponential tail, where intervals hold, from a lognormal one, where they don't
_WORK = 20_000_000  # drawn weights of one bootstrap
_KEPT = 2 * _WORK  # so many are kept for the next metric of the same units
_IN_TAIL = 25  # resamples beyond each limit, at least; of one comparison there are 50
_BATCH = 1_000_000  # drawn weights at once
_PRODUCT = 100_000  # weights of one product: they stay in the cache, and no second thread is called for so little

Doubt = Literal["", "uneven", "lopsided"]  # see `Resampled.doubt`
Draw = Callable[[np.random.Generator, int, int], NDArray[np.uint8]]  # (generator, rows, units) -> [rows, units]


def below(p: float | None, level: float) -> bool:
    """Whether `p` is small enough at `level`: 0.05 itself is not at 0.95, though 1 - 0.95 is larger in floats. None,
    where there is no test, never is."""
    return p is not None and p < round(1 - level, 12)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval. None: not defined (no item), or no interval (one unit)."""

    value: float | None
    low: float | None
    high: float | None
    method: str  # "bca" | "percentile" | "wilson" | "agresti-min" | "no spread" | "none"
    doubt: Doubt = ""

    @property
    def leaves_out_0(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Resampled:
    """A statistic, and what it was in the resamples: enough for its interval at any level, and for a test of 0."""

    value: float | None
    units: int
    drawn: Floats  # those that are defined, in order
    share: float  # of all resamples that are
    acceleration: float = 0.0  # a sixth of the skew of the units' influence, over the root of their number
    effective: float = math.inf  # units that make up the spread, see `effective_units`
    error: float | None = None  # the standard error, by leaving out each unit in turn (the jackknife, Tukey 1958)

    @property
    def undefined(self) -> bool:
        """Whether there is no value, or, of two units or more, none in so many resamples that nothing can be said."""
        return self.value is None or (self.units >= 2 and self.share < LEVEL)

    @property
    def flat(self) -> bool:
        """Every resample gives the same: such a sample does not show how uncertain it is."""
        return len(self.drawn) == 0 or bool(self.drawn[-1] - self.drawn[0] <= 1e-12 * abs(self.value or 0.0))

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The value and its BCa interval; plain percentiles where the corrections are not defined."""
        if self.value is None or self.units < 2 or self.share < level:  # e.g. few answered: many a resample has none
            return Estimate(self.value, None, None, "none")
        if self.flat:
            return Estimate(self.value, self.value, self.value, "no spread")
        far = float(special.stdtrit(self.units - 1, (1 + level) / 2)) * math.sqrt(self.units / (self.units - 1))
        low, high = self._rank(far, 1), self._rank(far, -1)
        method = "percentile" if self._bias is None else "bca"
        return Estimate(self.value, float(self.drawn[low]), float(self.drawn[len(self.drawn) - 1 - high]), method,
                        self.doubt)  # fmt: skip

    @property
    def doubt(self) -> Doubt:
        """Whether the interval can't be taken at its word, since few units make up most of the spread ("lopsided"): its
        kurtosis is larger than that of most exponential samples, or lies far above what its skew explains, on the line
        of the gamma distributions (from the normal one, kurtosis 3, to the exponential, 9). "uneven": as half of the
        exponential samples are, and nearly all lognormal ones, of so few units that nothing tells which it is. The
        bounds are set by simulation, see docs/statistics.md."""
        kurtosis, skew = self.units / self.effective, 6 * self.acceleration * math.sqrt(self.units)
        if kurtosis > 6.6 * self.units**0.2 or kurtosis > 3 + 1.5 * skew**2 + 5:
            return "lopsided"
        return "uneven" if kurtosis > 6 and self.units < SURE_UNITS else ""

    def p(self) -> float | None:
        """Two-sided p of "the true value is 0": 1 less the level whose interval ends there. None: no interval."""
        if self.value is None or self.units < 2 or self.share < LEVEL or self.flat:
            return None
        if self.value == 0:
            return 1.0
        sign = 1 if self.value > 0 else -1
        beyond = np.count_nonzero(self.drawn <= 0) if sign > 0 else np.count_nonzero(self.drawn >= 0)
        at = float(special.ndtri((beyond + 0.5) / (len(self.drawn) + 1)))
        far = -at
        if self._bias is not None:
            bias, acceleration = sign * self._bias, sign * self.acceleration
            bend = 1 + acceleration * (at - bias)
            far = bias - (at - bias) / bend if bend > 0 else math.copysign(math.inf, bias - at)
        freedom = self.units - 1
        return min(1.0, 2 * float(special.stdtr(freedom, -far * math.sqrt(freedom / self.units))))

    def _rank(self, far: float, sign: int) -> int:
        """The place of the limit `far` standard normal deviations below the value (`sign` -1: above it, counted from
        the largest) among the values drawn."""
        at = -far
        if self._bias is not None:
            bias, acceleration = sign * self._bias, sign * self.acceleration
            bend = 1 - acceleration * (bias - far)
            at = bias + (bias - far) / bend if bend > 0 else -math.inf
        rank = math.ceil(float(special.ndtr(at)) * (len(self.drawn) + 1) - 0.5) - 1
        return min(max(rank, 0), len(self.drawn) - 1)

    @cached_property
    def _bias(self) -> float | None:
        """By how many standard deviations the median drawn lies below the value; None: all of them do, or none."""
        value = self.value or 0.0
        below, upto = np.searchsorted(self.drawn, value, "left"), np.searchsorted(self.drawn, value, "right")
        share = float(below + upto) / 2 / len(self.drawn)
        return float(special.ndtri(share)) if 0 < share < 1 else None


def resample(statistic: Statistic, *, seed: int, level: float = LEVEL) -> Resampled:
    """Resample the units, often enough for intervals at `level` or below it."""
    return resample_all([statistic], seed=seed, level=level)[0]


def resample_all(statistics: Sequence[Statistic], *, seed: int, level: float = LEVEL) -> list[Resampled]:
    """The same for several statistics of as many units: weights are drawn once, and all see the same."""
    units = statistics[0].units
    if units < 2:
        return [resampled(one, np.zeros(0)) for one in statistics]
    drawn: list[list[Floats]] = [[] for _ in statistics]
    for weights in resamples(units, seed, level):
        for one, values in zip(statistics, drawn, strict=True):
            values.append(one.value(weights))
    return [resampled(one, np.concatenate(values)) for one, values in zip(statistics, drawn, strict=True)]


def resampled(statistic: Statistic, drawn: Floats) -> Resampled:
    """`drawn` is what the statistic was in the resamples."""
    units = statistic.units
    value = float(statistic.value(np.ones((1, units)))[0]) if units else math.nan
    if units < 2 or not math.isfinite(value):
        return Resampled(value if math.isfinite(value) else None, units, np.zeros(0), 0.0)
    defined, left_out = np.sort(drawn[np.isfinite(drawn)]), statistic.left_out()
    known = left_out[np.isfinite(left_out)]
    spread = known.mean() - known if len(known) else np.zeros(1)
    error = math.sqrt((units - 1) * float(np.mean(spread**2))) if len(known) == units else None
    return Resampled(value, units, defined, len(defined) / len(drawn), _acceleration(spread), effective_units(spread),
                     error)  # fmt: skip


def estimate(statistic: Statistic, *, seed: int, level: float = LEVEL) -> Estimate:
    """The statistic and its BCa interval.

    Where every resample gives the same value, that value is both limits and the method says "no spread".
    """
    return resample(statistic, seed=seed, level=level).estimate(level)


def resamples(units: int, seed: int, level: float = LEVEL) -> Iterator[Floats]:
    """Weights [batch, units]: how often each unit is drawn when `units` are drawn with replacement."""
    least = math.ceil(_IN_TAIL / ((1 - level) / 2) - 1e-6) - 1
    return batches(_with_replacement, units, (seed,), least)


def _with_replacement(generator: np.random.Generator, rows: int, units: int) -> NDArray[np.uint8]:
    counts = np.empty((rows, units), dtype=np.uint8)  # one of many in 255 of so many draws: never seen
    for row, drawn in zip(counts, generator.integers(0, units, size=(rows, units)), strict=True):
        row[:] = np.bincount(drawn, minlength=units)
    return counts


def batches(draw: Draw, units: int, seed: tuple[int, ...], least: int) -> Iterator[Floats]:
    """What `draw` draws, `least` rows or more, in batches [batch, units]; the same again for the same seed."""
    rows = max(int(np.clip(_WORK // units, 1999, 9999)), least)
    source = _kept(draw, units, seed, rows) if rows * units <= _KEPT else _drawn(draw, units, seed, rows)
    size = max(1, _PRODUCT // units)
    return (batch[at : at + size].astype(np.float64) for batch in source for at in range(0, len(batch), size))


def _drawn(draw: Draw, units: int, seed: tuple[int, ...], rows: int) -> Iterator[NDArray[np.uint8]]:
    generator, size = np.random.default_rng(seed), max(1, _BATCH // units)
    for first in range(0, rows, size):
        yield draw(generator, min(size, rows - first), units)


@lru_cache(maxsize=2)  # weights and swaps
def _kept(draw: Draw, units: int, seed: tuple[int, ...], rows: int) -> tuple[NDArray[np.uint8], ...]:
    return tuple(_drawn(draw, units, seed, rows))


def _acceleration(spread: Floats) -> float:
    """The skew of the units' influence [units], over 6 times the root of their number; 0 where nothing varies."""
    scale = float((spread**2).sum() ** 1.5)
    return float((spread**3).sum() / (6 * scale)) if scale > 0 else 0.0


def effective_units(spread: Floats) -> float:
    """How many units make up the sum of squares of `spread` [units]: all of them where all are equal, one where one is
    all there is. It is their number over the kurtosis (the participation ratio)."""
    most = float(np.abs(spread).max(initial=0.0))
    if most <= 0:
        return math.inf
    squares = (spread / most) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def share(hits: int, n: int, *, level: float = LEVEL) -> Estimate:
    """A share of `n` independent items with Wilson's interval."""
    if n == 0:
        return Estimate(None, None, None, "none")
    limits = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    return Estimate(hits / n, float(limits.low), float(limits.high), "wilson")
