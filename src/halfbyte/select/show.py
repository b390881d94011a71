"""A selection on the terminal: a table a variant, what was found of each candidate, and the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.show import figure, interval
from halfbyte.plan.prose import Column, duration, prose, table
from halfbyte.plan.weighing import gb
from halfbyte.select.evidence import Evidence, Probe, Variant
from halfbyte.select.ranking import metric_for
from halfbyte.select.record import Selection

_STYLES = {"scored": "", "planned": "dim", "does not fit": "yellow", "too long": "yellow", "failed": "red"}
_ARROWS = {"lower": "↓", "higher": "↑"}


def print_selection(selection: Selection, console: Console) -> None:
    """Print everything. Where the table is too wide, the figures stand below the names."""
    metric = metric_for(selection.look.kind)
    _print_table(selection, metric, console)
    prose(console, "tied: can't be told apart from the best; tuning takes: one item at once, with the weights", "dim")
    for one in selection.evidence:
        label = one.candidate.label
        if one.error is None or one.parameters is not None:  # else the reason below says it all
            prose(console, f"{label}: {'; '.join(facts(one))}", bold=len(label))
    for name, reason, style in left_out(selection):
        prose(console, f"{name}: {reason}", style)
    for note in notes(selection):
        prose(console, note, "yellow")
    if selection.recommendation is not None:
        console.print()
        for reason in selection.recommendation.reasons:
            prose(console, reason)
    if selection.earlier is not None and selection.kept:
        prose(console, "The page and select.json are those of the earlier selection, which stands: "
              f"{selection.earlier['recommendation']['reasons'][0]}")  # fmt: skip


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


def _print_table(selection: Selection, metric: Metric, console: Console) -> None:
    probing = any(variant.probe for variant in selection.variants)
    chosen = selection.recommendation.variant if selection.recommendation else None
    title = f"{selection.look.task_set.task.name}: {metric.name} {_ARROWS[metric.better]}, {metric.text}"
    prose(console, title, "bold")
    columns = [Column("", name=True), Column("variant", name=True), Column("against the best", name=True),
               Column(f"{metric.name} (95 % interval)"), *[Column("after the probe")] * probing,
               Column("tuning takes"), Column("time")]  # fmt: skip
    place, made = places(selection), []
    for row in rows(selection):
        variant, plan = row.variant, row.variant.planned
        cells: Sequence[str] = [
            str(place.get(variant.name, "")), row.name, verdict_of(selection, variant.name) or variant.status,
            _score(variant, metric), *([_score(variant.probe, metric)] if probing else ()),
            size(plan.tune_bytes) if plan else "-", duration(plan.seconds) if plan else "-",
        ]  # fmt: skip
        made.append((cells, "bold" if variant.name == chosen else _STYLES.get(variant.status, "")))
    console.print(table(columns, made, console.width), soft_wrap=True)


def _score(tried: Variant | Probe | None, metric: Metric) -> str:
    value, limits = score_cells(tried, metric)
    return value if limits == "-" else f"{value} ({limits})"
