from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from halfbyte.evaluate import statistics
from halfbyte.evaluate.differences import (
    agreeing,
    paired_difference,
    paired_test,
    paired_tests,
    right_wrong_difference,
    swap_test,
    verdict,
)
from halfbyte.evaluate.sums import MacroF1, Ratio


def mean(values: object) -> Ratio:
    array = np.asarray(values, dtype=np.float64)
    return Ratio(array, np.ones(len(array)))


def macro_f1(references: list[int], answers: list[int], classes: int = 3) -> MacroF1:
    return MacroF1(np.array(references), np.array(answers), np.arange(len(references)), classes)


def test_the_permutation_test_agrees_with_scipy() -> None:
    generator = np.random.default_rng(5)
    for units in (9, 60):  # enumerated; drawn
        a, b = generator.normal(size=(2, units))
        b += 0.3
        theirs = stats.permutation_test(
            (b - a,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True, rng=generator
        ).pvalue
        test = swap_test(mean(a), mean(b), seed=0)
        assert test.p == pytest.approx(theirs, abs=0.02 if units > 13 else 1e-12)
        assert test.method == ("permutation" if units > 13 else "permutation exact")


def test_right_wrong_intervals_cover_and_false_alarms_are_rare() -> None:
    generator = np.random.default_rng(2)
    covered = alarms = 0
    for _ in range(1000):
        wins, losses, _ = generator.multinomial(150, [0.1, 0.1, 0.8])
        found, test = right_wrong_difference(int(wins), int(losses), 150)
        covered += found.low <= 0 <= found.high
        alarms += verdict(found, test.p < 0.05, "higher") != "no detectable difference"
        assert found.leaves_out_0 == (test.p < 0.05)
    assert covered == 1000 - alarms and alarms <= 60


def test_false_alarms_of_paired_means_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_WORK", 1)
    generator = np.random.default_rng(4)
    alarms = 0
    for rep in range(200):
        a, b = generator.exponential(size=(2, 100))
        found, test = paired_difference(mean(a), mean(b), seed=rep)
        alarms += verdict(found, test.p < 0.05, "lower") != "no detectable difference"
    assert alarms <= 0.09 * 200


def test_identical_scores_are_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found, test = paired_difference(mean(values), mean(values), seed=0)
    assert (found.value, found.low, found.high, test.p) == (0, 0, 0, 1)
    assert verdict(found, test.p < 0.05, "lower") == "no detectable difference"


def test_right_wrong_by_hand() -> None:
    found, test = right_wrong_difference(9, 1, 50)
    assert test.p == pytest.approx(2 * sum(math.comb(10, k) for k in (9, 10)) / 2**10)
    centre = 8 / 52
    half = 1.959963985 * math.sqrt(11 - 64 / 52) / 52
    assert (found.value, found.low, found.high) == pytest.approx((8 / 50, centre - half, centre + half))
    none, test = right_wrong_difference(0, 0, 50)
    assert none.low < 0 < none.high and test.p == 1
    all_won, test = right_wrong_difference(50, 0, 50)
    assert all_won.high == 1 and test.p == pytest.approx(2 / 2**50)


@pytest.mark.parametrize(
    ("value", "low", "detected", "lower", "higher"),
    [
        (0.2, 0.1, True, "worse", "better"),
        (-0.2, -0.4, True, "better", "worse"),
        (0.2, 0.1, False, "no detectable difference", "no detectable difference"),
        (0.2, None, True, "no detectable difference", "no detectable difference"),
        (None, None, True, "no detectable difference", "no detectable difference"),
    ],
)
def test_verdicts(value: float | None, low: float | None, detected: bool, lower: str, higher: str) -> None:
    found = statistics.Estimate(value, low, None if low is None else 0.4, "bca")
    assert verdict(found, detected, "lower") == lower
    assert verdict(found, detected, "higher") == higher


@pytest.mark.parametrize("level", [0.95, 0.9875, 0.9992])
@pytest.mark.parametrize("n", [8, 40, 300])
def test_right_wrong_intervals_leave_out_0_where_mcnemars_test_does(n: int, level: float) -> None:
    """Every outcome with up to 40 discordant items; at the highest level some of the limits are the test's own."""
    for wins in range(min(n, 40) + 1):
        for losses in range(min(n, 40) + 1 - wins):
            found, test = right_wrong_difference(wins, losses, n, level=level)
            assert found.leaves_out_0 == (test.p < 1 - level), (wins, losses)
            assert -1 <= found.low <= found.value <= found.high <= 1
            back, _ = right_wrong_difference(losses, wins, n, level=level)
            assert (back.low, back.high) == (-found.high, -found.low)


def test_an_interval_is_widened_to_0_where_nothing_was_detected() -> None:
    found = statistics.Estimate(0.2, 0.1, 0.4, "bca")
    assert agreeing(found, True) == found
    assert (agreeing(found, False).low, agreeing(found, False).high) == (0, 0.4)
    below = statistics.Estimate(-0.2, -0.4, -0.1, "bca")
    assert (agreeing(below, False).low, agreeing(below, False).high) == (-0.4, 0)
    assert agreeing(statistics.Estimate(0.2, -0.1, 0.4, "bca"), False).low == -0.1


def test_both_tests_must_agree() -> None:
    generator = np.random.default_rng(7)
    a, b = mean(generator.normal(size=100)), mean(generator.normal(loc=0.35, size=100))
    resampled, test = paired_test(a, b, seed=0)
    assert test.p == max(resampled.p(), swap_test(a, b, seed=0).p) and test.method == "permutation and bca"


def test_the_swap_test_of_macro_f1_swaps_answers() -> None:
    references = [0, 1, 2, 0, 1, 2, 0, 1]
    a, b = macro_f1(references, [0, 1, 2, 0, 0, 0, 0, 0]), macro_f1(references, references)
    unswapped, swapped = a.swapped(b, np.array([[0.0] * 8, [1.0] * 8]) @ (b.sums - a.sums))
    assert swapped == pytest.approx(-unswapped)
    assert swap_test(a, b, seed=0).p == pytest.approx(2 * 2**5 / 2**8)  # only the extremes of the 3 that differ


def test_ten_thousand_items_take_less_than_three_seconds() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=(2, 10_000))
    began = time.process_time()
    found, test = paired_difference(mean(a), mean(b * 0.9), seed=0)
    assert time.process_time() - began < 3
    assert verdict(found, test.p < 0.05, "lower") == "better"


def test_many_pairs_share_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many to be kept: once for all pairs, and each finds what it finds alone."""
    monkeypatch.setattr(statistics, "_WORK", 1)
    monkeypatch.setattr(statistics, "_KEPT", 0)
    generator, drawn = np.random.default_rng(3), statistics._drawn
    calls: list[int] = []
    monkeypatch.setattr(statistics, "_drawn", lambda *rest: calls.append(rest[1]) or drawn(*rest))
    pairs = [(mean(generator.normal(size=n)), mean(generator.normal(size=n))) for n in (40, 30, 40, 40)]
    found = paired_tests(pairs, seed=1, level=1 - 0.05 / 66)
    assert calls == [40, 40, 30, 30]  # weights and swaps
    for (resampled, test), (a, b) in zip(found, pairs, strict=True):
        alone, own = paired_test(a, b, seed=1, level=1 - 0.05 / 66)
        assert test == own and np.array_equal(resampled.drawn, alone.drawn) and len(alone.drawn) >= 65_000
