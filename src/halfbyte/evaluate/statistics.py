"""Intervals and paired tests that hold for every metric, not only for means.

Method. A metric is a `Statistic`: a function of how often each unit counts. A unit is an item, or a group of items that
are not independent (editions of one LEGO set); groups are resampled whole (the cluster bootstrap).
- Interval: the bootstrap resamples units by weights, so that a mean, a ratio of sums (perplexity) and macro F1 need one
  loop and a ratio costs one matrix product a batch. Limits are BCa (Efron 1987, doi:10.1080/01621459.1987.10478410):
  corrected for bias and, by leaving out each unit once, for skew; the tails are those of Student's t, as the bootstrap
  of few units is too narrow (Hesterberg 2014, arXiv:1411.5279). Shares of independent items get
  Wilson's (1927).
- Difference of b and a on the same items: the same bootstrap on the difference, and two tests that must agree: the one
  that ends the BCa interval at 0, and a permutation test that swaps a and b at random within each unit (all ways to do
  so when there are few units). Right/wrong answers of independent items get
  McNemar's exact test and the interval of Agresti and Min (2005, doi:10.1002/sim.1781): few discordant pairs starve a
  bootstrap.

Trade-off. 2,000 to 10,000 resamples, fewer for large sets, more for a high level; the limits move by a few per cent of
the width with the seed, and everything is seeded. `scipy.stats.bootstrap` agrees (a test compares them) and was
rejected as the engine: it copies the items of each resample and of each left-out unit, knows neither groups nor cheap
ratios, and answers nan where it is degenerate.

What the intervals hold is measured (benchmarks/coverage.py, docs/statistics.md): below about 100 units, and where a few
units make up most of a mean (`Estimate.skew` above `MOST_SKEW`), they cover less than they say; callers warn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
LEVEL = 0.95
ENOUGH_UNITS = 100  # fewer: warn
MOST_SKEW = (
    0.2  # of the units, over the root of their number: Cochran's rule, n > 25 skew^2 (1977, Sampling Techniques)
)
_WORK = 20_000_000  # drawn weights of one bootstrap
_IN_TAIL = 50  # resamples beyond each limit, at least
_BATCH = 1_000_000  # drawn weights at once
_EXACT_UNITS = 13  # so many swaps are enumerated instead of drawn


class Statistic(Protocol):
    """A metric of `units` units as a function of their weights."""

    units: int

    def value(self, weights: Floats) -> Floats:
        """The metric [B] under `weights` [B, units]; nan where it is not defined."""

    def left_out(self) -> Floats:
        """The metric [units] without each unit in turn."""

    def swapped(self, other: Any, swap: Floats) -> Floats:
        """[B]: other's metric less this one's, once the units where `swap` [B, units] is 1 have changed sides."""


class Ratio:
    """finish(sum of numerator / sum of denominator): a mean, a mean of some items, a perplexity.

    `numerator` and `denominator` are per unit; `finish` is an increasing function of an array.
    """

    def __init__(self, numerator: Floats, denominator: Floats, finish: Any = None) -> None:
        self.numerator, self.denominator = numerator, denominator
        self.finish = finish or (lambda ratio: ratio)
        self.units = len(numerator)

    def _of(self, above: Floats, below: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.asarray(self.finish(np.where(below > 0, above / below, np.nan)), dtype=np.float64)

    def value(self, weights: Floats) -> Floats:
        return self._of(weights @ self.numerator, weights @ self.denominator)

    def left_out(self) -> Floats:
        return self._of(self.numerator.sum() - self.numerator, self.denominator.sum() - self.denominator)

    def swapped(self, other: Ratio, swap: Floats) -> Floats:
        above = swap @ (other.numerator - self.numerator)
        below = swap @ (other.denominator - self.denominator)
        mine = self._of(self.numerator.sum() + above, self.denominator.sum() + below)
        return other._of(other.numerator.sum() - above, other.denominator.sum() - below) - mine


class MacroF1:
    """The mean F1 of the classes that occur among references or answers.

    `references` and `answers` are class numbers [items] below `classes`; `unit_of` is the unit of each item. `names`
    [classes], sorted, are what two statistics that number their classes apart are brought together by; the class ""
    is no answer, which costs the class that it should have named but is none itself.
    """

    def __init__(
        self, references: NDArray[Any], answers: NDArray[Any], unit_of: NDArray[Any], classes: int,
        names: NDArray[Any] | None = None,
    ) -> None:  # fmt: skip
        self.references, self.answers, self.unit_of, self.classes = references, answers, unit_of, classes
        self.units = int(unit_of.max()) + 1 if len(unit_of) else 0
        self.names = np.arange(classes).astype(str) if names is None else names
        self._counted = self.names != ""

    def _f1(self, hits: Floats, seen: Floats) -> float:
        """`hits` [classes] right answers; `seen` [classes] references and answers together: F1 = 2 hits / seen."""
        there = self._counted & (seen > 0.5)  # weights are whole numbers
        return float(np.mean(2 * hits[there] / seen[there])) if there.any() else math.nan

    def _counts(self, weight: Floats, answers: NDArray[Any]) -> tuple[Floats, Floats]:
        right = self.references == answers
        hits = np.bincount(self.references[right], weight[right], self.classes)
        seen = np.bincount(self.references, weight, self.classes) + np.bincount(answers, weight, self.classes)
        return hits.astype(np.float64), seen.astype(np.float64)

    def value(self, weights: Floats) -> Floats:
        return np.array([self._f1(*self._counts(row[self.unit_of], self.answers)) for row in weights])

    def left_out(self) -> Floats:
        hits, seen = self._counts(np.ones(len(self.references)), self.answers)
        order = np.argsort(self.unit_of, kind="stable")
        ends = np.cumsum(np.bincount(self.unit_of, minlength=self.units))
        values = []
        for items in np.split(order, ends[:-1]):
            less_hits, less_seen = hits.copy(), seen.copy()
            for reference, answer in zip(self.references[items], self.answers[items], strict=True):
                less_hits[reference] -= reference == answer
                less_seen[reference] -= 1
                less_seen[answer] -= 1
            values.append(self._f1(less_hits, less_seen))
        return np.array(values)

    def _renumbered(self, names: NDArray[Any]) -> MacroF1:
        """The same by the places of its classes in `names`, which holds them all."""
        place = np.searchsorted(names, self.names)
        return MacroF1(place[self.references], place[self.answers], self.unit_of, len(names), names)

    def swapped(self, other: MacroF1, swap: Floats) -> Floats:
        if not np.array_equal(self.names, other.names):
            names = np.union1d(self.names, other.names)
            return self._renumbered(names).swapped(other._renumbered(names), swap)
        ones, values = np.ones(len(self.references)), []
        for row in swap:
            change = row[self.unit_of] > 0.5
            mine = np.where(change, other.answers, self.answers)
            theirs = np.where(change, self.answers, other.answers)
            values.append(self._f1(*self._counts(ones, theirs)) - self._f1(*self._counts(ones, mine)))
        return np.array(values)


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

    def swapped(self, other: Any, swap: Floats) -> Floats:
        raise NotImplementedError("differences are not swapped with each other")


@dataclass(frozen=True)
class Estimate:
    """A value and its interval. None: not defined (no item), or no interval (one unit)."""

    value: float | None
    low: float | None
    high: float | None
    method: str  # "bca" | "percentile" | "wilson" | "agresti-min" | "no spread" | "none"
    skew: float = 0.0  # of what the units contribute, without its sign, over the root of their number

    @property
    def lopsided(self) -> bool:
        """Whether few units make up so much of the value that its interval can't be trusted."""
        return self.skew > MOST_SKEW


@dataclass(frozen=True)
class Test:
    """A two-sided p-value and the test that it comes from."""

    p: float
    method: str  # "mcnemar exact" | "permutation" | "permutation exact", "... and bca" where both must agree


@dataclass(frozen=True)
class Resampled:
    """A statistic, and what it was in the resamples: enough for its interval at any level, and for a test of 0."""

    value: float | None
    units: int
    drawn: Floats  # those that are defined
    share: float  # of all resamples that are
    acceleration: float
    error: float | None = None  # the standard error, by leaving out each unit in turn (the jackknife, Tukey 1958)

    @property
    def flat(self) -> bool:
        """Every resample gives the same: such a sample does not show how uncertain it is."""
        return len(self.drawn) == 0 or bool(np.ptp(self.drawn) <= 1e-12 * abs(self.value or 0.0))

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The value and its BCa interval; plain percentiles where the corrections are not defined."""
        if self.value is None or self.units < 2 or self.share < level:  # e.g. few answered: many a resample has none
            return Estimate(self.value, None, None, "none")
        if self.flat:
            return Estimate(self.value, self.value, self.value, "no spread")
        far = math.sqrt(self.units / (self.units - 1)) * float(stats.t.ppf((1 + level) / 2, self.units - 1))
        at, method = np.array([-far, far]), "percentile"
        if self._corrected:
            shifted = self._bias + at
            if np.all(self.acceleration * shifted < 1):
                at, method = self._bias + shifted / (1 - self.acceleration * shifted), "bca"
        low, high = np.quantile(self.drawn, stats.norm.cdf(at))
        return Estimate(self.value, float(low), float(high), method, skew=6 * abs(self.acceleration))

    def p(self) -> float | None:
        """Two-sided p of "the true value is 0": 1 less the level whose interval ends there. None: no interval."""
        if self.value is None or self.units < 2 or self.share < LEVEL or self.flat:
            return None
        at = float(stats.norm.ppf((self._below(0.0) * len(self.drawn) + 0.5) / (len(self.drawn) + 1)))
        if self._corrected and 1 + self.acceleration * (at - self._bias) > 0:
            at = (at - self._bias) / (1 + self.acceleration * (at - self._bias)) - self._bias
        return float(2 * stats.t.sf(abs(at) * math.sqrt((self.units - 1) / self.units), self.units - 1))

    @property
    def _corrected(self) -> bool:
        return 0 < self._below(self.value or 0.0) < 1

    @property
    def _bias(self) -> float:
        return float(stats.norm.ppf(self._below(self.value or 0.0)))

    def _below(self, value: float) -> float:
        """The share of the resamples below `value`; half of those that equal it."""
        below, equal = np.count_nonzero(self.drawn < value), np.count_nonzero(self.drawn == value)
        return float(below + 0.5 * equal) / len(self.drawn)


def resample(statistic: Statistic, *, seed: int, level: float = LEVEL) -> Resampled:
    """Resample the units, often enough for intervals at `level` or below it."""
    units = statistic.units
    value = float(statistic.value(np.ones((1, units)))[0]) if units else math.nan
    if units < 2 or not math.isfinite(value):
        return Resampled(value if math.isfinite(value) else None, units, np.zeros(0), 0.0, 0.0)
    least = math.ceil(_IN_TAIL / ((1 - level) / 2) - 1e-6) - 1
    drawn = np.concatenate([statistic.value(weights) for weights in _resamples(units, seed, least)])
    defined, left_out = drawn[np.isfinite(drawn)], statistic.left_out()
    known = left_out[np.isfinite(left_out)]
    error = math.sqrt((units - 1) * float(np.var(known))) if len(known) == units else None
    return Resampled(value, units, defined, len(defined) / len(drawn), _acceleration(known), error)


def estimate(statistic: Statistic, *, seed: int, level: float = LEVEL) -> Estimate:
    """The statistic and its BCa interval.

    Where every resample gives the same value, that value is both limits and the method says "no spread".
    """
    return resample(statistic, seed=seed, level=level).estimate(level)


def _resamples(units: int, seed: int, least: int) -> Iterator[Floats]:
    """Weights [batch, units]: how often each unit is drawn when `units` are drawn with replacement."""
    generator = np.random.default_rng(seed)
    left = max(int(np.clip(_WORK // units, 1999, 9999)), least)
    while left > 0:
        rows = min(left, max(1, _BATCH // units))
        drawn = generator.integers(0, units, size=(rows, units))
        drawn += units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        left -= rows


def _acceleration(left_out: Floats) -> float:
    """The skew of the units' influence, over 6 times the root of their number; 0 where nothing varies."""
    spread = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    scale = float((spread**2).sum() ** 1.5)
    return float((spread**3).sum() / (6 * scale)) if scale > 0 else 0.0


def share(hits: int, n: int, *, level: float = LEVEL) -> Estimate:
    """A share of `n` independent items with Wilson's interval."""
    if n == 0:
        return Estimate(None, None, None, "none")
    limits = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    return Estimate(hits / n, float(limits.low), float(limits.high), "wilson")


def paired_difference(a: Statistic, b: Statistic, *, seed: int, level: float = LEVEL) -> tuple[Estimate, Test]:
    """b less a on the same units: the difference with its BCa interval, and the test of it (`paired_test`)."""
    resampled, test = paired_test(a, b, seed=seed, level=level)
    return resampled.estimate(level), test


def paired_test(a: Statistic, b: Statistic, *, seed: int, level: float = LEVEL) -> tuple[Resampled, Test]:
    """b less a, resampled, and the p that both tests stand for: the larger one of the permutation test's and of that at
    which the BCa interval ends at 0. The first one knows chance exactly if a and b are exchangeable, but takes a
    lopsided difference for more than it is; the second one sees the skew, but no outlier larger than those it has."""
    resampled = resample(Difference(a, b), seed=seed, level=level)
    swapped, p = swap_test(a, b, seed=seed, least=math.ceil(5 / (1 - level) - 1e-6)), resampled.p()
    return resampled, swapped if p is None else Test(max(p, swapped.p), f"{swapped.method} and bca")


def swap_test(a: Statistic, b: Statistic, *, seed: int, least: int = 0) -> Test:
    """Two-sided permutation test of "a and b are exchangeable within each unit" (for means: the sign-flip test), with
    `least` swaps or more where they are drawn."""
    units = a.units
    exact = units <= _EXACT_UNITS
    if units == 0:
        return Test(1.0, "permutation exact")
    observed = float(a.swapped(b, np.zeros((1, units)))[0])
    if not math.isfinite(observed):
        return Test(1.0, "permutation")
    bar = abs(observed) * (1 - 1e-9)
    drawn = as_extreme = 0
    for swap in _all_swaps(units) if exact else _some_swaps(units, seed, least):
        differences = np.abs(a.swapped(b, swap))
        drawn += len(differences)
        as_extreme += int(np.count_nonzero((differences >= bar) | ~np.isfinite(differences)))
    if exact:
        return Test(as_extreme / drawn, "permutation exact")
    return Test((as_extreme + 1) / (drawn + 1), "permutation")


def _all_swaps(units: int) -> Iterator[Floats]:
    patterns = np.arange(2**units)[:, None] >> np.arange(units)[None, :]
    yield (patterns & 1).astype(np.float64)


def _some_swaps(units: int, seed: int, least: int) -> Iterator[Floats]:
    generator = np.random.default_rng([seed, 1])  # not the bootstrap's numbers
    left = max(int(np.clip(_WORK // units, 1999, 9999)), least)
    while left > 0:
        rows = min(left, max(1, _BATCH // units))
        yield generator.integers(0, 2, size=(rows, units), dtype=np.uint8).astype(np.float64)
        left -= rows


def right_wrong_test(wins: int, losses: int) -> Test:
    """McNemar's exact test (1947): `wins` only b got right, `losses` only a."""
    return Test(float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0, "mcnemar exact")


def right_wrong_difference(wins: int, losses: int, n: int, *, level: float = LEVEL) -> tuple[Estimate, Test]:
    """Shares of right answers, b less a, on `n` independent items: `wins` only b got right, `losses` only a."""
    test = right_wrong_test(wins, losses)
    if n == 0:
        return Estimate(None, None, None, "none"), test
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (wins - losses) / (n + 2)
    half = z * math.sqrt(wins + losses + 1 - (wins - losses) ** 2 / (n + 2)) / (n + 2)
    found = Estimate((wins - losses) / n, max(-1.0, centre - half), min(1.0, centre + half), "agresti-min")
    return found, test


def verdict(found: Estimate, p: float, better: str, *, level: float = LEVEL) -> str:
    """In words, b against a: p (adjusted, where several are compared) decides, the difference says which way.

    Without an interval nothing is called detectable.
    """
    if found.value is None or found.low is None or p >= 1 - level or found.value == 0:
        return "no detectable difference"
    return "better" if (found.value > 0) == (better == "higher") else "worse"
