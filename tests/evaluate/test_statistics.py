from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from halfbyte.evaluate import statistics
from halfbyte.evaluate.differences import paired_difference, paired_test
from halfbyte.evaluate.statistics import effective_units, estimate, resample, resamples, share
from halfbyte.evaluate.sums import MacroF1, Ratio


def mean(values: object) -> Ratio:
    array = np.asarray(values, dtype=np.float64)
    return Ratio(array, np.ones(len(array)))


def macro_f1(references: list[int], answers: list[int], classes: int = 3) -> MacroF1:
    return MacroF1(np.array(references), np.array(answers), np.arange(len(references)), classes)


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=150)
    ours = estimate(mean(values), seed=0)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(1))
    width = ours.high - ours.low
    assert ours.method == "bca" and ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


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


def test_wilson_by_hand() -> None:
    found = share(8, 10)
    z, p, n = stats.norm.ppf(0.975), 0.8, 10
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * math.sqrt(p * 0.2 / n + z * z / 4 / n / n) / (1 + z * z / n),
    )
    assert (found.value, found.low, found.high) == pytest.approx((0.8, centre - half, centre + half))
    assert 0 < share(0, 20).high < 0.2


def test_a_mean_that_few_items_make_is_told_apart() -> None:
    generator = np.random.default_rng(0)
    assert estimate(mean(generator.normal(size=100)), seed=0).doubt == ""
    assert estimate(mean(generator.exponential(size=300)), seed=0).doubt == ""
    assert estimate(mean(generator.lognormal(sigma=2, size=300)), seed=0).doubt == "lopsided"
    assert estimate(mean(generator.standard_cauchy(size=300)), seed=0).doubt == "lopsided"  # heavy on both sides
    values = generator.exponential(size=80)
    found = resample(mean(values), seed=0)
    assert found.acceleration == pytest.approx(stats.skew(values) / 80**0.5 / 6)
    assert found.effective == pytest.approx(80 / stats.kurtosis(values, fisher=False))


def test_effective_units_are_those_that_make_up_the_spread() -> None:
    assert effective_units(np.array([1.0, -1, 1, -1])) == 4
    assert effective_units(np.array([3.0, 0, 0, 0])) == 1
    assert effective_units(np.array([1e200, 1e200, 0])) == 2  # squares that overflow
    assert effective_units(np.zeros(3)) == math.inf


def test_what_is_drawn_is_drawn_once_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = np.vstack(list(resamples(50, 3)))
    assert kept.shape == (9999, 50) and np.all(kept.sum(axis=1) == 50)
    assert np.array_equal(kept, np.vstack(list(resamples(50, 3))))
    monkeypatch.setattr(statistics, "_KEPT", 0)  # too large to be kept
    assert np.array_equal(kept, np.vstack(list(resamples(50, 3))))


def test_few_items_get_the_tails_of_student() -> None:
    values = np.random.default_rng(4).normal(size=8)
    found, error = estimate(mean(values), seed=0), values.std(ddof=1) / 8**0.5
    assert (found.high - found.low) / error == pytest.approx(2 * stats.t.ppf(0.975, 7), rel=0.1)  # not 2 * 1.83


def test_the_p_of_the_interval_is_that_at_which_it_ends() -> None:
    values = np.random.default_rng(6).exponential(size=90) - 0.8
    found = resample(mean(values), seed=0)
    p = found.p()
    assert p is not None and 0.005 < p < 0.6
    ends = found.estimate(1 - p)
    width = ends.high - ends.low
    assert min(abs(ends.low), abs(ends.high)) < 0.01 * width
    for near in (0.5, 0.9, 0.999, 1.001, 1.1, 2):  # the limit is beyond 0 exactly where p is below 1 - level
        assert found.estimate(1 - near * p).leaves_out_0 == (near > 1)
    assert resample(mean(np.ones(50)), seed=0).p() is None and resample(mean([1.0]), seed=0).p() is None


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    assert resample(mean(values), seed=0).error == pytest.approx(stats.sem(values))
    rare = Ratio(np.array([5.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))  # without its one answer it is not defined
    assert resample(rare, seed=0).error is None and resample(mean([1.0]), seed=0).error is None
    f1 = macro_f1([k % 2 for k in range(40)], [k % 4 // 2 for k in range(40)])
    assert resample(f1, seed=0).error == pytest.approx(np.std(resample(f1, seed=0).drawn), rel=0.15)


def test_two_items_have_an_interval_without_end() -> None:
    found = estimate(mean([1.0, 3.0]), seed=0)
    assert (found.value, found.low, found.high) == (2, 1, 3)  # what was seen; the bootstrap knows no more
    resampled, test = paired_test(mean([1.0, 3.0]), mean([2.0, 5.0]), seed=0)
    assert test.p == 0.5 and resampled.value == 1.5


def test_a_higher_level_is_wider_and_draws_more() -> None:
    values = np.random.default_rng(2).exponential(size=800)
    wide, usual = estimate(mean(values), seed=0, level=0.995), estimate(mean(values), seed=0)
    assert wide.low < usual.low < usual.high < wide.high
    error = values.std() / 800**0.5
    assert wide.high - wide.low == pytest.approx(2 * stats.norm.ppf(0.9975) * error, rel=0.05)


@pytest.mark.parametrize(("units", "doubt"), [(100, "uneven"), (299, "uneven"), (300, "")])
def test_a_long_tail_is_doubted_where_the_items_are_too_few_to_show_it(units: int, doubt: str) -> None:
    found = resample(mean(np.random.default_rng(2).exponential(size=units)), seed=0)
    assert 6 < units / found.effective < 6.6 * units**0.2 and found.doubt == doubt
