"""Prose on a terminal: wrapped between words, at the terminal's own width. In a pipe or a file a line stays a line."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

_MOST = 120  # columns; longer lines are hard to read


def prose(console: Console, line: str, style: str = "", *, bold: int = 0) -> None:
    """Print `line` in `style`, its first `bold` characters in bold; further lines stand two columns further in."""
    if console.is_terminal:
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        width = max(len(indent) + 10, min(console.width, _MOST))
        line = "\n".join(textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False,
                                       break_on_hyphens=False)) if line else line  # fmt: skip
    text = Text(line, style=style)
    text.stylize("bold", 0, bold)
    console.print(text, soft_wrap=True)
