"""Classes, fields and calibration on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.report.synthetic import write_run, write_words
from tests.report.test_page import page_of


def add_details(folder: Path, variant: str, details: Any) -> None:
    file = folder / "evaluations" / variant / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"details": details}))


def classes(f1: float) -> dict[str, Any]:
    return {"classes": [
        {"class": "<b>lost card", "precision": None, "recall": 0.25, "f1": f1, "support": 12, "answered": 0},
        {"class": "top up", "precision": 0.5, "recall": 0.75, "f1": f1 / 2, "support": 15, "answered": 30},
    ]}  # fmt: skip


def test_classes_with_the_base_beside(tmp_path: Path) -> None:
    for variant, f1 in (("base-nf4", 0.1), ("tuned", 0.8)):
        write_words(tmp_path, variant, "choice", right=f1)
        add_details(tmp_path, variant, classes(f1))
    text = page_of(tmp_path).text
    assert "Where tuned is right" in text and "F1 of base-nf4" in text
    part = text[text.index("Class by class") :]
    assert part.index("top up 15 50.0 % 75.0 % 40.0 % 5.0 %") < part.index("<b>lost card 12 – 25.0 % 80.0 % 10.0 %")


def test_fields(tmp_path: Path) -> None:
    write_words(tmp_path, "base-nf4", "exact", right=0.5)
    row = {"field": "size.pieces", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    add_details(tmp_path, "base-nf4", {"fields": [row]})
    assert "size.pieces 50.0 % 40.0 % to 60.0 % 9" in page_of(tmp_path).text


def calibrated(low: float, high: float) -> dict[str, Any]:
    bins = [{"low": k, "high": k + 1, "n": 20, "predicted": 10.0 * k + 5, "true": 8.0 * k + 6} for k in range(4)]
    slope = {"value": (low + high) / 2, "low": low, "high": high}
    return {"calibration": {"n": 80, "slope": slope, "intercept": 1.0, "bins": bins}}


def test_calibration_of_base_and_tuned_model(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=40)
    add_details(folder, "base-nf4", calibrated(0.0001, 0.0003))
    add_details(folder, "tuned", calibrated(0.9, 1.1))
    page = page_of(folder)
    titles = [value for tag, name, value in page.attributes if (tag, name) == ("figure", "aria-label")]
    assert sum("mean true value where it answers about so much" in title for title in titles) == 2
    assert "its answers are more extreme than the truth" in page.text and "calibrated, as far as" in page.text
    assert "mean answer of tuned ($)" in page.text


def test_what_changed_most_stands_among_the_samples(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", items=40)).text
    assert "Improved most" in text and "then those that tuning changed most" in text


def test_broken_details_do_not_break_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", items=12)
    for found in (None, [], "x", {"classes": 5, "fields": [3], "calibration": {"bins": "x"}}, {"calibration": []},
                  {"classes": [{}], "fields": [{}], "calibration": {"bins": [{}, 3], "slope": 5}}):  # fmt: skip
        add_details(folder, "tuned", found)
        assert page_of(folder).text
