"""Several models beside each other: one row a model, and what each is planned for.

A model that can't be planned keeps its row, which says why; the others are shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.plan.catalogue import lookup
from halfbyte.plan.ladder import Plan
from halfbyte.plan.phases import Phase
from halfbyte.plan.prose import prose
from halfbyte.plan.weighing import gb


@dataclass(frozen=True)
class Failed:
    """A model that was asked for by the name `model`, and what is wrong with it."""

    model: str
    error: HalfbyteError

    def to_json(self) -> dict[str, Any]:
        parts = {"what": self.error.what, "where": self.error.where, "found": self.error.found, "do": self.error.do}
        return {"model": self.model, "error": {key: None if v is None else str(v) for key, v in parts.items()}}


Row = Plan | Failed
Found = TypeVar("Found")


def gather(models: Sequence[str], ask: Callable[[str], Found]) -> list[Found | Failed]:
    """What `ask` gives for each model, or why it gives nothing. Raises one error where it gives nothing for any of them
    and always for the same reason, or they are the words of one name."""
    rows: list[Found | Failed] = []
    for model in models:
        try:
            rows.append(ask(model))
        except HalfbyteError as error:
            rows.append(Failed(model, error))
    failed = [row for row in rows if isinstance(row, Failed)]
    if failed and len(failed) == len(rows) and len({str(row.error) for row in failed}) == 1:
        raise failed[0].error
    if len(failed) == len(rows) > 1 and (meant := lookup("-".join(models))) is not None:
        raise ConfigError("these are the words of one model", found=" ".join(models), do=f"write {meant.short_name}")
    return rows


def say_errors(rows: Sequence[object], console: Console) -> int:
    """Print what is wrong with each `Failed` of `rows`; returns the exit code of the first, 0 where there is none."""
    failed = [row for row in rows if isinstance(row, Failed)]
    for row in failed:
        console.print(Text(f"error: {row.model}: {row.error}", style="red"), soft_wrap=True)
    return failed[0].error.exit_code if failed else 0


def exit_code(rows: Sequence[Row]) -> int:
    """3 where no model fits, and 0 where one does; errors apart."""
    return 3 if all(isinstance(row, Plan) and row.fits is False for row in rows) else 0


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """`plan A B C --json`: under "plans" what `plan --json` prints of each, in the order that was asked for; of a model
    that can't be planned, `model` and `error` (what, where, found, do)."""
    return {"schema": 1, "plans": [row.to_json() for row in rows]}


def render(rows: Sequence[Row], console: Console) -> None:
    """Print one table, a row a model, and below it why something in it is unknown or missing."""
    plans = [row for row in rows if isinstance(row, Plan)]
    asked = [_asked(plan) for plan in plans]
    if len(set(asked)) == 1:
        prose(console, f"{asked[0]}{_memory(plans)}", "bold")
    else:  # a run among them has its own
        for plan, words in zip(plans, asked, strict=True):
            prose(console, f"{plan.model}: {words}{_memory([plan])}", bold=len(plan.model))
    console.print(_table(rows, console.width), soft_wrap=True)
    prose(console, "mapped: the weights in the format that runs; evaluate, tune: peaks beside them", "dim")
    for row in rows:
        if isinstance(row, Failed):
            if not console.is_terminal:  # there, `say_errors` is heard
                console.print(Text(f"{row.model}: error: {row.error}"), soft_wrap=True)
            continue
        for name, why in row.unknown.items():
            prose(console, f"{row.model}: {name}: {why}", "yellow")


def _asked(plan: Plan) -> str:
    """What a plan is for."""
    settings = plan.settings
    words = f"rank {settings['rank']}, {settings['sequence']} tokens, {settings['batch']} at once in training, "
    return f"{words}{settings['evaluation_batch']} in evaluation"


def _memory(plans: Sequence[Plan]) -> str:
    sizes = {plan.memory_bytes for plan in plans}
    size = sizes.pop() if len(sizes) == 1 else None
    return f"; {gb(size)} are there" if size is not None else ""


_WORK = ("open", "evaluate", "tune")  # the phases that map the weights
_COLUMNS = ("parameters", "bf16", "runs as", "mapped", "adapter", "evaluate", "tune")


def _table(rows: Sequence[Row], width: int) -> Text:
    """A line a model; where `width` does not hold name and figures, the name has a line of its own above them."""
    figures = [_COLUMNS, *(_figures(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*figures, strict=True)]
    verdicts = [("", ""), *(_verdict(row) for row in rows)]
    names = ["model", *(row.model for row in rows)]
    room = max(map(len, names))
    wide = room + sum(widths) + 2 * len(widths) + 2 + max(len(words) for words, _ in verdicts) <= width
    lines = []
    for name, cells, (words, style) in zip(names, figures, verdicts, strict=True):
        padded = (cell.rjust(size + 1 + wide) for cell, size in zip(cells, widths, strict=True))
        first = name.ljust(room) if wide else f"{name}\n"
        weight = "bold" if name is names[0] else ""
        lines.append(Text.assemble((first + "".join(padded), weight), " " * (1 + wide), (words, style)))
    return Text("\n").join(lines)


def _figures(row: Row) -> Sequence[str]:
    if isinstance(row, Failed):
        return ["-"] * len(_COLUMNS)
    opened = row.phases["open"]
    return (
        "unknown" if row.parameters is None else f"{row.parameters:,}",
        _size(row.weights_bytes["bf16"]),
        str(row.settings["weights"]),
        _size(opened.parts.get("weights", opened.mapped_bytes)),  # a part on a card
        gb(row.adapter_bytes),
        _peak(row.phases["evaluate"]),
        _peak(row.phases["tune"]),
    )


def _verdict(row: Row) -> tuple[str, str]:
    """Words and their style."""
    if isinstance(row, Failed):
        return "error", "red"
    if (
        row.fits
        and row.memory_bytes is not None
        and any(row.phases[name].crowds_out(row.memory_bytes) for name in _WORK)
    ):
        return "fits, weights from disk", "yellow"
    return {True: ("fits", "green"), False: ("does not fit", "red"), None: ("unknown", "yellow")}[row.fits]


def _size(size: int | None) -> str:
    return "unknown" if size is None else gb(size)


def _peak(phase: Phase) -> str:
    return _size(phase.peak_bytes)
