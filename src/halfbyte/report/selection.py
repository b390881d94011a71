"""The page of a selection: select.html, one file that needs nothing else.

It says what select.json says and the terminal prints: the recommendation first, then the picture, the table, what was
found of each candidate, and the paired comparisons.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.results import write_atomically
from halfbyte.evaluate.show import figure, interval
from halfbyte.plan.prose import duration
from halfbyte.report import pictures
from halfbyte.report.fill import fill
from halfbyte.report.words import brief, label
from halfbyte.select import show
from halfbyte.select.evidence import Evidence, Probe, Variant
from halfbyte.select.ranking import Ranking, metric_for, value_of
from halfbyte.select.record import Selection

FILE = "select.html"
Row = dict[str, Any]


def write_page(selection: Selection) -> Path:
    """Write the selection's page beside its select.json and return its path. Raises HalfbyteError when the disk
    refuses."""
    file = selection.folder / FILE
    write_atomically(file, render(selection))
    return file


def render(selection: Selection) -> str:
    """The page as HTML."""
    metric = metric_for(selection.look.kind)
    found = selection.recommendation
    reasons = list(found.reasons) if found is not None else []
    return fill(
        "selection.html",
        title=brief(selection.look.task_set.task.name),
        sentence=reasons[0] if reasons else "Nothing is recommended yet.",
        reasons=reasons[1:],
        undecided=bool(found and found.undecided),
        metric=f"{label(metric.name)}, {metric.better} is better",
        picture=_picture(selection, metric),
        probing=any(variant.probe for variant in selection.variants),
        rows=[_row(selection, row, metric) for row in show.rows(selection)],
        candidates=[_candidate(one) for one in selection.evidence],
        left_out=[(name, reason) for name, reason, _ in show.left_out(selection)],
        comparisons=_comparisons(selection, metric),
        notes=show.notes(selection),
        facts=_facts(selection),
    )


def _picture(selection: Selection, metric: Metric) -> str:
    """Every scored variant by the memory that tuning it takes; "" where none has both."""
    place, points = show.places(selection), []
    for variant in selection.variants:
        memory = variant.planned.tune_bytes if variant.planned else None
        for result, kind in ((variant.result, "base"), (variant.probe and variant.probe.result, "tuned")):
            found = result["metrics"].get(metric.name) if result else None
            if found and memory and found["value"] is not None:
                mark = str(place.get(variant.name, ""))
                points.append((mark, float(memory), found["value"], found["low"], found["high"], kind))
    if not points:
        return ""
    guess = value_of(selection.guess, metric) if selection.guess else None
    in_percent = " (%)" if metric.in_percent else f" ({metric.unit})" if metric.unit else ""
    asked = selection.look.asked.budget
    return pictures.score_memory(points, label(metric.name) + in_percent, scale=100 if metric.in_percent else 1,
                                 budget=None if asked is None else float(asked), guess=guess)  # fmt: skip


def _row(selection: Selection, row: show.Row, metric: Metric) -> Row:
    variant, plan, found = row.variant, row.variant.planned, selection.recommendation
    beyond = variant.lengths.share_beyond if variant.lengths else None
    return {
        "place": str(show.places(selection).get(variant.name, "")),
        "name": row.name,
        "chosen": found is not None and found.variant == variant.name,
        "fits": {True: "", False: "does not fit", None: "unknown whether it fits"}[plan.fits] if plan else "",
        "score": _score(variant, metric),
        "probe": _score(variant.probe, metric),
        "evaluate": show.size(plan.evaluate_bytes) if plan else "–",
        "tune": show.size(plan.tune_bytes) if plan else "–",
        "time": duration(plan.seconds) if plan else "–",
        "beyond": "–" if beyond is None else f"{100 * beyond:.1f} %",
        "verdict": show.verdict_of(selection, variant.name) or variant.status,
    }


def _score(tried: Variant | Probe | None, metric: Metric) -> tuple[str, str]:
    """The score and its interval, "" where there is none."""
    value, limits = show.score_cells(tried, metric)
    return ("–" if value == "-" else value), ("" if limits == "-" else limits)


def _candidate(one: Evidence) -> Row:
    lengths = next((variant.lengths for variant in one.variants if variant.lengths), None)
    licence, numbers = one.licence, one.numbers
    return {
        "name": one.candidate.label,
        "model": one.candidate.model + (f" at {one.candidate.revision}" if one.candidate.revision else ""),
        "parameters": "unknown" if one.parameters is None else f"{one.parameters:,}",
        "context": "unknown" if one.context is None else f"{one.context:,}",
        "tokens": ("–", "") if lengths is None else (f"{lengths.mean:,.0f}", f"{lengths.longest:,} at most"),
        "training": ("–", "") if one.training is None else
        (f"{one.training.mean:,.0f}", f"{one.training.longest:,} at most; {one.training.cut:,} cut"),
        "numbers": numbers.style if numbers else "–",
        "example": numbers.example if numbers else "",
        "licence": (licence.value or "unknown") if licence else "unknown",
        "licence_source": licence.source if licence else "",
    }  # fmt: skip


def _comparisons(selection: Selection, metric: Metric) -> list[Row]:
    """A table a ranking: the best, and each of the others against it."""
    tables = []
    for title, ranking in (("After the probe", selection.probed), ("Out of the box", selection.base)):
        if ranking is not None and ranking.against:
            tables.append({"title": title, "best": brief(ranking.best.name), "rows": _against(ranking, metric)})
    return tables


def _against(ranking: Ranking, metric: Metric) -> list[Row]:
    return [
        {
            "name": one.other,
            "difference": figure(one.difference["value"], metric, sign=True),
            "interval": interval(one.difference["low"], one.difference["high"], metric, sign=True),
            "level": f"{100 * one.difference['level']:.4g} %",
            "p": f"{one.p_adjusted:.2g}",
            "verdict": one.verdict,
        }
        for one in ranking.against
    ]


def _facts(selection: Selection) -> list[tuple[str, str]]:
    look, budget = selection.look, selection.look.asked.budget
    task = look.task_set
    limit = f" of more, {selection.limit:,} asked for" if selection.limit is not None else ""
    free = look.device.memory_bytes
    return [
        ("task", task.task.name),
        ("kind", look.kind),
        ("items", f"{len(task.items):,}{limit}"),
        ("budget", show.size(budget) if budget is not None else f"{show.size(free)}, what is free"),
        ("device", look.device.name),
        ("how it would be tuned", look.tuning.source),
        ("seed", str(selection.seed)),
    ]
