"""The simulation runs, its page is what the file makes of it, and what is claimed is what was measured."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import coverage
from halfbyte.evaluate import statistics
from halfbyte.evaluate.differences import paired_difference
from halfbyte.evaluate.statistics import estimate

CLAIMED = ("normal", "exponential", "binary", "groups of 4")  # from 100 units on


def claimed() -> list[coverage.Row]:
    return [row for row in coverage.read(coverage.FILE) if row.distribution in CLAIMED and row.units >= 100]


def test_the_page_is_what_the_committed_file_makes_of_it() -> None:
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert page == coverage.rendered(page, coverage.read(coverage.FILE)), "run benchmarks/coverage.py --render"


@pytest.mark.parametrize("row", claimed(), ids=lambda row: f"{row.distribution}-{row.figure}-{row.units}")
def test_intervals_cover_and_false_alarms_are_rare(row: coverage.Row) -> None:
    assert row.coverage is not None and row.warned is not None
    assert 0.935 <= row.coverage <= 0.965
    assert row.false_alarms is None or row.false_alarms <= 0.06
    assert row.warned <= 0.05  # a false warning


def test_every_row_stands_on_two_thousand_repetitions() -> None:
    rows = coverage.read(coverage.FILE)
    assert {(row.distribution, row.units) for row in rows} == set(product(coverage.CASES, coverage.SIZES))
    assert min(row.repetitions for row in rows) >= 2000


def test_false_alarms_of_several_are_rare_with_holms_correction_only() -> None:
    rows = [row for row in coverage.read(coverage.FILE) if row.distribution == "several" and row.units >= 100]
    assert all(row.false_alarms <= 0.06 for row in rows if row.figure.endswith("correction"))
    assert all(row.false_alarms > 0.08 for row in rows if row.figure.endswith("without"))


def test_what_does_not_hold_is_told() -> None:
    """Nearly always; a third of 100 items of a t distribution look as normal ones do."""
    rows = [row for row in coverage.read(coverage.FILE) if row.coverage is not None and row.coverage < 0.925]
    assert len({row.distribution for row in rows}) >= 4
    for row in rows:
        assert row.warned is not None and row.noted is not None
        assert row.warned + row.noted > (0.8 if row.distribution.startswith("student") else 0.87), row


def test_normal_items_are_not_doubted() -> None:
    rows = [row for row in coverage.read(coverage.FILE) if row.distribution == "normal" and row.units >= 100]
    assert rows and all(row.warned == 0 and row.noted is not None and row.noted < 0.005 for row in rows)


@pytest.mark.parametrize(("n", "share", "missed"), [(100, 0.05, 0.009), (100, 0.2, 0.029), (300, 0.05, 0.027)])
def test_no_interval_that_agrees_with_mcnemars_test_covers_0_less_often(n: int, share: float, missed: float) -> None:
    """As docs/statistics.md says: counted, not simulated."""
    total = 0.0
    for differ in range(1, n + 1):
        worst = int(binom.ppf(0.025, differ, 0.5))  # the most losses that the test may call a difference
        while worst >= 0 and 2 * binom.cdf(worst, differ, 0.5) >= 0.05:
            worst -= 1
        total += binom.pmf(differ, n, share) * 2 * binom.cdf(worst, differ, 0.5)
    assert total == pytest.approx(missed, abs=0.0006)


def test_a_part_takes_the_place_of_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_WORK", statistics._WORK)  # `main` changes it
    file = tmp_path / "coverage.csv"
    for _ in range(2):
        for case in coverage.CASES:
            coverage.main(["--only", case, "--items", "20", "--repetitions", "3", "--file", str(file)])
    rows = coverage.read(file)
    assert {row.distribution for row in rows} == set(coverage.CASES)
    assert len({(row.distribution, row.figure) for row in rows}) == len(rows)
    assert all(row.repetitions == (15 if row.distribution == "binary" else 3) for row in rows)
    table = coverage.table(rows)
    assert table.count("\n") == len(rows) + 1 and "| groups of 4 | mean | 80 | 20 |" in table


def test_every_repetition_has_a_generator_of_its_own() -> None:
    few, more = (next(iter(coverage.of_means("normal", 20, reps))) for reps in (5, 5))
    assert few == more
    (_, drawn), (_, fewer) = (next(coverage.blocks("normal", 20, count)) for count in (4, 2))
    assert [each.normal() for each in fewer] == [each.normal() for each in drawn][:2]
    assert [len(each) for _, each in coverage.blocks("normal", 1000, 250)] == [100, 100, 50]


def test_what_is_resampled_together_is_what_halfbyte_makes_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_WORK", 1)
    drawn = np.random.default_rng(0).exponential(size=(3, 2, 40))
    pairs = [(coverage.mean(a), coverage.mean(b)) for a, b in drawn]
    for (a, b), (found, test), alone in zip(
        pairs, coverage.compared(pairs, 7), coverage.intervals([a for a, _ in pairs], 7), strict=True
    ):
        expected, by = paired_difference(a, b, seed=7)
        assert (found.low, found.high, test.method) == (
            pytest.approx(expected.low),
            pytest.approx(expected.high),
            by.method,
        )
        assert test.p == pytest.approx(by.p)
        assert (alone.low, alone.high) == pytest.approx((estimate(a, seed=7).low, estimate(a, seed=7).high))
