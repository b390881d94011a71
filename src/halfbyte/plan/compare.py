"""Several models beside each other: one row a model, for the same adapter, sequence and batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.plan.ladder import Phase, Plan, gb


def to_json(plans: Sequence[Plan]) -> dict[str, Any]:
    """`plan A B C --json`: under "plans" what `plan --json` prints of each, in the order that was asked for."""
    return {"schema": 1, "plans": [plan.to_json() for plan in plans]}


def render(plans: Sequence[Plan], console: Console) -> None:
    """Print one table, a row a model, and below it why something in it is unknown."""
    settings = plans[0].settings
    for_all = f"rank {settings['rank']}, {settings['sequence']} tokens, {settings['batch']} at once in training, "
    for_all += f"{settings['evaluation_batch']} in evaluation{_memory(plans)}"
    console.print(Text(for_all, style="bold"), soft_wrap=True)
    console.print(_table(plans))
    console.print(Text("mapped: the weights in the format that runs; evaluate, tune: peaks beside them", style="dim"))
    for plan in plans:
        for name, why in plan.unknown.items():
            console.print(Text(f"{plan.model}: {name}: {why}", style="yellow"), soft_wrap=True)


def _memory(plans: Sequence[Plan]) -> str:
    sizes = {plan.memory_bytes for plan in plans}
    size = sizes.pop() if len(sizes) == 1 else None
    return f"; {gb(size)} are there" if size is not None else ""


def _table(plans: Sequence[Plan]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("parameters", "bf16", "runs as", "mapped", "adapter", "evaluate", "tune"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for plan in plans:
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
