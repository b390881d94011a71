"""The simulation runs, its page is what the file makes of it, and what is claimed is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import coverage
from halfbyte.evaluate import statistics

CLAIMED = ("normal", "exponential", "binary", "groups of 4")  # from 100 units on


def claimed() -> list[coverage.Row]:
    return [row for row in coverage.read(coverage.FILE) if row.distribution in CLAIMED and row.units >= 100]


def test_the_page_is_what_the_committed_file_makes_of_it() -> None:
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert page == coverage.rendered(page, coverage.read(coverage.FILE)), "run benchmarks/coverage.py --render"


@pytest.mark.parametrize("row", claimed(), ids=lambda row: f"{row.distribution}-{row.figure}-{row.units}")
def test_intervals_cover_and_false_alarms_are_rare(row: coverage.Row) -> None:
    assert row.coverage is not None and row.coverage >= 0.935
    if row.figure != "difference, 5 % differ":  # so few that no interval of whole items covers 95 %
        assert row.coverage <= 0.965
    assert row.false_alarms is None or row.false_alarms <= 0.06


def test_what_does_not_hold_is_warned_of() -> None:
    """Lopsided data nearly always; data whose tails are heavy on both sides show that less often."""
    rows = [row for row in coverage.read(coverage.FILE) if row.coverage is not None and row.coverage < 0.90]
    assert len({row.distribution for row in rows}) >= 4
    for row in rows:
        symmetric = row.figure == "difference" or row.distribution == "student 2"
        assert row.warned is not None and row.warned > (0.2 if symmetric else 0.9), row


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
    drawn = [generator.normal() for _, generator in coverage.drawn("normal", 20, 4)]
    assert [generator.normal() for _, generator in coverage.drawn("normal", 20, 2)] == drawn[:2]
    assert len(list(coverage.drawn("normal", 1000, 50))) == 5
