"""Where the program prints: what it quotes may be a stranger's data or a model's answer, and a terminal obeys escape
sequences in them (rich lets them through). Nothing that is printed here moves the cursor, changes the colour or the
title, or rings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.segment import Segment

from halfbyte.errors import printable


def terminal(**options: Any) -> Console:
    """A console (rich's, with its `options`) on which control characters of what is printed are spelt out."""
    console = Console(**options)
    console.push_render_hook(_SpeltOut())
    return console


class _SpeltOut(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [one if isinstance(one, Control) else _Printable(one) for one in renderables]


class _Printable:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else printable(text), style, control)
