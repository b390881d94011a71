"""Several models beside each other: one row a model, for the same adapter, sequence and batch.

A model that can't be planned keeps its row, which says why; the others are shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.errors import HalfbyteError
from halfbyte.plan.ladder import Phase, Plan, gb


@dataclass(frozen=True)
class Failed:
    """A model that was asked for by the name `model`, and what is wrong with it."""

    model: str
    error: HalfbyteError

    def to_json(self) -> dict[str, Any]:
        parts = {"what": self.error.what, "where": self.error.where, "found": self.error.found, "do": self.error.do}
        return {"model": self.model, "error": {key: None if v is None else str(v) for key, v in parts.items()}}


Row = Plan | Failed


def gather(models: Sequence[str], plan_one: Callable[[str], Plan]) -> list[Row]:
    """The plan of each model, or why there is none. Raises the error itself where the same one befalls all of them."""
    rows: list[Row] = []
    for model in models:
        try:
            rows.append(plan_one(model))
        except HalfbyteError as error:
            rows.append(Failed(model, error))
    failed = [row for row in rows if isinstance(row, Failed)]
    if failed and len(failed) == len(rows) and len({str(row.error) for row in failed}) == 1:
        raise failed[0].error
    return rows


def exit_code(rows: Sequence[Row]) -> int:
    """That of the first error; else 3 where no model fits, and 0 where one does."""
    errors = [row.error for row in rows if isinstance(row, Failed)]
    if errors:
        return errors[0].exit_code
    return 3 if all(isinstance(row, Plan) and row.fits is False for row in rows) else 0


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """`plan A B C --json`: under "plans" what `plan --json` prints of each, in the order that was asked for; of a model
    that can't be planned, `model` and `error` (what, where, found, do)."""
    return {"schema": 1, "plans": [row.to_json() for row in rows]}


def render(rows: Sequence[Row], console: Console) -> None:
    """Print one table, a row a model, and below it why something in it is unknown or missing."""
    plans = [row for row in rows if isinstance(row, Plan)]
    if plans:
        settings = plans[0].settings
        for_all = f"rank {settings['rank']}, {settings['sequence']} tokens, {settings['batch']} at once in training, "
        for_all += f"{settings['evaluation_batch']} in evaluation{_memory(plans)}"
        console.print(Text(for_all, style="bold"), soft_wrap=True)
    console.print(_table(rows))
    console.print(Text("mapped: the weights in the format that runs; evaluate, tune: peaks beside them", style="dim"))
    for row in rows:
        if isinstance(row, Failed):
            console.print(Text(f"{row.model}: error: {row.error}", style="red"), soft_wrap=True)
            continue
        for name, why in row.unknown.items():
            console.print(Text(f"{row.model}: {name}: {why}", style="yellow"), soft_wrap=True)


def _memory(plans: Sequence[Plan]) -> str:
    sizes = {plan.memory_bytes for plan in plans}
    size = sizes.pop() if len(sizes) == 1 else None
    return f"; {gb(size)} are there" if size is not None else ""


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("parameters", "bf16", "runs as", "mapped", "adapter", "evaluate", "tune"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for plan in rows:
        if isinstance(plan, Failed):
            table.add_row(Text(plan.model), *["-"] * 7, Text("error", style="red"))
            continue
        words, style = {True: ("fits", "green"), False: ("does not fit", "red"), None: ("unknown", "yellow")}[plan.fits]
        table.add_row(
            Text(plan.model),
            "unknown" if plan.parameters is None else f"{plan.parameters:,}",
            _size(plan.weights_bytes["bf16"]),
            plan.settings["weights"],
            _size(plan.phases["open"].parts.get("weights", plan.phases["open"].mapped_bytes)),  # a part on a card
            gb(plan.adapter_bytes),
            _peak(plan.phases["evaluate"]),
            _peak(plan.phases["tune"]),
            Text(words, style=style),
        )
    return table


def _size(size: int | None) -> str:
    return "unknown" if size is None else gb(size)


def _peak(phase: Phase) -> str:
    return _size(phase.peak_bytes)
