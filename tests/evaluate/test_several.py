from __future__ import annotations

import pytest

from halfbyte.evaluate.several import bonferroni, holm


def test_holm_by_hand() -> None:
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert [one.p for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # 0.005 and 0.01 pass 0.05/4 and 0.05/3; 0.03 fails 0.05/2, and that is the level for all that is left
    assert [one.level for one in found] == pytest.approx([1 - 0.05 / 3, 0.975, 0.975, 1 - 0.05 / 4])


def test_one_comparison_is_left_alone() -> None:
    (only,) = holm([0.03])
    assert (only.p, only.level, only.detected) == (0.03, pytest.approx(0.95), True)
    assert [one.detected for one in (*holm([0.05]), *bonferroni([0.01], 5))] == [False, False]  # 0.05 is not below it
    assert holm([]) == []


def test_nothing_found_means_the_level_of_the_first_step() -> None:
    found = holm([0.5, 0.2, 0.9])
    assert [one.level for one in found] == pytest.approx([1 - 0.05 / 3] * 3)
    assert [one.p for one in found] == pytest.approx([1, 0.6, 1])


def test_all_found_step_down_to_the_usual_level() -> None:
    found = holm([0.001, 0.002, 0.0001])
    assert [one.level for one in found] == pytest.approx([0.975, 0.95, 1 - 0.05 / 3])
    assert [one.p for one in found] == pytest.approx([0.002, 0.002, 0.0003])
