"""The picture of a selection: what is drawn, and that it is the page's own colours and escaped text."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.report import selection
from halfbyte.report.pictures import score_memory

POINTS = [
    ("1", 3.3e8, 17.3, 12.5, 23.5, "base"),
    ("2", 3.6e8, 19.9, None, None, "base"),
    ("<3>", 3.6e8, 11.0, 9.0, 14.0, "tuned"),
]


def texts(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def test_scores_against_memory() -> None:
    picture = score_memory(POINTS, "mean absolute error ($)", budget=4e8, guess=21.1)
    found = texts(picture)
    assert {"1", "2", "&lt;3&gt;", "budget", "always the median", "mean absolute error ($)",
            "memory to tune it (MB)"} <= set(found)  # fmt: skip
    assert picture.count("var(--base)") and picture.count("var(--tuned)") and "://" not in picture
    assert picture == score_memory(POINTS, "mean absolute error ($)", budget=4e8, guess=21.1)


def test_a_budget_far_away_and_a_guess_that_is_not_known_are_left_out() -> None:
    found = texts(score_memory(POINTS, "accuracy (%)", scale=100, budget=1e12))
    assert "budget" not in found and "always the median" not in found and "2,000" in found


def test_values_that_differ_much_are_drawn_on_logarithmic_axes() -> None:
    far = [*POINTS, ("4", 9e9, 5000.0, 4000.0, 9000.0, "base")]
    found = texts(score_memory(far, "mean absolute error"))
    assert {"10", "100", "1,000"} <= set(found) and "memory to tune it (GB)" in found


def test_a_page_that_the_disk_refuses_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr(selection, "render", lambda _: "<p>page</p>")
    assert selection.write_page(made).read_text() == "<p>page</p>"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(selection, "render", lambda _: "<p>other</p>")
    with pytest.raises(HalfbyteError, match="can't be written") as caught:
        selection.write_page(made)
    assert "--out" in str(caught.value.do)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["<p>page</p>"]
