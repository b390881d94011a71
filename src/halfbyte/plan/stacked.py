"""Stacked bars for the terminal: what the phases of a run take, part by part, all on one scale.

With colours a part is a run of coloured blocks; without them (a pipe, NO_COLOR, a dumb terminal) it is a run of its own
letter. Widths are exact to half a cell, so a part that is too thin to be drawn has no cell; the legend says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from halfbyte.plan.prose import listed
from halfbyte.plan.weighing import gb

# colour and letter; what a run holds all the time first, what comes and goes last
STYLES: dict[str, tuple[str, str]] = {
    "runtime": ("bright_black", "r"),
    "context": ("bright_black", "c"),
    "weights": ("blue", "W"),
    "constants": ("bright_blue", "C"),
    "slots": ("bright_blue", "S"),
    "adapter": ("red", "A"),
    "narrow_copy": ("bright_red", "n"),
    "gradients": ("yellow", "G"),
    "optimiser": ("green", "O"),
    "scratch": ("cyan", "s"),
    "kv_cache": ("bright_green", "k"),
    "activations": ("magenta", "a"),
    "logits": ("bright_magenta", "l"),
    "tensors": ("bright_cyan", "t"),
    "rest": ("white", "."),
}
_OTHER = ("bright_yellow", "x")
_LEAST = 10  # cells of the longest bar

Bar = tuple[str, Mapping[str, int | None]]  # label, parts in bytes


def render_bars(bars: Sequence[Bar], console: Console) -> None:
    """Print a bar for each of `bars` that has parts, and the legend. Nothing where there is none."""
    known = [(label, parts) for label, given in bars if (parts := _known(given))]
    if not known:
        return
    colours = console.is_terminal and not console.no_color and console.color_system is not None
    labels = max(len(label) for label, _ in known)
    sizes = [sum(parts.values()) for _, parts in known]
    cells = max(_LEAST, min(80, console.width) - labels - max(len(gb(size)) for size in sizes) - 4)
    drawn: set[str] = set()
    for (label, parts), size in zip(known, sizes, strict=True):
        line = Text(f"{label:{labels}}  ")
        for name, width in widths(parts, max(sizes), cells).items():
            drawn |= {name} if width else set()
            colour, letter = STYLES.get(name, _OTHER)
            line.append("█" * width if colours else letter * width, style=colour if colours else "")
        console.print(line.append(f"  {gb(size)}"), soft_wrap=True)
    _legend([name for name in _ordered(known) if name in drawn], colours, console)
    thin = [name for name in _ordered(known) if name not in drawn]
    if thin:
        words = [f"{_words(name)} {gb(max(parts.get(name, 0) for _, parts in known))}" for name in thin]
        told = listed([f"too thin to be drawn: {words[0]}", *words[1:]], min(80, console.width))
        console.print(Text(told, style="dim"), soft_wrap=True)


def widths(parts: Mapping[str, int], largest: int, cells: int) -> dict[str, int]:
    """Cells of each part where `largest` bytes fill `cells`; ends are rounded, so that the sum is right to half one."""
    found: dict[str, int] = {}
    end = before = 0
    for name, size in parts.items():
        end += size
        here = round(cells * end / largest)
        found[name], before = here - before, here
    return found


def _known(parts: Mapping[str, int | None]) -> dict[str, int]:
    """The parts that take something, in the order of `STYLES`; a phase with an unknown part has no bar."""
    if None in parts.values():
        return {}
    order = {name: place for place, name in enumerate(STYLES)}
    names = sorted(parts, key=lambda name: order.get(name, len(order)))
    return {name: size for name in names if (size := parts[name])}


def _ordered(bars: Sequence[tuple[str, Mapping[str, int]]]) -> list[str]:
    names = {name for _, parts in bars for name in parts}
    return [*[name for name in STYLES if name in names], *sorted(names - set(STYLES))]


def _legend(names: Sequence[str], colours: bool, console: Console) -> None:
    """The parts in as many lines as it takes; none is broken."""
    width, line = min(80, console.width), Text()
    for name in names:
        colour, letter = STYLES.get(name, _OTHER)
        entry = Text("█" if colours else letter, style=colour if colours else "").append(f" {_words(name)}")
        if line and len(line) + 2 + len(entry) > width:
            console.print(line, soft_wrap=True)
            line = Text()
        line.append("  " if line else "").append_text(entry)
    console.print(line, soft_wrap=True)


def _words(name: str) -> str:
    return name.replace("_", " ")
