from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from halfbyte.evaluate import statistics
from halfbyte.evaluate.statistics import (
    MacroF1,
    Ratio,
    estimate,
    paired_difference,
    right_wrong_difference,
    share,
    swap_test,
    verdict,
)


def mean(values: object) -> Ratio:
    array = np.asarray(values, dtype=np.float64)
    return Ratio(array, np.ones(len(array)))


def macro_f1(references: list[int], answers: list[int], classes: int = 3) -> MacroF1:
    return MacroF1(np.array(references), np.array(answers), np.arange(len(references)), classes)


def leave_one_out(statistic: Ratio | MacroF1) -> list[float]:
    return [float(statistic.value(1 - np.eye(statistic.units)[[unit]])[0]) for unit in range(statistic.units)]


def test_a_ratio_is_a_ratio_of_sums() -> None:
    statistic = Ratio(np.array([2.0, 6.0, 1.0]), np.array([1.0, 3.0, 2.0]), np.exp)
    assert statistic.value(np.ones((1, 3)))[0] == pytest.approx(math.exp(9 / 6))
    assert statistic.value(np.array([[2.0, 0.0, 1.0]]))[0] == pytest.approx(math.exp(5 / 4))
    assert statistic.left_out() == pytest.approx(leave_one_out(statistic))


def test_macro_f1_by_hand() -> None:
    # class 0: 2 of 3 references hit, 2 answers -> 2*2/(3+2); class 1: 2*1/(2+3); class 2: nobody answers it
    statistic = macro_f1([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1])
    expected = (2 * 2 / (3 + 3) + 2 * 1 / (2 + 3) + 0) / 3
    assert statistic.value(np.ones((1, 6)))[0] == pytest.approx(expected)
    assert statistic.left_out() == pytest.approx(leave_one_out(statistic))


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=150)
    ours = estimate(mean(values), seed=0)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(1))
    width = ours.high - ours.low
    assert ours.method == "bca" and ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


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


def test_everything_random_is_seeded() -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert estimate(mean(values), seed=7) == estimate(mean(values), seed=7)
    assert estimate(mean(values), seed=7) != estimate(mean(values), seed=8)
    other = mean(values + np.random.default_rng(1).normal(size=40))
    assert paired_difference(mean(values), other, seed=7) == paired_difference(mean(values), other, seed=7)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_intervals_cover_the_truth(draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_WORK", 1)  # 1,999 resamples
    generator = np.random.default_rng(11)
    truth, reps, n = {"normal": 0.0, "exponential": 1.0}[draw], 400, 100
    covered = 0
    for rep in range(reps):
        found = estimate(mean(getattr(generator, draw)(size=n)), seed=rep)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / reps <= 0.98


def test_right_wrong_intervals_cover_and_false_alarms_are_rare() -> None:
    generator = np.random.default_rng(2)
    covered = alarms = 0
    for _ in range(1000):
        wins, losses, _ = generator.multinomial(150, [0.1, 0.1, 0.8])
        found, test = right_wrong_difference(int(wins), int(losses), 150)
        covered += found.low <= 0 <= found.high
        alarms += verdict(found, test, "higher") != "no detectable difference"
    assert covered >= 935 and alarms <= 60


def test_false_alarms_of_paired_means_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_WORK", 1)
    generator = np.random.default_rng(4)
    alarms = 0
    for rep in range(200):
        a, b = generator.exponential(size=(2, 100))
        alarms += verdict(*paired_difference(mean(a), mean(b), seed=rep), "lower") != "no detectable difference"
    assert alarms <= 0.09 * 200


def test_groups_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    copies = np.repeat(values, 4)  # four identical items a group say no more than one
    unit_of = np.repeat(np.arange(50), 4)
    grouped = Ratio(np.bincount(unit_of, copies), np.bincount(unit_of).astype(float))
    alone, naive, right = (estimate(s, seed=0) for s in (mean(values), mean(copies), grouped))
    assert right.value == pytest.approx(alone.value)
    assert (right.low, right.high) == pytest.approx((alone.low, alone.high))
    assert naive.high - naive.low < 0.6 * (right.high - right.low)


def test_samples_that_say_little_are_defined() -> None:
    assert estimate(mean([]), seed=0).value is None
    one = estimate(mean([3.0]), seed=0)
    assert (one.value, one.low, one.high) == (3.0, None, None)
    same = estimate(mean([2.0] * 50), seed=0)
    assert (same.value, same.low, same.high, same.method) == (2.0, 2.0, 2.0, "no spread")
    rare = Ratio(
        np.array([5.0] + [0.0] * 99), np.array([1.0] + [0.0] * 99)
    )  # one answered: a third of resamples has none
    assert (estimate(rare, seed=0).value, estimate(rare, seed=0).low) == (5.0, None)
    nothing = Ratio(np.zeros(10), np.zeros(10))
    assert estimate(nothing, seed=0).value is None
    assert share(0, 0).value is None
    assert estimate(Ratio(np.full(5, 1e6), np.ones(5), np.exp), seed=0).value is None  # overflows


def test_identical_scores_are_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found, test = paired_difference(mean(values), mean(values), seed=0)
    assert (found.value, found.low, found.high, test.p) == (0, 0, 0, 1)
    assert verdict(found, test, "lower") == "no detectable difference"


def test_wilson_by_hand() -> None:
    found = share(8, 10)
    z, p, n = stats.norm.ppf(0.975), 0.8, 10
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * math.sqrt(p * 0.2 / n + z * z / 4 / n / n) / (1 + z * z / n),
    )
    assert (found.value, found.low, found.high) == pytest.approx((0.8, centre - half, centre + half))
    assert 0 < share(0, 20).high < 0.2


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
    ("low", "high", "p", "lower", "higher"),
    [
        (0.1, 0.4, 0.001, "worse", "better"),
        (-0.4, -0.1, 0.001, "better", "worse"),
        (-0.4, 0.1, 0.001, "no detectable difference", "no detectable difference"),
        (0.1, 0.4, 0.06, "no detectable difference", "no detectable difference"),  # both must agree
        (None, None, 0.001, "no detectable difference", "no detectable difference"),
    ],
)
def test_verdicts(low: float | None, high: float | None, p: float, lower: str, higher: str) -> None:
    found = statistics.Estimate(0.2, low, high, "bca")
    assert verdict(found, statistics.Test(p, "permutation"), "lower") == lower
    assert verdict(found, statistics.Test(p, "permutation"), "higher") == higher


def test_the_swap_test_of_macro_f1_swaps_answers() -> None:
    references = [0, 1, 2, 0, 1, 2, 0, 1]
    a, b = macro_f1(references, [0, 1, 2, 0, 0, 0, 0, 0]), macro_f1(references, references)
    unswapped, swapped = a.swapped(b, np.array([[0.0] * 8, [1.0] * 8]))
    assert swapped == pytest.approx(-unswapped)
    assert swap_test(a, b, seed=0).p == pytest.approx(2 * 2**5 / 2**8)  # only the extremes of the 3 that differ


def test_ten_thousand_items_take_less_than_three_seconds() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=(2, 10_000))
    began = time.perf_counter()
    found, test = paired_difference(mean(a), mean(b * 0.9), seed=0)
    assert time.perf_counter() - began < 3
    assert verdict(found, test, "lower") == "better"
