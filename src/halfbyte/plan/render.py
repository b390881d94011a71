"""The plan for people: the ladder drawn to scale, what each phase needs, and whether it fits. Plain off a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.formats import QUANTISED
from halfbyte.plan.ladder import Plan
from halfbyte.plan.prose import Column, Row, listed, prose, table
from halfbyte.plan.show import render_answers
from halfbyte.plan.stacked import render_bars
from halfbyte.plan.weighing import gb

_BLOCKS = " ▏▎▍▌▋▊▉█"  # eighths of a cell
_LEAST, _MOST = 12, 40  # cells of the longest bar
_BESIDE = 30  # columns of a phase beside what it is made of

# label, key of weights_bytes, key of constants_bytes
_ROWS = (
    ("fp32", "fp32", None),
    ("bf16", "bf16", None),
    ("int8", "int8", "int8"),
    ("nf4-single", "nf4", "nf4_single"),
    ("nf4", "nf4", "nf4"),
)


def render_plan(plan: Plan, console: Console) -> None:
    """Print `plan`: bars and colours on a terminal, the same table without them in a file or a pipe."""
    _title(plan, console)
    console.print(_ladder(plan, console))
    _adapter(plan, console)
    console.print()
    _phases(plan, console)
    console.print()
    render_bars([(name, phase.parts) for name, phase in plan.phases.items()], console)
    _verdict(plan, console)
    render_answers(plan.to_json(), console)
    for note in plan.notes:
        prose(console, f"note: {note}", "dim")


def _title(plan: Plan, console: Console) -> None:
    count = "unknown" if plan.parameters is None else f"{plan.parameters:,}"
    words = f"{count} parameters, {plan.linear_parameters:,} of them in {plan.linear_layers} linear layers"
    words += " that are quantised" * (plan.settings["weights"] in QUANTISED)
    prose(console, f"{plan.model}  {words}", bold=len(plan.model))
    prose(console, f"from {plan.source}" + (f"; packed already as {plan.packed}" if plan.packed else ""), "dim")
    for name, why in plan.unknown.items():
        prose(console, f"{name}: {why}", "yellow")
    console.print()


def _ladder(plan: Plan, console: Console) -> Table:
    """The formats, largest first, and the adapter; nf4-single only where it was asked for."""
    chosen = plan.settings["weights"]
    largest = max((size for size in plan.weights_bytes.values() if size), default=0)
    cells = max(_LEAST, min(_MOST, console.width - 58)) if console.is_terminal else 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("to scale" if cells else "")
    for name in ("", "bytes", "+ constants"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, key, constants in _ROWS:
        if label == "nf4-single" and chosen != label:
            continue
        size = plan.weights_bytes[key]
        extra = f"{plan.constants_bytes[constants]:,}" if constants else ""
        colour = "cyan" if label == chosen else "blue"
        drawn = Text(bar(size or 0, largest, cells), style=colour)
        table.add_row(Text(label, style="bold" if label == chosen else ""), drawn, _size(size), _exact(size), extra)
    dot = bar(plan.adapter_bytes, largest, cells) or ("▏" if cells else "")
    size = plan.adapter_bytes
    table.add_row(Text("adapter", style="bold red"), Text(dot, style="bold red"), gb(size), f"{size:,}", "")
    return table


def bar(size: int, largest: int, cells: int) -> str:
    """`size` to the scale on which `largest` fills `cells`; what is not nothing shows at least an eighth of a cell."""
    if not cells or not largest or not size:
        return ""
    eighths = max(1, round(8 * cells * size / largest))
    full, part = divmod(eighths, 8)
    return _BLOCKS[8] * full + (_BLOCKS[part] if part else "")


def _adapter(plan: Plan, console: Console) -> None:
    settings, base = plan.settings, plan.weights_bytes["nf4"]
    percent = 100 * plan.adapter_bytes / base if base else 0.0
    share = f", {percent:{',.0f' if percent >= 10 else '.2g'}} % of the nf4 weights" if base else ""
    prose(console, f"the adapter is all that is trained: rank {settings['rank']} on {plan.adapter_layers} layers, "
          f"{plan.adapter_parameters:,} parameters in fp32{share}")  # fmt: skip
    prose(console, f"training adds gradients {plan.gradient_bytes:,} and optimiser {plan.optimiser_bytes:,} bytes")
    tables, states = plan.tables_bytes["nf4"], plan.json_bytes["nf4"]
    prose(console, "int8 and nf4: the linear layers packed, the rest in 16 bits; an nf4 file also holds code tables "
          f"({tables:,} bytes) and JSON (about {states:,})", "dim")  # fmt: skip


def _phases(plan: Plan, console: Console) -> None:
    settings = plan.settings
    prose(console, f"needed in {settings['weights']}: {settings['sequence']} tokens, {settings['batch']} at once in "
          f"training, {settings['evaluation_batch']} in evaluation", "bold")  # fmt: skip
    columns = [Column("phase", name=True), Column("peak"), Column("mapped"), Column("made of", left=True)]
    rows: list[Row] = []
    for name, phase in plan.phases.items():
        parts = [f"{part.replace('_', ' ')} {_size(size)}" for part, size in phase.parts.items() if size != 0]
        first, *more = listed(parts, max(_LEAST, min(console.width, 120) - _BESIDE)).splitlines() or ["nothing to do"]
        sizes = (_size(phase.peak_bytes), _size(phase.mapped_bytes)) if phase.parts else ("-", "-")
        rows += [((name, *sizes, first), ""), *((("", "", "", line), "") for line in more)]
    console.print(table(columns, rows, console.width), soft_wrap=True)


def _exact(size: int | None) -> str:
    return "" if size is None else f"{size:,}"


def _size(size: int | None) -> str:
    return "unknown" if size is None else gb(size)


def _verdict(plan: Plan, console: Console) -> None:
    prose(console, "peak: what the system can't take back; mapped: the file's pages that the work reads, clean", "dim")
    console.print()
    words, style = {
        True: ("fits", "bold green"),
        False: ("does not fit", "bold red"),
        None: (f"whether it fits is {plan.why_unknown}", "bold yellow"),
    }[plan.fits]
    prose(console, words, style)
    for reason in plan.reasons:
        prose(console, f"  {reason}")
