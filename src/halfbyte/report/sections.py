"""The sections below the first screen: each is a function from the evidence to what the template shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from halfbyte.evaluate.details import cut, lot, most_changed
from halfbyte.plan.prose import duration
from halfbyte.report import pictures
from halfbyte.report.memory import compared_phases, exact_facts, phase_facts
from halfbyte.report.read import Evidence, Prediction, Variant, as_number
from halfbyte.report.story import (
    LONGEST,
    Row,
    Story,
    counted,
    ranked,
    right_or_wrong,
    shown,
    spoken,
    verdict_kind,
)
from halfbyte.report.words import (
    brief,
    bytes_text,
    difference_text,
    interval_ends,
    is_number_metric,
    item_error,
    label,
    level_text,
    metric_of,
    number_text,
    value_text,
)

SAMPLES = 4  # of each kind

Picture = dict[str, str]  # svg, and title: what it shows, also read aloud

_MEMORY = (
    "Planned and measured peak memory of each phase, part by part; the rest is what can't be told apart when it is "
    "measured. Small models take more than planned, because the C library keeps what is freed; "
    "what is measured of mapped files counts the program's libraries, too"
)


def memory(story: Story) -> Row:
    plan, evidence = story.evidence.plan or {}, story.evidence
    weights, constants = (plan.get(key) or {} for key in ("weights_bytes", "constants_bytes"))
    used = str((evidence.config or {}).get("weights") or "nf4")
    four = "nf4_single" if used == "nf4-single" else "nf4"
    names = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "nf4": "NF4"}
    extra = {"int8": constants.get("int8") or 0, "nf4": constants.get(four) or 0}
    sizes = {name: weights[key] + extra.get(key, 0) for key, name in names.items() if weights.get(key)}
    picture, adapter = None, plan.get("adapter_bytes")
    if sizes:
        told = ", ".join(f"{name} {bytes_text(size)}" for name, size in sizes.items())
        title = f"What the model weighs, areas to scale: {told}" + (
            f", adapter {bytes_text(adapter)}" if adapter else ""
        )
        svg = pictures.ladder(sizes, adapter, names.get(used.partition("-")[0], used))
        picture = {"svg": svg, "title": title}
    rows = compared_phases(evidence)
    drawn = any(planned or measured for _, planned, measured in rows)
    compared = {"svg": pictures.phases(rows), "title": _MEMORY} if drawn else None
    keys = ("adapter_bytes", "gradient_bytes", "optimiser_bytes")
    beside = [(key.removesuffix("_bytes"), bytes_text(plan[key])) for key in keys if plan.get(key) is not None]
    parts = evidence.phase("tune").get("parts")
    planned = [(str(name).replace("_", " "), bytes_text(as_number(size))) for name, size in parts.items()
               if as_number(size) is not None] if isinstance(parts, dict) else []  # fmt: skip
    mapped = [(f"mapped by {stage}", f"{bytes_text(a)} planned, {bytes_text(b)} measured") for stage, a, b in
              _stages(evidence, "mapped_bytes") if a or b]  # fmt: skip
    return {"ladder": picture, "compared": compared, "beside": beside, "parts": planned, "mapped": mapped,
            "phases": phase_facts(evidence), "exact": exact_facts(evidence),
            "has_plan": evidence.plan is not None, "parameters": plan.get("parameters"),
            "adapter_parameters": plan.get("adapter_parameters")}  # fmt: skip


def _stages(evidence: Evidence, key: str) -> list[tuple[str, float | None, float | None]]:
    """(stage, planned bytes, measured bytes)."""
    return [(name, evidence.planned(name, key), evidence.measured(name, key)) for name in ("tune", "evaluate")]


def training(evidence: Evidence) -> Row:
    steps = [step for step in evidence.steps if as_number(step.get("step")) is not None]
    if not steps:
        return {"picture": None, "facts": []}
    last = steps[-1]
    facts = [("optimiser steps", f"{last['step']:,}")]
    tokens, learned, seconds = (
        sum(as_number(step.get(key)) or 0 for step in steps) for key in ("tokens", "learned_tokens", "seconds")
    )
    facts += [("tokens seen", f"{tokens:,.0f}")] if tokens else []
    facts += [("of these learned", f"{learned:,.0f}")] if learned else []
    facts += [("time of the steps", duration(seconds))] if seconds else []
    facts += [("tokens a second", number_text(tokens / seconds))] if tokens and seconds else []
    validated = [step for step in steps if as_number(step.get("validation_loss")) is not None]
    if validated:
        best = min(validated, key=lambda step: float(step["validation_loss"]))
        lowest = f"{number_text(best['validation_loss'])} nats a token, at step {best['step']:,}"
        facts.append(("lowest validation loss", lowest))
    return {
        "picture": {"svg": pictures.losses(steps), "title": "Loss and learning rate by optimiser step"},
        "facts": facts,
    }


def answers(story: Story) -> Row:
    """The pictures item by item: answered against true for numbers, right and wrong for answers, before and after."""
    made: Row = {"pictures": [], "table": None, "sampled": ""}
    base, tuned, metric = story.base, story.tuned, story.metric
    shown = [(v, kind) for v, kind in ((base, "base"), (tuned, "tuned")) if v and v.predictions]
    if not shown or not metric:
        return made
    numbers = {kind: _points(v) for v, kind in shown}
    pairs = _pairs(story)
    if is_number_metric(metric) and any(numbers.values()):
        made["pictures"] = list(_scatters(story, shown, numbers))
        if any(len(_thinned(points)) < len(points) for points in numbers.values()):
            made["sampled"] = f"{pictures.MOST_POINTS} items are drawn, evenly spaced in the order of the true values."
    elif right_or_wrong(metric) and pairs:
        counts = Counter((before == 0, after == 0) for before, after in pairs)
        made["table"] = {
            "rows": [("both right", counts[True, True]), ("only the tuned model right", counts[False, True]),
                     ("only the base right", counts[True, False]), ("both wrong", counts[False, False])],
            "total": len(pairs),
        }  # fmt: skip
    elif pairs:
        svg = pictures.before_after(_thinned(pairs), label(metric))
        made["pictures"] = [{"svg": svg, "title": "Each item before and after tuning; below the line it fell"}]
    return made


def _scatters(
    story: Story, shown: list[tuple[Variant, str]], numbers: Mapping[str, list[tuple[float, float]]]
) -> Iterator[Picture]:
    true = [x for points in numbers.values() for x, _ in points]
    logarithmic = min(true) > 0 and max(true) / min(true) > 20
    low, high = min(true), max(true)
    margin = 0.06 * ((high - low) or 1.0)
    limits = (low / 1.6, high * 1.6) if logarithmic else (low - margin, high + margin)
    guess = next((constant for v, _ in shown if (constant := as_number(v.result.get("fallback"))) is not None), None)
    for variant, kind in shown:
        points = numbers[kind]
        silent, beyond = len(variant.predictions) - len(points), sum(not limits[0] <= y <= limits[1] for _, y in points)
        title = f"{variant.name}: {len(points):,} answers against the true values, equal on the line"
        title += f"; {beyond:,} beyond the frame, at its edge" if beyond else ""
        title += f"; {silent:,} without a number, not drawn" if silent else ""
        svg = pictures.scatter(
            _thinned(points), limits, kind=kind, logarithmic=logarithmic, unit=story.unit, guess=guess,
            quantity=f"answer of {variant.name}",
        )  # fmt: skip
        yield {"svg": svg, "title": title}


def _points(variant: Variant) -> list[tuple[float, float]]:
    """(true, answered) of the items with a number."""
    return [(p.true, p.number) for p in variant.predictions if p.true is not None and p.number is not None]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, evenly spaced in sorted order."""
    if len(points) <= pictures.MOST_POINTS:
        return points
    ordered = sorted(points)
    return [ordered[at * len(ordered) // pictures.MOST_POINTS] for at in range(pictures.MOST_POINTS)]


def _pairs(story: Story) -> list[tuple[float, float]]:
    """The items' own scores before and after (more is worse), for the items that both have."""
    if not story.base or not story.tuned or not story.metric:
        return []
    before = {p.id: item_error(story.base, p, story.metric) for p in story.base.predictions}
    pairs = [(before.get(p.id), item_error(story.tuned, p, story.metric)) for p in story.tuned.predictions]
    shift = 1 if right_or_wrong(story.metric) else 0  # right is 0, wrong is 1
    return [(a + shift, b + shift) for a, b in pairs if a is not None and b is not None]


def differences(story: Story) -> Row:
    """All comparisons: a table, and a picture for each metric."""
    found = story.evidence.comparisons
    rows = [
        {
            "name": f"{brief(item['b'])} against {brief(item['a'])}",
            "metric": label(str(item.get("metric"))),
            "difference": difference_text(item, story.unit),
            "counts": counted(item),
            "verdict": str(item.get("verdict", "")),
            "kind": verdict_kind(item),
        }
        for item in found
    ]
    drawn: dict[str, list[tuple[str, float, float, float, str]]] = {}
    for item in found:
        value, (low, high) = as_number(item["difference"].get("value")), interval_ends(item)
        if value is not None and low is not None and high is not None:
            row = (f"{brief(item['b'], 14)} − {brief(item['a'], 14)}", value, low, high, str(item.get("verdict")))
            drawn.setdefault(str(item.get("metric")), []).append(row)
    made = []
    for name, points in drawn.items():
        metric = metric_of(name)
        percent = metric is not None and metric.in_percent
        unit = (
            " (percentage points)" if percent else f" ({story.unit})" if story.unit and name.startswith("mae") else ""
        )
        sides = {"lower": "left of zero is better", "higher": "right of zero is better"}
        better = next((str(item["better"]) for item in found if item.get("metric") == name and item.get("better")), "")
        svg = pictures.differences(points, f"difference in {label(name)}{unit}", 100 if percent else 1)
        levels = {level_text(item) for item in found if item.get("metric") == name}
        title = f"Differences with {' or '.join(sorted(levels))} intervals" + (
            f"; {sides[better]}" if better in sides else ""
        )
        made.append({"svg": svg, "title": title})
    told = [f"{item['b']} against {item['a']}: {text}" for item in found for text in item.get("warnings") or []]
    return {"rows": rows, "pictures": made, "warnings": told}


def samples(story: Story) -> Row:
    """Items before and after, by a fixed rule: the tuned model's best and worst, and some by lot."""
    variant = story.tuned or story.base
    if not variant or not story.metric or not variant.predictions:
        return {"title": "Answers", "groups": [], "rule": "", "heads": []}
    order = [p for _, p in ranked(variant, story.metric)] or variant.predictions
    drawn = sorted(order, key=lambda p: lot(p.id))[:SAMPLES]
    best, worst = order[:SAMPLES], order[::-1][:SAMPLES]
    chosen = [("Drawn by lot", drawn), *_changed(story), ("Worst", worst), ("Best", best)]
    moved = " then those that tuning changed most;" if story.base and story.tuned else ""
    rule = (
        f"Up to {SAMPLES} items of each kind, and each item once: first some drawn by lot (the smallest SHA-256 of "
        f"their ids, so nobody chose them);{moved} then the worst and best by the {label(story.metric)} of "
        f"{variant.name}. Answers stand as the models gave them."
    )
    heads = [v.name for v in (story.base, story.tuned) if v]
    groups, seen = [], set()
    for name, items in chosen:
        rows = [sample(story, p) for p in items if p.id not in seen]
        seen |= {p.id for p in items}
        groups.append({"name": name, "rows": rows})
    who = "the models" if len(heads) > 1 else variant.name
    return {
        "title": f"What {who} answered, item by item",
        "groups": [group for group in groups if group["rows"]],
        "rule": rule,
        "heads": heads,
    }


def _changed(story: Story) -> list[tuple[str, list[Prediction]]]:
    """The items that changed most from base to tuned."""
    if not story.base or not story.tuned or not story.metric:
        return []
    before, after = (
        {p.id: error for p in variant.predictions if (error := item_error(variant, p, story.metric)) is not None}
        for variant in (story.base, story.tuned)
    )
    found = most_changed(before, after, better="lower", count=SAMPLES)
    names = ("Improved most", "Worsened most")
    return [(name, [story.tuned.by_id[at] for at, _ in rows]) for name, rows in zip(names, found, strict=True)]


def sample(story: Story, item: Prediction) -> Row:
    """An item with the answers of base and tuned model."""
    cells = []
    for variant in (story.base, story.tuned):
        if not variant:
            continue
        found = variant.by_id.get(item.id)
        error = item_error(variant, found, story.metric) if found and story.metric else None
        note = ""
        if error is not None and story.metric:
            note = _judged(story, error)
        if found and found.parsed is None and "answered" in found.scores:
            note = "no number in it" if story.metric == "mae" else "no answer"
        answer = shown(found, LONGEST) if found and spoken(variant) else "" if found else None
        cells.append({"answer": answer, "note": note, "spoken": not found or spoken(variant)})
    return {"prompt": cut(item.prompt, LONGEST, tail=True), "true": cut(item.reference, LONGEST), "cells": cells}


def _judged(story: Story, error: float) -> str:
    """An item's own score in words."""
    metric = str(story.metric)
    if right_or_wrong(metric):
        return "right" if error == -1 else "wrong"
    if metric == "mae":
        return f"off by {value_text(metric, error, story.unit)}"
    return f"{label(metric)}: {value_text(metric, abs(error), story.unit)}"


def facts(evidence: Evidence) -> list[Row]:
    groups = [("Options of the run (run.yaml)", evidence.config, "halfbyte tune RUN.yaml"),
              ("Machine and versions (environment.json)", evidence.environment, "halfbyte tune RUN.yaml")]  # fmt: skip
    made = [{"name": name, "rows": list(_flat(found or {})), "missing": do} for name, found, do in groups]
    keys = ("task", "kind", "model", "weights", "adapter", "device", "fallback", "fallback_source", "limit", "seed",
            "seconds", "fingerprint")  # fmt: skip
    own = evidence.environment or {}
    for name, variant in evidence.variants.items():
        shown_keys = [*keys, *(key for key in ("machine", "versions") if variant.result.get(key) != own.get(key))]
        rows = list(_flat({key: variant.result[key] for key in shown_keys if variant.result.get(key) is not None}))
        made.append({"name": f"Evaluation {name}", "rows": rows, "missing": ""})
    reasons = (evidence.plan or {}).get("reasons")
    if isinstance(reasons, (list, dict)) and reasons:
        pairs = reasons.items() if isinstance(reasons, dict) else enumerate(reasons, 1)
        made.append({"name": "Choices of the plan", "rows": [(str(k), _fact(v)) for k, v in pairs], "missing": ""})
    return made


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _fact(value, str(key))


def _fact(value: object, key: str = "") -> str:
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return (
            bytes_text(value)
            if key.endswith("_bytes")
            else number_text(value, 6)
            if isinstance(value, float)
            else str(value)
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
