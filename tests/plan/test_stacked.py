"""Stacked bars: to scale, with colours and without, never wider than the terminal."""

import io

import pytest
from rich.console import Console

from halfbyte.plan.stacked import STYLES, render_bars, widths

BARS = [("open", {"runtime": 300_000_000}), ("tune", {"runtime": 300_000_000, "adapter": 1000, "activations": 10**9})]


def _drawn(bars, width=80, **settings):
    out = io.StringIO()
    render_bars(bars, Console(file=out, width=width, **settings))
    return out.getvalue()


def test_the_sum_is_to_scale_whatever_the_parts():
    parts = {str(number): 10 + number for number in range(7)}
    total = sum(parts.values())
    assert sum(widths(parts, total, 50).values()) == 50
    assert sum(widths(parts, 2 * total, 50).values()) == 25
    assert widths({"a": 1, "b": 99}, 100, 10) == {"a": 0, "b": 10}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_without_colours_a_part_is_a_run_of_its_letter(width):
    text = _drawn(BARS, width)
    first, second, *legend = text.splitlines()
    assert "\x1b" not in text and "█" not in text and max(map(len, text.splitlines())) <= min(80, width)
    assert first.startswith("open  rrr") and "300 MB" in first and second.startswith("tune  rrr")
    assert second.count("a") > 3 * (second.count("r") - 1) * 0.9 and "1.30 GB" in second
    assert "r runtime" in legend[0] and "too thin to be drawn: adapter 1.00 kB" in " ".join(legend)


def test_with_colours_blocks_are_drawn_and_no_color_is_heeded(monkeypatch):
    text = _drawn(BARS, force_terminal=True, color_system="standard")
    assert "█" in text and "\x1b[" in text and "aaa" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    text = _drawn(BARS, force_terminal=True, color_system="standard")
    assert "█" not in text and "aaa" in text and "\x1b[9" not in text and "\x1b[3" not in text


def test_what_is_unknown_or_empty_has_no_bar():
    assert _drawn([("pack", {}), ("tune", {"runtime": 3, "activations": None})]) == ""
    assert _drawn([("pack", {"runtime": 0}), ("open", {"runtime": 5})]).count("\n") == 2


def test_letters_and_colours_tell_the_parts_apart():
    assert len({letter for _, letter in STYLES.values()}) == len(STYLES)
    assert "[red]odd x" in _drawn([("[bold]a", {"[red]odd": 3})]).replace("x [red]odd", "[red]odd x")
