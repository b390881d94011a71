"""What result.json holds under `details`, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfbyte.evaluate.details import cut
from halfbyte.evaluate.show import number
from halfbyte.output import Output

_ROWS = 12  # of a table
_WORST = 3
_LONGEST = 60  # characters of a text


def print_details(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables that `result` has."""
    (console or Output()).print(render_details(result))


def render_details(result: dict[str, Any]) -> RenderableType:
    found = result.get("details") or {}
    parts: list[RenderableType] = []
    if found.get("classes"):
        parts += _classes(found["classes"])
    if found.get("confusions"):
        mistakes = [(row["reference"], row["answer"] or "(none)", str(row["count"])) for row in found["confusions"]]
        parts.append(_table("most frequent mistakes", ("true", "answer", "items"), mistakes[: _ROWS // 2], numbers=1))
    if found.get("calibration"):
        parts += _calibration(found["calibration"])
    if found.get("fields"):
        fields = [(row["field"], _percent(row["value"]), _interval(row), str(row["n"])) for row in found["fields"]]
        heads = ("field", "right", "95 % interval", "n")
        parts.append(_table(_some("fields, the least accurate first", fields), heads, fields[:_ROWS], numbers=3))
    if found.get("worst"):
        worst = [(_line(row["prompt"], tail=True), _line(row["reference"]), _line(row["answer"] or ""),
                  number(row['score'])) for row in found["worst"][:_WORST]]  # fmt: skip
        parts.append(_table("worst items", ("prompt", "true", "answer", "score"), worst, numbers=1))
    return Group(*parts)


def _classes(classes: Sequence[dict[str, Any]]) -> list[RenderableType]:
    order = sorted(classes, key=lambda row: (row["f1"], -row["support"], row["class"]))
    rows = [(row["class"], "-" if row["precision"] is None else _percent(row["precision"]), _percent(row["recall"]),
             _percent(row["f1"]), str(row["support"])) for row in order]  # fmt: skip
    heads = ("class", "precision", "recall", "F1", "items")
    return [_table(_some("classes, the lowest F1 first", rows), heads, rows[:_ROWS], numbers=4)]


def _calibration(found: dict[str, Any]) -> list[RenderableType]:
    rows = [(f"{number(row['low'])} to {number(row['high'])}", str(row["n"]), number(row["predicted"]),
             number(row["true"])) for row in found["bins"]]  # fmt: skip
    if not rows:
        return []
    slope = found["slope"]
    text = "the answers do not vary, so there is no slope"
    if slope is not None:
        limits = "" if slope["low"] is None else f" (95 % interval {slope['low']:.3g} to {slope['high']:.3g})"
        text = f"slope {slope['value']:.3g}{limits}: 1 is calibrated, below it answers are too extreme, above too timid"
    heads = ("answers", "n", "mean answer", "mean true")
    return [_table("calibration: true values by what was answered", heads, rows, numbers=3), Text(text)]


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int) -> Table:
    """`numbers`: so many columns at the end are figures."""
    table = Table(title=Text(title), title_justify="left")
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at >= len(heads) - numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _some(title: str, rows: Sequence[object]) -> str:
    return title + (f"; {_ROWS} of {len(rows)}" if len(rows) > _ROWS else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(row: dict[str, Any]) -> str:
    return "-" if row["low"] is None else f"{_percent(row['low'])} to {_percent(row['high'])}"


def _line(text: str, *, tail: bool = False) -> str:
    return cut(" ".join(text.split()), _LONGEST, tail=tail)
