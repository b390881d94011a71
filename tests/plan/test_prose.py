"""Prose is wrapped between words on a terminal, and a line elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from halfbyte.plan.ladder import plan_model
from halfbyte.plan.prose import Column, listed, prose, table
from halfbyte.plan.render import render_plan
from halfbyte.plan.sources import render, sources

LINE = "  open needs much: " + "a few words and " * 12 + "an/unbroken/path/" * 2


def printed(terminal: bool, width: int = 80) -> list[str]:
    out = io.StringIO()
    prose(Console(file=out, force_terminal=terminal, color_system=None, width=width), LINE)
    return out.getvalue().splitlines()


def test_on_a_terminal_words_stay_whole_and_what_follows_is_indented() -> None:
    lines = printed(True)
    assert len(lines) > 2 and max(map(len, lines)) <= 80 and " ".join(" ".join(lines).split()) == LINE.strip()
    assert lines[0].startswith("  open") and all(line.startswith("    ") for line in lines[1:])
    assert len(max(printed(True, 300), key=len)) <= 120


def test_in_a_pipe_a_line_stays_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert printed(False) == [LINE]
    monkeypatch.setenv("COLUMNS", "80")  # but where somebody says how wide it is
    assert printed(False) == printed(True)


def test_a_list_breaks_between_its_parts() -> None:
    assert listed(["one 1 kB", "two 22 MB", "three 3 GB"], 22) == "one 1 kB, two 22 MB,\nthree 3 GB"
    assert listed([], 20) == ""


def test_a_table_becomes_narrower_and_loses_nothing() -> None:
    columns = [Column("", name=True), Column("variant", name=True), Column("score"), Column("takes", left=True)]
    rows = [(("1", "a-long-name", "12.5 (10 to 15)", "2 GB"), "bold"), (("", "b", "7", "10 GB"), "")]
    assert table(columns, rows, 60).plain.splitlines() == [
        "   variant                score  takes",
        "1  a-long-name  12.5 (10 to 15)  2 GB",
        "   b                          7  10 GB",
    ]
    assert table(columns, rows, 26).plain.splitlines() == [
        "variant", "            score  takes", "1  a-long-name", "  12.5 (10 to 15)  2 GB", "b",
        "                7  10 GB",
    ]  # fmt: skip
    assert table(columns, rows, 12).plain.splitlines()[3:5] == ["1", "  a-long-name"]
    assert table(columns, rows, 20).plain.splitlines()[3:6] == ["1  a-long-name", "  12.5 (10 to 15)", "  2 GB"]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_a_plan_and_its_sources_hold_80_columns(name: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=80)
    render_plan(plan_model(name, memory="8GB", device="24GB"), console)
    render([sources(name)], console)
    assert [line for line in out.getvalue().splitlines() if len(line.rstrip()) > 80] == []
