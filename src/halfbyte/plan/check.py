"""Planned and measured side by side, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.plan.measured import PLANNED_TIME, against, how_measured, read
from halfbyte.plan.prose import duration, prose
from halfbyte.plan.stacked import Bar, render_bars
from halfbyte.plan.weighing import gb


def print_check(folder: Path, as_json: bool, console: Console) -> None:
    """`halfbyte plan --check`: planned and measured of the run in `folder`, from the files that it left.

    Raises DataError for a run without them, or with broken ones."""
    plan, taken = read(folder)
    found = against(plan, taken)
    if as_json:
        print(json.dumps({"schema": found.pop("schema"), "run": str(folder), **found}, indent=2))
    else:
        render_check(found, console)
        if not plan:
            why = "there is no plan.json: the run did not come to its training; start it again: halfbyte tune RUN.yaml"
            prose(console, why, "yellow")


def render_check(check: Mapping[str, Any], console: Console) -> None:
    """Print what `measured.against` gives: phases, exact parts, and the phases as stacked bars."""
    console.print(Text("Planned and measured", style="bold"))
    console.print(_phases(check))
    for line in _without_time(check):
        prose(console, line, "dim")
    console.print()
    console.print(_exact(check))
    console.print()
    bars: list[Bar] = []
    for name, phase in check["phases"].items():
        bars.append((f"{_words(name)}, planned", phase["planned"]["parts"]))
        bars.append((f"{' ' * len(_words(name))}  measured", (phase["measured"] or {}).get("parts", {})))
    render_bars(bars, console)
    if how := how_measured(check):
        prose(console, how, "yellow")
    missing = ", ".join(_words(name) for name, phase in check["phases"].items() if phase["measured"] is None)
    if not check["finished"]:
        yet = f"; not measured yet: {missing}" if missing else ""
        prose(console, f"the run is unfinished, these are the figures of its sessions so far{yet}", "yellow")
    elif missing:
        prose(console, f"not measured: {missing}", "yellow")


def _without_time(check: Mapping[str, Any]) -> list[str]:
    """Why phases have no planned time."""
    without = [name for name, phase in check["phases"].items() if phase["planned"]["seconds"] is None]
    never = [_words(name) for name in without if name not in PLANNED_TIME]
    lines = [f"no planned time: {', '.join(never)}; the length of these is not planned"] if never else []
    others = [_words(name) for name in without if name in PLANNED_TIME]
    why = check["time_reason"]
    return lines + ([f"no planned time: {', '.join(others)}; {why}"] if others and why else [])


def _phases(check: Mapping[str, Any]) -> Table:
    table = _table("phase", "peak planned", "measured", "", "time planned", "measured", "")
    for name, phase in check["phases"].items():
        planned, measured, difference = phase["planned"], phase["measured"] or {}, phase["difference"]
        table.add_row(
            _words(name),
            _size(planned["peak_bytes"]), _size(measured.get("peak_bytes")), _percent(difference["peak"]),
            _time(planned["seconds"]), _time(measured.get("seconds")), _percent(difference["seconds"]),
        )  # fmt: skip
    return table


def _exact(check: Mapping[str, Any]) -> Table:
    table = _table("exact, in bytes", "planned", "measured", "difference")
    for name, part in check["exact"].items():
        off = part["difference_bytes"]
        words = "-" if off is None else "none" if off == 0 else f"{off:+,}"
        table.add_row(name, _count(part["planned"]), _count(part["measured"]), words,
                      style="bold red" if off else "")  # fmt: skip
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _words(name: str) -> str:
    return name.replace("_", " ")


def _size(size: float | None) -> str:
    return "-" if size is None else gb(int(size))


def _count(size: float | None) -> str:
    return "-" if size is None else f"{int(size):,}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _percent(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.1f} %"
