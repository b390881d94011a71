"""A sweep in the terminal: a live table of its trials; without a terminal, a line when a trial begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from halfbyte.report.sweep import setting_text, settings_text
from halfbyte.report.words import number_text
from halfbyte.sweep.result import winner
from halfbyte.sweep.study import Claim, Row

SHOWN = 20  # trials in the live table: the last ones, and the best
_COLOURS = {"failed": "red", "lost": "red", "pruned": "dim", "running": "bold"}


class LiveTable:
    """What the worker tells becomes the table, or lines."""

    def __init__(self, console: Console, knobs: list[str], trials: int) -> None:
        self.console, self.knobs, self.trials = console, knobs, trials
        self.rows: list[Row] = []
        self.now = ""
        self._live: Live | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Live for as long as the sweep works."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=2, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _render(self) -> RenderableType:
        return Group(trials_table(self.rows, self.knobs, most=SHOWN), Text(self._standing()), Text(self.now))

    def _standing(self) -> str:
        best = winner(self.rows)
        ended = sum(row.ended for row in self.rows)
        text = f"{ended} of {self.trials} trials ended"
        return text if best is None else f"{text}; best so far: trial {best.number}, {number_text(best.loss, 4)}"

    def begins(self, claim: Claim) -> None:
        word = "goes on" if claim.resumed else "begins"
        self.now = f"trial {claim.number} {word}: {settings_text(claim.values)}"
        self._line(self.now)

    def goes_on(self, claim: Claim, step: int, steps: int, loss: float | None) -> None:
        self.now = f"trial {claim.number}: step {step} of {steps}; {settings_text(claim.values)}"

    def ended(self, number: int, rows: list[Row]) -> None:
        self.rows, self.now = rows, ""
        row = next(row for row in rows if row.number == number)
        loss = "" if row.loss is None else f", validation loss {number_text(row.loss, 4)}"
        seconds = "" if row.seconds is None else f" after {row.seconds:,.0f} s"
        self._line(f"trial {number} {row.state}{seconds}{loss}{': ' + row.error if row.error else ''}")
        self._line(self._standing())

    def waits(self, rows: list[Row]) -> None:
        self.rows = rows
        elsewhere = [f"{row.number} on {row.host}" for row in rows if row.state == "running"]
        before, self.now = self.now, f"waiting for trials that others work on: {', '.join(elsewhere)}"
        if self.now != before:
            self._line(self.now)

    def scores(self, number: int, log: Path) -> None:
        """The winner is being scored; `log` is what that says."""
        self.now = f"scoring the winner, trial {number}, on the test set, beside the base: {log} says how far it is"
        self._line(self.now)

    def _line(self, text: str) -> None:
        if self._live is None:
            self.console.print(text, markup=False, soft_wrap=True)


def trials_table(rows: list[Row], knobs: list[str], most: int | None = None) -> Table:
    """A row a trial; of more than `most`, the last ones and the best."""
    best = winner(rows)
    shown = rows if most is None else [row for row in rows if row is best or row in rows[-most:]]
    table = Table(title=f"the last {most} trials, and the best" if len(shown) < len(rows) else None,
                  title_justify="left")  # fmt: skip
    table.add_column("trial", justify="right")
    table.add_column("state")
    for knob in knobs:
        table.add_column(Text(knob), justify="right")
    table.add_column("validation loss", justify="right")
    table.add_column("s", justify="right")
    for row in shown:
        style = "bold green" if row is best else _COLOURS.get(row.state, "")
        cells = [setting_text(row.values[knob]) if knob in row.values else "-" for knob in knobs]
        loss = "-" if row.loss is None else number_text(row.loss, 4)
        seconds = "-" if row.seconds is None else f"{row.seconds:,.0f}"
        state = "best" if row is best else row.state
        table.add_row(*map(Text, (str(row.number), state, *cells, loss, seconds)), style=style)
    return table


def show_result(found: Mapping[str, Any], rows: list[Row], knobs: list[str], console: Console) -> None:
    """The trials, what failed, the winner, its score on the test set, and what mattered."""
    console.print(trials_table(rows, knobs))
    for row in rows:
        if row.error:
            console.print(f"trial {row.number} failed: {row.error}", markup=False, soft_wrap=True)
    best = found["best"]
    if best is not None:
        said = f"best of {len(rows)}: trial {best['number']}, validation loss {number_text(best['validation_loss'], 4)}"
        console.print(f"{said}: {settings_text(best['values'])}", markup=False, soft_wrap=True)
    for note in found["notes"]:
        console.print(note, markup=False, soft_wrap=True)
    if found["test"] is not None:
        from halfbyte.evaluate.show import print_comparison

        print_comparison(found["test"]["comparison"], console)
        console.print(found["test"]["note"], markup=False, soft_wrap=True)
    for key, share in (found["importances"] or {}).items():
        console.print(f"  {100 * share:3.0f} %  {key}", markup=False)
    console.print(found["importances_note"], markup=False, soft_wrap=True)
