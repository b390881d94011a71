"""Classes, fields and calibration of a variant, as result.json holds them under `details`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.evaluate.details import cut
from halfbyte.report import pictures
from halfbyte.report.read import Variant, as_number
from halfbyte.report.story import Row, Story
from halfbyte.report.words import interval_text, money, number_text, value_text

MOST = 30  # rows of a table
_SHARE = "valid"  # a metric that is a share: its figures are per cent


def details(story: Story) -> Row:
    """Of the tuned model, or of the base before there is one; with the base's F1 beside."""
    variant = story.tuned or story.base
    if not variant:
        return {"name": "", "classes": [], "classes_more": 0, "compared": "", "fields": [], "calibrations": []}
    base = story.base if story.tuned and story.base else None
    classes = _classes(variant, base)
    shown = [v for v in (story.base, story.tuned) if v]
    made = [_calibration(v, story.unit, "tuned" if v is story.tuned else "base") for v in shown]
    return {
        "name": variant.name,
        "classes": classes[:MOST],
        "classes_more": max(0, len(classes) - MOST),
        "compared": base.name if base else "",
        "fields": _fields(variant)[:MOST],
        "calibrations": [row for row in made if row],
    }


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    """What `value` holds under `key`, if both are mappings; else nothing."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _rows(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = value.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _of(variant: Variant, key: str) -> list[Mapping[str, Any]]:
    return _rows(_mapping(variant.result, "details"), key)


def _classes(variant: Variant, base: Variant | None) -> list[Row]:
    """The lowest F1 first."""
    before = {row.get("class"): as_number(row.get("f1")) for row in _of(base, "classes")} if base else {}
    rows = sorted(_of(variant, "classes"), key=lambda row: (as_number(row.get("f1")) or 0.0, str(row.get("class"))))
    return [
        {"name": cut(str(row.get("class")), 60), "items": number_text(as_number(row.get("support")), 9),
         "figures": [value_text(_SHARE, as_number(row.get(key))) for key in ("precision", "recall", "f1")],
         "before": value_text(_SHARE, before.get(row.get("class")))}
        for row in rows
    ]  # fmt: skip


def _fields(variant: Variant) -> list[Row]:
    return [
        {"name": cut(str(row.get("field")), 60), "value": value_text(_SHARE, as_number(row.get("value"))),
         "interval": interval_text(_SHARE, as_number(row.get("low")), as_number(row.get("high"))),
         "n": number_text(as_number(row.get("n")), 9)}
        for row in _of(variant, "fields")
    ]  # fmt: skip


def _calibration(variant: Variant, unit: str, kind: str) -> Row | None:
    """The picture of true values by answers, and what its slope says; None of one bin."""
    found = _mapping(_mapping(variant.result, "details"), "calibration")
    pairs = [(as_number(row.get("predicted")), as_number(row.get("true"))) for row in _rows(found, "bins")]
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    if len(points) < 2:
        return None
    told = ", ".join(f"{money(x, unit)} → {money(y, unit)}" for x, y in points)
    title = f"{variant.name}: mean true value where it answers about so much, equal on the line: {told}"
    svg = pictures.calibration(points, kind=kind, unit=unit, quantity=f"answer of {variant.name}")
    return {"picture": {"svg": svg, "title": title}, "text": _slope(variant.name, found.get("slope"))}


def _slope(name: str, slope: object) -> str:
    if not isinstance(slope, Mapping) or (value := as_number(slope.get("value"))) is None:
        return f"The answers of {name} do not vary, so they follow nothing."
    low, high = as_number(slope.get("low")), as_number(slope.get("high"))
    text = f"One more in the answer of {name} goes with {number_text(value)} more in the true value"
    if low is None or high is None:
        return f"{text}."
    text += f" (95 % interval {number_text(low)} to {number_text(high)})"
    if low <= 1 <= high:
        return f"{text}: calibrated, as far as these items show."
    return f"{text}: {'its answers are more extreme than the truth' if high < 1 else 'its answers are too timid'}."
