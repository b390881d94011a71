from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from halfbyte.evaluate import statistics
from halfbyte.evaluate.differences import paired_test, right_wrong_test
from halfbyte.evaluate.power import (
    detectable,
    right_wrong_detectable,
    right_wrong_needed,
    right_wrong_power,
    units_needed,
)
from halfbyte.evaluate.sums import Ratio


def mean(values: np.ndarray) -> Ratio:
    return Ratio(values, np.ones(len(values)))


def test_a_difference_that_is_called_detectable_is_detected_four_times_in_five(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "_WORK", 1)  # 1,999 resamples
    generator = np.random.default_rng(1)
    n, reps = 80, 300
    size = detectable(1 / math.sqrt(n), n)
    assert size == pytest.approx(2.8 / math.sqrt(n), rel=0.03)
    found = 0
    for rep in range(reps):
        change = generator.normal(loc=size, size=n)
        found += paired_test(mean(np.zeros(n)), mean(change), seed=rep)[1].p < 0.05
    assert 0.74 < found / reps < 0.86


def test_needed_units_turn_the_question_around() -> None:
    n = units_needed(0.1, 50, 0.08)
    assert n is not None and n == pytest.approx(50 * (2.8 * 0.1 / 0.08) ** 2, rel=0.02)
    assert detectable(0.1 * math.sqrt(50 / n), n) <= 0.08 < detectable(0.1 * math.sqrt(50 / (n - 1)), n - 1)
    assert units_needed(0.1, 50, -0.08) == n  # either way
    assert units_needed(0.1, 50, 0.08, level=0.99) > 1.3 * n
    assert units_needed(1.0, 50, 1e-6) is None


@pytest.mark.parametrize(("n", "discordant", "difference", "level"), [(60, 0.3, 0.15, 0.95), (369, 0.1, 0.05, 0.99)])
def test_mcnemars_power_is_that_of_a_simulation(n: int, discordant: float, difference: float, level: float) -> None:
    generator = np.random.default_rng(2)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    drawn = generator.multinomial(n, shares, size=2000)
    detected = np.mean([right_wrong_test(int(wins), int(losses)).p < 1 - level for wins, losses, _ in drawn])
    assert right_wrong_power(n, discordant, difference, level=level) == pytest.approx(detected, abs=0.03)


def test_mcnemars_power_by_hand() -> None:
    assert right_wrong_power(6, 1.0, 1.0) == 1  # 6 of 6: p = 2/64
    assert right_wrong_power(5, 1.0, 1.0) == 0  # 5 of 5: p = 2/32
    assert right_wrong_power(6, 1.0, 0.5) == pytest.approx(0.75**6 + 0.25**6)
    assert right_wrong_power(50, 0.0, 0.0) == 0


def test_detectable_shares() -> None:
    found = right_wrong_detectable(369, 0.1)
    assert found is not None and (found * 369) % 1 == pytest.approx(0, abs=1e-9)
    assert right_wrong_power(369, 0.1, found) >= 0.8 > right_wrong_power(369, 0.1, found - 1 / 369)
    assert right_wrong_detectable(5, 0.2) is None  # not even all of them
    assert right_wrong_detectable(100, 0.0) == pytest.approx(0.08)  # 8 one-sided items: 6 or more with 80 %


def test_needed_items_agree_with_connors_formula() -> None:
    # Connor 1987, Biometrics 43:207-211, without continuity; the exact test asks for a few per cent more
    psi, delta = 0.1, 0.02
    a, b = stats.norm.ppf((0.975, 0.8))
    connor = (a * math.sqrt(psi) + b * math.sqrt(psi - delta**2)) ** 2 / delta**2
    assert 1 < right_wrong_needed(psi, delta) / connor < 1.08
    assert right_wrong_needed(psi, delta, level=0.99) > 1.3 * connor
    many, more = right_wrong_needed(0.3, 0.009), right_wrong_needed(0.3, 0.008)  # the exact power, and the formula
    assert many * 0.3 < 10_000 < more * 0.3 and more / many == pytest.approx((9 / 8) ** 2, rel=0.02)
    assert right_wrong_needed(0.3, 1e-6) is None and right_wrong_needed(0.3, 1.5) is None
