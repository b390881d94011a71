from __future__ import annotations

import math

import numpy as np
import pytest

from halfbyte.evaluate.sums import MacroF1, Ratio, Sums


def macro_f1(references: list[int], answers: list[int], classes: int = 3) -> MacroF1:
    return MacroF1(np.array(references), np.array(answers), np.arange(len(references)), classes)


def leave_one_out(statistic: Sums) -> list[float]:
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


def test_macro_f1_without_each_group() -> None:
    generator = np.random.default_rng(0)
    references, answers = generator.integers(0, 6, size=(2, 60))
    answers[generator.random(60) < 0.5] = -1  # no answer
    grouped = MacroF1(references, answers, np.arange(60) // 4, 6)
    assert grouped.units == 15 and grouped.left_out() == pytest.approx(leave_one_out(grouped))
    lonely = MacroF1(np.array([0, 1]), np.array([-1, -1]), np.arange(2), 2)  # a class goes with its item
    assert lonely.left_out() == pytest.approx([0, 0])
    assert math.isnan(MacroF1(np.array([0]), np.array([0]), np.arange(1), 1).left_out()[0])
