"""Evaluations and comparisons as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfbyte.evaluate.declared import metric_named
from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.several import names
from halfbyte.evaluate.statistics import LEVEL
from halfbyte.notebook import table
from halfbyte.output import Output
from halfbyte.plan.prose import Column, Row, prose
from halfbyte.plan.prose import table as shown_table

_ARROWS = {"lower": "↓", "higher": "↑"}  # which way is better
_COLOURS = {"better": "bold green", "worse": "bold red"}


class ShownResult(dict[str, Any]):
    """What result.json holds; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        rows = [
            (name, figure(found["value"], metric), interval(found["low"], found["high"], metric), found["n"])
            for name, found in self["metrics"].items()
            for metric in [metric_named(self["kind"], name)]
        ]
        title = f"{self['task']}: {self['variant']}, {self['items']} items"
        return table(title, ("metric", "value", f"{_percent(LEVEL)} interval", "n"), rows, warnings_of(self))


class ShownComparison(dict[str, Any]):
    """What comparison.json holds of one comparison; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        metric, found = _metric(self), self["difference"]
        a, b = (names([self])[self[f"{side}_folder"]] for side in "ab")
        rows = [
            (a, figure(self["a_value"], metric)),
            (b, figure(self["b_value"], metric)),
            ("difference", figure(found["value"], metric, sign=True)),
            (f"{_percent(found['level'])} interval", interval(found["low"], found["high"], metric, sign=True)),
            ("p", _chance(self, found).removeprefix("p ")),
            ("wins, losses, ties", f"{self['wins']}, {self['losses']}, {self['ties']}"),
            ("verdict", self["verdict"]),
        ]
        title = f"{self['task']}: {b} against {a} by {self['metric']}, {self['n']} items"
        return table(title, (), rows, [detectable(self, metric), *self.get("warnings", ())])


def print_result(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what result.json holds."""
    (console or Output()).print(render_result(result))


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Print what comparison.json holds of one comparison."""
    (console or Output()).print(render_comparison(comparison))


def print_comparisons(comparisons: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print those that `compare_several` made together."""
    known = names(comparisons)
    for comparison in comparisons:
        (console or Output()).print(render_comparison(comparison, known))


def print_results(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print what `list_results` found: a table for each experiment, those of one task together."""
    console = console or Output()
    by_task: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], {}).setdefault(row["fingerprint"], []).append(row)
    for number, (task, experiments) in enumerate(by_task.items()):
        if number:
            console.print()
        if len(by_task) > 1 or len(experiments) > 1:
            _say_task(task, list(experiments.values()), number > 0, console)
        for found in experiments.values():
            _print_experiment(found, console, told=len(experiments) > 1)


def _say_task(task: str, experiments: Sequence[Sequence[dict[str, Any]]], another: bool, console: Console) -> None:
    """A sentence: how many results there are of a task, and which of them compare."""
    count = sum(map(len, experiments))
    text = f"{task}: {count} result{'s' * (count > 1)}"
    if len(experiments) > 1:
        text += f" of {len(experiments)} experiments; only results of the same experiment compare"
    prose(console, text + ("; none compares with those of another task." if another else "."), "bold")


def _print_experiment(rows: Sequence[dict[str, Any]], console: Console, *, told: bool) -> None:
    """A line for each result of one experiment, and with `told` what makes it another one than the first. What all
    have in common stands above and not in each line."""
    first = rows[0]
    name, better = first["metric"]["name"], first["metric"]["better"]
    metric = metric_named(first["kind"], name)
    alike = Counter(row["variant"] for row in rows)
    cells = [_cells(row, metric, f"{row['variant']} in {row['folder']}" if alike[row["variant"]] > 1 else "")
             for row in rows]  # fmt: skip
    if any(row["leaks"] for row in rows):
        for row, line in zip(rows, cells, strict=True):
            line["value"] += " *" if row["leaks"] else "  "
    columns = {"variant": Column("variant", name=True), "model": Column("model", name=True),
               "weights": Column("weights", left=True), "adapter": Column("adapter", left=True),
               "items": Column("items"), "value": Column(f"{name} {_ARROWS.get(better, '')}"),
               "memory": Column("memory"), "seconds": Column("seconds")}  # fmt: skip
    common = {key: cells[0][key] for key in ("items", "model") if len({row[key] for row in cells}) == 1}
    above = [f"{common['items']} items"] if "items" in common else []
    above += [common["model"]] if common.get("model", "-") != "-" else []
    prose(console, f"{first['task']}: {name} with its {_percent(LEVEL)} interval, best first"
                   + (f" ({', '.join(above)})" if above else ""))  # fmt: skip
    shown = [key for key in columns if key not in common]
    made: list[Row] = [([row[key] for key in shown], "") for row in cells]
    console.print(shown_table([columns[key] for key in shown], made, console.width), soft_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        for leak in row["leaks"] or ():
            prose(console, f"* {line['variant']}: {leak}", "yellow")
    for line in first["differs"] if told else ():
        prose(console, f"another experiment, {line}", "yellow")


def _cells(row: Mapping[str, Any], metric: Metric | None, named: str) -> dict[str, str]:
    """A line of the table; `named` stands for the variant's name where that is not enough."""
    found, adapter = row["metric"], row["adapter"] or {}
    spread = "no spread" if found["low"] == found["high"] is not None else interval(found["low"], found["high"], metric)
    return {
        "variant": named or row["variant"],
        "model": (row["model"] or "-").rstrip("/").rpartition("/")[2],
        "weights": row["weights"] or "-",
        "adapter": f"rank {adapter['rank']}" if "rank" in adapter else "-",
        "items": str(row["items"]),
        "value": f"{figure(found['value'], metric)} ({spread})",
        "memory": "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f} GB",
        "seconds": "-" if row["seconds"] is None else f"{row['seconds']:.1f}",
    }


def render_result(result: dict[str, Any]) -> RenderableType:
    grid = Table(title=Text(f"{result['task']}: {result['variant']}, {result['items']} items"), title_justify="left")
    grid.add_column("metric")
    grid.add_column("value", justify="right")
    grid.add_column(f"{_percent(LEVEL)} interval", justify="right")
    grid.add_column("n", justify="right")
    grid.add_column("what it is")
    all_answered = not result.get("unanswered")
    for name, found in result["metrics"].items():
        metric = metric_named(result["kind"], name)
        if all_answered and name.endswith("_answered"):
            continue  # the same as over all items
        grid.add_row(
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
    chance = result.get("chance_level")
    random = "" if chance is None else f"choosing at random scores {100 * chance:.1f} %"
    last = "; ".join(part for part in (random, took, memory) if part)
    return Group(grid, Text(f"{last}; {_legend()}" if last else _legend()), *_warnings(result))


def render_comparison(comparison: dict[str, Any], known: Mapping[str, str] | None = None) -> RenderableType:
    """`known`: what each folder is called, as `several.names` gives it."""
    metric = _metric(comparison)
    a, b = ((known or names([comparison]))[comparison[f"{side}_folder"]] for side in "ab")
    lines = [Text(f"{comparison['task']}: {b} against {a}", style="bold")]
    rows = [(f"all {comparison['n']} items", comparison)]
    if comparison.get("both_answered"):
        rows.append((f"the {comparison['both_answered']['n']} items that both answered", comparison["both_answered"]))
    for label, row in rows:
        found = row["difference"]
        change = f"{figure(row['a_value'], metric)} -> {figure(row['b_value'], metric)}"
        change_by = figure(found["value"], metric, sign=True)
        limits = interval(found["low"], found["high"], metric, sign=True)
        lines.append(
            Text.assemble(
                f"  {comparison['metric']} {_ARROWS[comparison['better']]} over {label}: {change}\n"
                f"  difference {change_by} ({_percent(found['level'])} interval {limits}), "
                f"{_chance(comparison, found)}; {row['wins']} wins, {row['losses']} losses, {row['ties']} ties: ",
                (row["verdict"], _COLOURS.get(row["verdict"], "bold")),
            )
        )
    sign = comparison["sign"].replace("b less a", f"{b} less {a}")
    lines.append(Text(f"  difference: {sign}; {detectable(comparison, metric)}", style="dim"))
    return Group(*lines, *_warnings(comparison))


def _metric(comparison: dict[str, Any]) -> Metric | None:
    """How the metric of a comparison is shown."""
    return metric_named(comparison["kind"], comparison["metric"])


def _chance(comparison: dict[str, Any], found: dict[str, Any]) -> str:
    how = {"holm": "Holm: each interval has its step's level", "bonferroni": "Bonferroni"}
    named = how.get(comparison.get("correction") or "")
    together = f" (adjusted for {comparison['comparisons']} comparisons, {named})" if named else ""
    return "no p" if found["p_adjusted"] is None else f"p {found['p_adjusted']:.2g}{together}"


def detectable(comparison: dict[str, Any], metric: Metric | None) -> str:
    """What these items could have shown, and how many would show a given difference, in words."""
    found, needed = comparison["detectable"], comparison.get("needed")
    chance = f"with a chance of {100 * found['power']:.0f} %"
    if found["value"] is None:
        text = "what these items could detect is not known"
        if found["method"] == "mcnemar exact":
            text = "so few items detect no difference"
    else:
        text = f"these items detect {_size(found['value'], metric)} or more {chance}"
    if needed is None:
        return text
    size = _size(abs(needed["difference"]), metric)
    if needed["items"] is None:
        return f"{text}; how many items would detect {size} is not known"
    return f"{text}; {size} would take {needed['items']:,} items"


def _size(value: float, metric: Metric | None) -> str:
    return figure(value, metric, sign=True).removeprefix("+")


def _percent(level: float) -> str:
    return f"{100 * level:.4g} %"


def figure(value: float | None, metric: Metric | None, *, sign: bool = False) -> str:
    """A value with its unit; shares and F1 in per cent, their differences in percentage points."""
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
    if metric is not None and metric.in_percent:
        return f"{100 * value:{plus}.1f} {'pp' if sign else '%'}"
    return number(value, plus)


def number(value: float, plus: str = "") -> str:
    """Four digits of `value`, or all before the point where there are more."""
    return f"{value:{plus}.4g}" if abs(value) < 1000 else f"{value:{plus},.0f}"


def _legend() -> str:
    return "↓ lower is better, ↑ higher is better"


def warnings_of(found: Mapping[str, Any]) -> list[str]:
    """All that a result or a comparison warns of, first what gives its items away."""
    return [*(found.get("leaks") or ()), *(found.get("warnings") or ())]


def _warnings(found: dict[str, Any]) -> list[Text]:
    return [Text(f"warning: {warning}", style="yellow") for warning in warnings_of(found)]
