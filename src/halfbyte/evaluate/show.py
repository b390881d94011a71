"""Evaluations and comparisons as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfbyte.evaluate.metrics import METRICS, Metric
from halfbyte.evaluate.statistics import LEVEL

_ARROWS = {"lower": "↓", "higher": "↑"}  # which way is better
_COLOURS = {"better": "bold green", "worse": "bold red"}
_PERCENT = f"{100 * LEVEL:.0f} %"


def print_result(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what result.json holds."""
    (console or Console()).print(render_result(result))


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Print what comparison.json holds."""
    (console or Console()).print(render_comparison(comparison))


def render_result(result: dict[str, Any]) -> RenderableType:
    known = {metric.name: metric for metric in METRICS[result["kind"]]}
    table = Table(title=Text(f"{result['task']}: {result['variant']}, {result['items']} items"), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column(f"{_PERCENT} interval", justify="right")
    table.add_column("n", justify="right")
    table.add_column("what it is")
    all_answered = not result.get("unanswered")
    for name, found in result["metrics"].items():
        metric = known.get(name)
        if all_answered and name.endswith("_answered"):
            continue  # the same as over all items
        table.add_row(
            Text(f"{name} {_ARROWS.get(found['better'], '')}"),
            figure(found["value"], metric),
            interval(found["low"], found["high"], metric),
            str(found["n"]),
            Text(metric.text if metric else ""),
        )
    speed = f", {result['tokens_per_second']:.0f} tokens/s" if result.get("tokens_per_second") else ""
    took = f"{result['seconds']:.1f} s{speed}" if result.get("seconds") is not None else ""
    memory = ", ".join(
        f"{text} {result[key] / 1e9:.2f} GB"
        for key, text in (("peak_bytes", "peak memory"), ("mapped_bytes", "mapped"), ("cuda_peak_bytes", "on the GPU"))
        if result.get(key)
    )
    last = "; ".join(part for part in (took, memory) if part)
    return Group(table, Text(f"{last}; {_legend()}" if last else _legend()), *_warnings(result))


def render_comparison(comparison: dict[str, Any]) -> RenderableType:
    metric = next((m for m in METRICS[comparison["kind"]] if m.name == comparison["metric"]), None)
    title = f"{comparison['task']}: {comparison['b']} against {comparison['a']}"
    lines = [Text(title, style="bold")]
    rows = [(f"all {comparison['n']} items", comparison)]
    if comparison.get("both_answered"):
        rows.append((f"the {comparison['both_answered']['n']} items that both answered", comparison["both_answered"]))
    for label, row in rows:
        found = row["difference"]
        change = f"{figure(row['a_value'], metric)} -> {figure(row['b_value'], metric)}"
        p_value = "-" if found["p"] is None else f"{found['p']:.2g}"
        change_by = figure(found["value"], metric, sign=True)
        limits = interval(found["low"], found["high"], metric, sign=True)
        lines.append(
            Text.assemble(
                f"  {comparison['metric']} {_ARROWS[comparison['better']]} over {label}: {change}\n"
                f"  difference {change_by} ({_PERCENT} interval {limits}), p {p_value}; "
                f"{row['wins']} wins, {row['losses']} losses, {row['ties']} ties: ",
                (row["verdict"], _COLOURS.get(row["verdict"], "bold")),
            )
        )
    return Group(*lines, Text(f"  difference: {comparison['sign']}", style="dim"), *_warnings(comparison))


def figure(value: float | None, metric: Metric | None, *, sign: bool = False) -> str:
    """A value with its unit; shares in per cent, differences of shares in percentage points."""
    if value is None:
        return "-"
    unit = f" {metric.unit}" if metric is not None and metric.unit else ""
    return _number(value, metric, sign) + unit


def interval(low: float | None, high: float | None, metric: Metric | None, *, sign: bool = False) -> str:
    """Both limits; the unit stands beside the value."""
    if low is None or high is None:
        return "-"
    return f"{_number(low, metric, sign)} to {_number(high, metric, sign)}"


def _number(value: float, metric: Metric | None, sign: bool) -> str:
    plus = "+" if sign else ""
    if metric is not None and metric.share:
        return f"{100 * value:{plus}.1f} {'pp' if sign else '%'}"
    return f"{value:{plus}.4g}" if abs(value) < 1000 else f"{value:{plus},.0f}"


def _legend() -> str:
    return "↓ lower is better, ↑ higher is better"


def _warnings(found: dict[str, Any]) -> list[Text]:
    return [Text(f"warning: {warning}", style="yellow") for warning in found.get("warnings", [])]
