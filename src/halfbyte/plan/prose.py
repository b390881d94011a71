"""Text that holds a width: prose, wrapped between words, and tables that become narrower instead of being cut off.

Prose is wrapped on a terminal, or where COLUMNS says how wide the reader's is. Else, in a pipe or a file, a line stays
a line.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

_MOST = 120  # columns; longer lines are hard to read
_GAP = 2  # columns between two of a table
_WHOLE = "\N{NO-BREAK SPACE}"


def prose(console: Console, line: str, style: str = "", *, bold: int = 0) -> None:
    """Print `line` in `style`, its first `bold` characters in bold; further lines stand two columns further in."""
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        width = max(len(indent) + 10, min(console.width, _MOST))
        line = "\n".join(textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False,
                                       break_on_hyphens=False)) if line else line  # fmt: skip
    text = Text(line, style=style)
    text.stylize("bold", 0, bold)
    console.print(text, soft_wrap=True)


def duration(seconds: float | None) -> str:
    """Seconds for people: three digits in the largest unit that there are two of."""
    if seconds is None:
        return "unknown"
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def listed(parts: Sequence[str], width: int) -> str:
    """`parts` with commas, in lines of at most `width`, which end between two parts."""
    text = ", ".join(part.replace(" ", _WHOLE) for part in parts)
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)).replace(_WHOLE, " ")


@dataclass(frozen=True)
class Column:
    """`name`: it tells what a row is of. Such a column keeps its place above the figures where these need the width."""

    head: str
    name: bool = False
    left: bool = False


Row = tuple[Sequence[str], str]  # cells, and the style of the row


def table(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Text:
    """Rows under their heads. Where `width` does not hold them, names have a line of their own, and figures as many
    below it as they take. Nothing is cut off: what is longer than the width by itself stays whole."""
    every = [([column.head for column in columns], "dim"), *rows]
    sizes = [max(len(cells[at]) for cells, _ in every) for at in range(len(columns))]
    whole = list(range(len(columns)))
    lines = [whole] if _length(whole, sizes) <= width else _parted(columns, sizes, width)
    made = []
    for cells, style in every:
        for number, part in enumerate(lines):
            if not any(cells[at] for at in part):
                continue
            padded = [cells[at].ljust(sizes[at]) if columns[at].left or columns[at].name else cells[at].rjust(sizes[at])
                      for at in part]  # fmt: skip
            if len(lines) > 1 and not number:
                made += [Text(line, style=style) for line in _names([cells[at] for at in part if cells[at]], width)]
                continue
            made.append(Text((" " * _GAP * bool(number) + (" " * _GAP).join(padded)).rstrip(), style=style))
    return Text("\n").join(made)


def _names(cells: Sequence[str], width: int) -> list[str]:
    """The names of one row, in as few lines as hold them."""
    lines = [cells[0]]
    for cell in cells[1:]:
        joined = f"{lines[-1]}{' ' * _GAP}{cell}"
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, " " * _GAP + cell]
    return lines


def _length(part: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(sizes[at] for at in part) + _GAP * (len(part) - 1)


def _parted(columns: Sequence[Column], sizes: Sequence[int], width: int) -> list[list[int]]:
    """The names, then the figures in as few lines as hold them, each two columns further in."""
    lines: list[list[int]] = [[at for at, column in enumerate(columns) if column.name]]
    for at, column in enumerate(columns):
        if column.name:
            continue
        if len(lines) == 1 or _GAP + _length([*lines[-1], at], sizes) > width:
            lines.append([])
        lines[-1].append(at)
    return lines
