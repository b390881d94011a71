"""The difference of two models on the same units: an interval and a test that agree.

Method. Both tests of a metric must find the difference: the one that ends the BCa interval at 0, and a permutation test
that swaps a and b at random within each unit (all ways to do so when there are few units). The first one sees the skew,
but no outlier larger than those that it has; the second one knows chance exactly if a and b are exchangeable, but takes
a lopsided difference (few large gains, many small losses) for more than it is. Right/wrong answers of independent items
get McNemar's exact test (1947) and the interval of Agresti and Min (2005, doi:10.1002/sim.1781): few discordant pairs
starve a bootstrap.

The interval leaves 0 out where the test finds a difference, and only there. BCa limits do so by themselves where their
own test decides, and are widened to 0 where the permutation test does not agree (`agreeing`). Of right/wrong answers
the limit beside 0 is Agresti's and Min's, unless the exact test says otherwise; then it is that of Clopper and Pearson
(1934) for the share of wins among the discordant items, which is McNemar's test turned round.

Trade-off. Where the true difference is 0, such an interval covers it exactly as often as the test raises no false
alarm: with few discordant items an exact test hardly ever raises one, so that no interval that agrees with it covers as
little as 95 % there (docs/statistics.md). Tango's interval (1998) does, but leaves 0 out where the test finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from halfbyte.evaluate.statistics import LEVEL, Estimate, Resampled, batches, below, resample_all
from halfbyte.evaluate.sums import Difference, Floats, Sums

_EXACT_UNITS = 13  # so many swaps are enumerated instead of drawn


@dataclass(frozen=True)
class Test:
    """A two-sided p-value and the test that it comes from. None: the difference is not defined, or in so many resamples
    is not that it has no interval."""

    p: float | None
    method: str  # "mcnemar exact" | "permutation" | "permutation exact", "... and bca" where both must agree | "none"


def paired_difference(a: Sums, b: Sums, *, seed: int, level: float = LEVEL) -> tuple[Estimate, Test]:
    """b less a on the same units: the difference with its interval, and the test of it (`paired_test`)."""
    found, test = paired_test(a, b, seed=seed, level=level)
    return agreeing(found.estimate(level), below(test.p, level)), test


def paired_test(a: Sums, b: Sums, *, seed: int, level: float = LEVEL) -> tuple[Resampled, Test]:
    """b less a, resampled, and the p that both tests stand for: the larger one of the permutation test's and of that at
    which the BCa interval ends at 0."""
    return paired_tests([(a, b)], seed=seed, level=level)[0]


def paired_tests(
    pairs: Sequence[tuple[Sums, Sums]], *, seed: int, level: float = LEVEL
) -> list[tuple[Resampled, Test]]:
    """`paired_test` of each pair. Resamples and swaps are drawn once for all pairs of as many units: for many pairs at
    a high level they are too many to be kept, and drawing them is most of the work."""
    made: dict[int, tuple[Resampled, Test]] = {}
    for units in dict.fromkeys(a.units for a, _ in pairs):
        at = [k for k, (a, _) in enumerate(pairs) if a.units == units]
        some = [pairs[k] for k in at]
        found = resample_all([Difference(a, b) for a, b in some], seed=seed, level=level)
        tests = swap_tests(some, seed=seed, level=level)
        made |= {k: (one, both(one, test)) for k, one, test in zip(at, found, tests, strict=True)}
    return [made[k] for k in range(len(pairs))]


def both(found: Resampled, swapped: Test) -> Test:
    if found.undefined:
        return Test(None, "none")
    p = found.p()
    return swapped if p is None or swapped.p is None else Test(max(p, swapped.p), f"{swapped.method} and bca")


def swap_test(a: Sums, b: Sums, *, seed: int, level: float = LEVEL) -> Test:
    """Two-sided permutation test of "a and b are exchangeable within each unit" (for means: the sign-flip test)."""
    return swap_tests([(a, b)], seed=seed, level=level)[0]


def swap_tests(pairs: Sequence[tuple[Sums, Sums]], *, seed: int, level: float = LEVEL) -> list[Test]:
    """The same of pairs of as many units each, with the same swaps."""
    units = pairs[0][0].units
    if units == 0:
        return [Test(1.0, "permutation exact") for _ in pairs]
    moved: list[list[Floats]] = [[] for _ in pairs]
    changes = [b.sums - a.sums for a, b in pairs]
    for swap in swaps(units, seed, level):
        for change, kept in zip(changes, moved, strict=True):
            kept.append(swap @ change)
    return [swapped_test(a, b, kept) for (a, b), kept in zip(pairs, moved, strict=True)]


def swapped_test(a: Sums, b: Sums, moved: Iterable[Floats]) -> Test:
    """The same by `moved` [batch, K], what each of `swaps` takes from one side to the other."""
    observed = float(a.swapped(b, np.zeros((1, len(a.total))))[0])
    if not math.isfinite(observed):
        return Test(1.0, "permutation")
    bar = abs(observed) * (1 - 1e-9)
    drawn = as_extreme = 0
    for batch in moved:
        differences = np.abs(a.swapped(b, batch))
        drawn += len(differences)
        as_extreme += int(np.count_nonzero((differences >= bar) | ~np.isfinite(differences)))
    if a.units <= _EXACT_UNITS:
        return Test(as_extreme / drawn, "permutation exact")
    return Test((as_extreme + 1) / (drawn + 1), "permutation")


def swaps(units: int, seed: int, level: float = LEVEL) -> Iterator[Floats]:
    """[batch, units], 1 for the units that are swapped: all ways to do so, or enough at random for tests at `level`."""
    if units <= _EXACT_UNITS:
        patterns = np.arange(2**units)[:, None] >> np.arange(units)[None, :]
        return iter([(patterns & 1).astype(np.float64)])
    return batches(_halves, units, (seed, 1), math.ceil(5 / (1 - level) - 1e-6))  # not the bootstrap's numbers


def _halves(generator: np.random.Generator, rows: int, units: int) -> NDArray[np.uint8]:
    return generator.integers(0, 2, size=(rows, units), dtype=np.uint8)


def agreeing(found: Estimate, detected: bool) -> Estimate:
    """The interval with 0 in it, unless a difference was detected."""
    if detected or not found.leaves_out_0:
        return found
    assert found.low is not None and found.high is not None
    return replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))


def right_wrong_test(wins: int, losses: int) -> Test:
    """McNemar's exact test: `wins` only b got right, `losses` only a."""
    return Test(float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0, "mcnemar exact")


def right_wrong_difference(wins: int, losses: int, n: int, *, level: float = LEVEL) -> tuple[Estimate, Test]:
    """Shares of right answers, b less a, on `n` independent items: `wins` only b got right, `losses` only a."""
    test = right_wrong_test(wins, losses)
    if n == 0:
        return Estimate(None, None, None, "none"), test
    low = _lower_limit(wins, losses, n, level)
    return Estimate((wins - losses) / n, low, -_lower_limit(losses, wins, n, level), "agresti-min"), test


def _lower_limit(wins: int, losses: int, n: int, level: float) -> float:
    """Agresti's and Min's, or, where that lies on the wrong side of 0 by McNemar's exact test, the test's own."""
    spread = math.sqrt(wins + losses + 1 - (wins - losses) ** 2 / (n + 2))
    found = max(-1.0, (wins - losses - float(special.ndtri((1 + level) / 2)) * spread) / (n + 2))
    if wins <= losses:  # both are below 0
        return found
    exact = (2 * float(special.betaincinv(wins, losses + 1, (1 - level) / 2)) - 1) * (wins + losses) / n
    return found if (found > 0) == (exact > 0) else exact


def verdict(found: Estimate, detected: bool, better: str) -> str:
    """In words, b against a: the test says whether there is a difference, its value which way.

    Without an interval nothing is called detectable.
    """
    if not detected or found.value is None or found.low is None or found.value == 0:
        return "no detectable difference"
    return "better" if (found.value > 0) == (better == "higher") else "worse"
