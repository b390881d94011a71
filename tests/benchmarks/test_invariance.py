"""The script that measures how much answers depend on the batch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import invariance


def test_it_asks_every_way_and_nothing_changes_in_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invariance.main(["--compute", "fp32", "--limit", "6", "--out", str(tmp_path / "out.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 3 + len(invariance.SEEDS) and {row["way"] for row in rows} >= {"batches of 3", "batches of 16"}
    assert all(row["changed"] == "0" and row["items"] == "6" for row in rows)
    assert capsys.readouterr().out.count("0 of 6 changed (0.00 %)") == len(rows)


def test_too_many_changes_are_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = [invariance.Changed("base, nf4", "bf16", "batches of 3", 200, [0.0])]
    monkeypatch.setattr(invariance, "measure", lambda *_: made)
    assert invariance.main(["--compute", "bf16"]) == 0
    made.append(invariance.Changed("base, nf4", "bf16", "batches of 16", 200, [0.0, 0.0625]))
    assert invariance.main(["--compute", "bf16"]) == 1
    assert "2 of 200 changed (1.00 %); margins 0.0000, 0.0625" in capsys.readouterr().out


def test_the_margin_is_taken_where_two_answers_part() -> None:
    from halfbyte.model.build import load_model

    model = load_model(str(invariance.DEMO / "base"), weights="nf4", compute="fp32")
    prompt, a = [1, 40, 41], [50, 51, 52]
    both = invariance.margin(model, prompt, a, [50, 51, 60])
    assert both == invariance.margin(model, [*prompt, 50, 51], [52], [60]) >= 0
    assert invariance.margin(model, prompt, a, a[:2]) == both  # one of them ended there
