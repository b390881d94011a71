"""A selection on the terminal: a table a variant, what was found of each candidate, and the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.show import figure, interval
from halfbyte.plan.ladder import gb
from halfbyte.select.evidence import Evidence, Probe, Variant
from halfbyte.select.ranking import metric_for
from halfbyte.select.record import Selection

_STYLES = {"scored": "", "planned": "dim", "does not fit": "yellow", "too long": "yellow", "failed": "red"}
_WIDEST = 500  # characters
_ARROWS = {"lower": "↓", "higher": "↑"}


def print_selection(selection: Selection, console: Console) -> None:
    """Print everything. The table is never folded: a terminal that is too narrow wraps its lines."""
    metric = metric_for(selection.look.kind)
    table = _table(selection, metric)
    console.print(_Unfolded(table), crop=False)
    console.print(Text("tied: can't be told apart from the best; tuning takes: one item at once, with the weights",
                       style="dim"), soft_wrap=True)  # fmt: skip
    for one in selection.evidence:
        console.print(Text.assemble((one.candidate.label, "bold"), ": ", "; ".join(facts(one))), soft_wrap=True)
    for name, reason, style in left_out(selection):
        console.print(Text(f"{name}: {reason}", style=style), soft_wrap=True)
    for note in notes(selection):
        console.print(Text(note, style="yellow"), soft_wrap=True)
    if selection.recommendation is not None:
        console.print()
        for reason in selection.recommendation.reasons:
            console.print(Text(reason), soft_wrap=True)


@dataclass(frozen=True)
class _Unfolded:
    """A table as wide as it is, whatever the console's width."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widest = options.update_width(_WIDEST)
        yield from console.render(self.table, widest.update_width(Measurement.get(console, widest, self.table).maximum))


def left_out(selection: Selection) -> list[tuple[str, str, str]]:
    """What has no score: its name, the reason, and a style."""
    said = [(row.name, f"{row.variant.status}: {row.variant.reason}", _STYLES[row.variant.status])
            for row in rows(selection) if row.variant.status not in ("scored", "to score")]  # fmt: skip
    probed = [variant for variant in selection.variants if variant.probe and variant.probe.status == "failed"]
    return said + [(v.name, f"the probe failed: {v.probe.reason}", "red") for v in probed if v.probe is not None]


@dataclass(frozen=True)
class Row:
    """A line of the table: a variant, or several of one candidate that differ in nothing that is known of them."""

    name: str
    evidence: Evidence
    variant: Variant


def rows(selection: Selection) -> list[Row]:
    """The ranked variants, best first; then the others as they were asked for."""
    place = places(selection)
    every = [(one, variant) for one in selection.evidence for variant in one.variants]
    ranked = sorted((pair for pair in every if pair[1].name in place), key=lambda pair: place[pair[1].name])
    made = [Row(variant.name, one, variant) for one, variant in ranked]
    alike: dict[tuple[Any, ...], list[tuple[Evidence, Variant]]] = {}
    for one, variant in every:
        if variant.name not in place:
            key = (one.candidate.label, variant.status, variant.reason, variant.planned)
            alike.setdefault(key, []).append((one, variant))
    for group in alike.values():
        one, first = group[0]
        formats = list(dict.fromkeys(variant.weights for _, variant in group))
        whole = f"{one.candidate.label}{f'-{formats[0]}' if len(formats) == 1 else ''} ({len(group)} variants)"
        made.append(Row(first.name if len(group) == 1 else whole, one, first))
    return made


def places(selection: Selection) -> dict[str, int]:
    """The place of each scored variant, by the probes first, then by the scores out of the box."""
    names: list[str] = []
    for ranking in (selection.probed, selection.base):
        if ranking is not None:
            names += [entry.name for entry in ranking.order if entry.name not in names]
    return {name: place for place, name in enumerate(names, 1)}


def facts(one: Evidence) -> list[str]:
    """What was found of a candidate, in a few words each."""
    said = [f"{one.parameters:,} parameters"] if one.parameters is not None else []
    said += [f"context {one.context:,} tokens"] if one.context is not None else []
    lengths = next((variant.lengths for variant in one.variants if variant.lengths), None)
    if lengths is not None:
        said.append(f"{lengths.mean:,.0f} tokens an item, {lengths.longest:,} at most, with the answer")
    if one.training is not None:
        cut = f", {one.training.cut:,} of {one.training.items:,} cut" if one.training.cut else ""
        said.append(f"{one.training.mean:,.0f} a training item, {one.training.longest:,} at most{cut}")
    if one.numbers is not None:
        said.append(f"numbers {one.numbers.style}: {one.numbers.example}")
    if one.licence is not None:
        said.append(f"licence {one.licence.value} ({one.licence.source})" if one.licence.value
                    else f"licence unknown ({one.licence.source})")  # fmt: skip
    return said or ["nothing is known of it"]


def notes(selection: Selection) -> list[str]:
    """The warnings of the evaluations, each once, why a time is not known, and what was planned without a tokenizer."""
    probed = [variant.probe.result for variant in selection.variants if variant.probe]
    results = [result for result in [*(variant.result for variant in selection.variants), *probed] if result]
    found = [f"warning: {text}" for result in results for text in result.get("warnings") or []]
    plans = [variant.planned for variant in selection.variants if variant.planned]
    found += [f"time: {plan.seconds_reason}" for plan in plans if plan.seconds is None]
    for one in selection.evidence:
        plan = next((variant.planned for variant in one.variants if variant.planned and variant.planned.assumed), None)
        if plan is not None:
            label = one.candidate.label
            found.append(f"{label} is planned for items of {plan.tune_tokens:,} tokens, as its tokenizer is not here")
    return list(dict.fromkeys(found))


def score_cells(tried: Variant | Probe | None, metric: Metric) -> tuple[str, str]:
    """The score and its interval."""
    found = (tried.result or {}).get("metrics", {}).get(metric.name) if tried is not None else None
    if found is None:
        return "-", "-"
    return figure(found["value"], metric), interval(found["low"], found["high"], metric)


def size(value: int | None) -> str:
    return "unknown" if value is None else gb(value)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def verdict_of(selection: Selection, name: str) -> str:
    """Beside the best of the ranking that decides: "best", "tied" (can't be told apart), "worse", or "not probed"; ""
    for what has no score."""
    decisive = selection.probed or selection.base
    if decisive is None or name not in places(selection):
        return ""
    if name == decisive.best.name:
        return "best"
    found = next((one for one in decisive.against if one.other == name), None)
    return "not probed" if found is None else "worse" if found.verdict == "worse" else "tied"


def _table(selection: Selection, metric: Metric) -> Table:
    probing = any(variant.probe for variant in selection.variants)
    chosen = selection.recommendation.variant if selection.recommendation else None
    title = f"{selection.look.task_set.task.name}: {metric.name} {_ARROWS[metric.better]}"
    table = Table(title=Text(f"{title}, {metric.text}", style="bold"), title_justify="left", box=None, pad_edge=False)
    heads = [
        "",
        "variant",
        f"{metric.name} (95 % interval)",
        *["after the probe"] * probing,
        "tuning takes",
        "time",
        "",
    ]
    for head in heads:
        table.add_column(head, justify="left" if head == "variant" or head is heads[-1] else "right", no_wrap=True)
    place = places(selection)
    for row in rows(selection):
        variant, plan = row.variant, row.variant.planned
        cells: Sequence[str] = [
            str(place.get(variant.name, "")), row.name, _score(variant, metric),
            *([_score(variant.probe, metric)] if probing else ()), size(plan.tune_bytes) if plan else "-",
            duration(plan.seconds) if plan else "-", verdict_of(selection, variant.name) or variant.status,
        ]  # fmt: skip
        style = "bold" if variant.name == chosen else _STYLES.get(variant.status, "")
        table.add_row(*map(Text, cells), style=style)
    return table


def _score(tried: Variant | Probe | None, metric: Metric) -> str:
    value, limits = score_cells(tried, metric)
    return value if limits == "-" else f"{value} ({limits})"
