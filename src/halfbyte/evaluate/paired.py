"""One metric on the same items of two results: the test, the interval, and what they could have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from halfbyte.evaluate.differences import (
    Test,
    agreeing,
    paired_tests,
    right_wrong_difference,
    right_wrong_test,
    verdict,
)
from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.power import (
    POWER,
    detectable,
    right_wrong_detectable,
    right_wrong_needed,
    units_needed,
)
from halfbyte.evaluate.results import Prediction, table_of, units_of
from halfbyte.evaluate.several import Adjusted
from halfbyte.evaluate.statistics import LEVEL, Estimate, Resampled
from halfbyte.evaluate.sums import Floats


def paired_all(
    asked: Sequence[tuple[Metric, Sequence[Prediction], Sequence[Prediction]]], *, seed: int, together: int = 1
) -> list[Paired]:
    """A `Paired` for each (metric, a, b); all are resampled and swapped alike, with numbers that are drawn once.

    `together` is the number of comparisons that are corrected together: so small a p, and so high a level, must be
    possible.
    """
    made = [Paired(metric, a, b, seed) for metric, a, b in asked]
    drawn = [one for one in made if not one.right_wrong]
    level = 1 - (1 - LEVEL) / together
    tests = paired_tests([(one.first, one.second) for one in drawn], seed=seed, level=level)
    for one, (resampled, test) in zip(drawn, tests, strict=True):
        one.take(resampled, test)
    return made


class Paired:
    """`metric` of b against a; `a` and `b` are the predictions of the same items in the same order (see `paired_all`).

    Right/wrong answers of independent items get McNemar's exact test and the interval of Agresti and Min; everything
    else the BCa interval and the permutation test, which resample and swap the units (a group whole).
    """

    test: Test

    def __init__(self, metric: Metric, a: Sequence[Prediction], b: Sequence[Prediction], seed: int) -> None:
        self.metric, self.n, self.seed = metric, len(a), seed
        before, after, unit_of = table_of(a), table_of(b), units_of(a)
        self.first, self.second = metric.statistics((before, after), unit_of)
        self.units = self.first.units
        counted = (metric.denominator(before) > 0) & (metric.denominator(after) > 0)
        change = np.asarray(after[metric.item] - before[metric.item], dtype=np.float64)[counted]
        gain: Floats = change if metric.item_better == "higher" else -change
        self.wins, self.losses = int(np.count_nonzero(gain > 0)), int(np.count_nonzero(gain < 0))
        self.ties = len(gain) - self.wins - self.losses
        self.counted = (metric.n(before), metric.n(after))
        whole = self.counted == (self.n, self.n)
        self.test: Test
        self._resampled: Resampled | None = None
        self.right_wrong = metric.share and whole and self.units == self.n
        if self.right_wrong:
            self.test = right_wrong_test(*self._up_and_down)

    def take(self, resampled: Resampled, test: Test) -> None:
        """What resampling and swapping found, where answers are not right or wrong."""
        self._resampled, self.test = resampled, test

    @property
    def _up_and_down(self) -> tuple[int, int]:
        """Items on which only b's share counts, and those on which only a's does."""
        return (self.wins, self.losses) if self.metric.better == "higher" else (self.losses, self.wins)

    def difference(self, adjusted: Adjusted) -> Estimate:
        """The interval of the level that goes with the adjusted p: it leaves 0 out where that finds a difference."""
        if self._resampled is None:
            found, _ = right_wrong_difference(*self._up_and_down, self.n, level=adjusted.level)
        else:
            found = self._resampled.estimate(adjusted.level)
        return agreeing(found, adjusted.detected)

    def result(self, adjusted: Adjusted, detect: float | None) -> tuple[dict[str, Any], Estimate]:
        """What comparison.json holds of this metric, and the difference behind it."""
        found, every = self.difference(adjusted), np.ones((1, self.units))
        tested = found.method != "none" or self.units < 2  # a higher level may have no interval where 95 % has one
        difference = {
            "value": found.value, "low": found.low, "high": found.high, "p": self.test.p if tested else None,
            "p_adjusted": adjusted.p if tested else None,
            "level": adjusted.level, "method": found.method, "test": self.test.method,
        }  # fmt: skip
        made: dict[str, Any] = {
            "n": self.n,
            "units": self.units,
            "a_value": float(self.first.value(every)[0]),
            "b_value": float(self.second.value(every)[0]),
            "difference": difference,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "verdict": verdict(found, adjusted.detected, self.metric.better),
            "detectable": self._detectable(adjusted.level),
        }
        if detect is not None:
            made["needed"] = {"difference": detect, "items": self._needed(detect, adjusted.level)}
        return made, found

    def _detectable(self, level: float) -> dict[str, Any]:
        """The smallest difference that these items detect; see `power`."""
        if self._resampled is None:
            value = right_wrong_detectable(self.n, (self.wins + self.losses) / self.n, level=level)
            return {"value": value, "power": POWER, "level": level, "method": "mcnemar exact"}
        error = self._resampled.error
        value = detectable(error, self.units, level=level) if error else None
        return {"value": value, "power": POWER, "level": level, "method": "standard error"}

    def _needed(self, difference: float, level: float) -> int | None:
        """Items that detect `difference`; groups as large as these are. None: unknown, or more than 10^9."""
        if self._resampled is None:
            return right_wrong_needed((self.wins + self.losses) / self.n, difference, level=level)
        error = self._resampled.error
        units = units_needed(error, self.units, difference, level=level) if error else None
        return None if units is None else math.ceil(units * self.n / self.units)
