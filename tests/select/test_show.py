"""A selection on the terminal: within its width, and nothing cut off."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from halfbyte.report import selection as page
from halfbyte.select.record import Selection
from halfbyte.select.show import print_selection
from tests.report.pages import selection_page


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    made: list[Selection] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_page", made.append)
        selection_page(tmp_path_factory.mktemp("selection"))
    return made[0]


def printed(selection: Selection, width: int) -> str:
    out: Any = io.StringIO()
    print_selection(selection, Console(file=out, width=width, color_system=None))
    return str(out.getvalue())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_holds_its_width(width: int, selection: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = printed(selection, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and "Recommended: Llama-3.2-1B-nf4, with mae" in text
    for told in ("against the best", "after the probe", "4.00 GB", "72 min", "does not fit", "broken-nf4: failed"):
        assert told in text
    if width == 120:
        assert [line.split()[:3] for line in text.splitlines()[2:4]] == [
            ["1", "Llama-3.2-1B-nf4", "best"], ["2", "SmolLM2-360M-nf4", "worse"]]  # fmt: skip


def test_in_a_pipe_a_sentence_stays_a_line(selection: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    recommendation = selection.recommendation
    assert recommendation is not None
    assert set(recommendation.reasons) <= set(printed(selection, 80).splitlines())
