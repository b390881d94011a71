"""The training's progress bar: loss, tokens/s, memory and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from halfbyte.progress import left
from halfbyte.tune.loop import StepRecord

Show = Callable[[StepRecord, int | None], None]


@contextmanager
def show_progress(console: Console, steps: int, done: int) -> Iterator[Show]:
    """Give a function that shows a record; without a terminal it prints a line about every twentieth of the run."""
    if not console.is_terminal:
        began = time.monotonic()
        yield lambda record, peak: _print_line(console, steps, record, peak, left(record.step, steps, began, done))
        return
    columns = (
        TextColumn("tune"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("tune", total=steps, completed=done, facts="")

        def show(record: StepRecord, peak: int | None) -> None:
            bar.update(task, completed=record.step, facts=_facts(record, peak))

        yield show


def _facts(record: StepRecord, peak: int | None) -> str:
    memory = "" if peak is None else f"  {peak / 1e9:.2f} GB"
    text = f"loss {record.loss:.3f}  {record.tokens_per_second:,.0f} tokens/s{memory}"
    return text if record.validation_loss is None else f"{text}  validation {record.validation_loss:.3f}"


def _print_line(console: Console, steps: int, record: StepRecord, peak: int | None, rest: str) -> None:
    every = max(1, steps // 20)
    if record.step % every == 0 or record.step in (1, steps) or record.validation_loss is not None:
        console.print(f"step {record.step}/{steps}  {_facts(record, peak)}  {rest}", highlight=False)
