"""Planned against measured memory for the page: from measured.json, or of an older run from its steps and results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.plan.measured import against, how_measured
from halfbyte.report.read import Evidence, as_number
from halfbyte.report.words import bytes_text, number_text

Parts = dict[str, float]
_MINUS = "\N{MINUS SIGN}"


def compared_phases(evidence: Evidence) -> list[tuple[str, Parts, Parts]]:
    """(phase, planned parts, measured parts) in bytes; empty parts are unknown, and a peak that nothing splits has one
    part, "all"."""
    check = _check(evidence)
    if check:
        return [(name.replace("_", " "), _parts(phase["planned"]), _parts(phase["measured"] or {}))
                for name, phase in check["phases"].items()]  # fmt: skip
    rows = []
    for name in ("tune", "evaluate"):
        measured = evidence.measured(name, "peak_bytes")
        rows.append((name, _parts(evidence.phase(name)), {} if measured is None else {"all": measured}))
    return rows


def phase_facts(evidence: Evidence) -> list[tuple[str, str]]:
    """(phase, what was measured of it and how far off the plan was), where the run was measured by phase."""
    facts, check = [], _check(evidence)
    for name, phase in check.get("phases", {}).items():
        measured, difference = phase["measured"], phase["difference"]
        if measured is None:
            facts.append((name.replace("_", " "), "not measured" if check["finished"] else "not measured yet"))
            continue
        peak, seconds = as_number(measured["peak_bytes"]), as_number(measured["seconds"])
        said = [] if peak is None else [bytes_text(peak) + _off(difference["peak"])]
        said += [] if seconds is None else [f"{number_text(seconds)} s" + _off(difference["seconds"])]
        facts.append((name.replace("_", " "), ", ".join(said) or "–"))
    how = how_measured(check) if facts else ""
    return [*facts, ("how", how)] if how else facts


def exact_facts(evidence: Evidence) -> list[tuple[str, str]]:
    """(part, its bytes as measured and whether they are those planned)."""
    facts = []
    for name, part in _check(evidence).get("exact", {}).items():
        measured, off = part["measured"], part["difference_bytes"]
        if measured is not None:
            words = "" if off is None else ", as planned" if off == 0 else f", {off:+,} against the plan"
            facts.append((name, f"{int(measured):,}{words}".replace("-", _MINUS)))
    return facts


def _check(evidence: Evidence) -> dict[str, Any]:
    """Planned against measured; empty for a run that was not measured by phase."""
    return against(evidence.plan or {}, evidence.ledger) if evidence.ledger else {}


def _parts(phase: Mapping[str, Any]) -> Parts:
    parts, peak = phase.get("parts"), as_number(phase.get("peak_bytes"))
    sizes = {str(name): as_number(size) for name, size in parts.items()} if isinstance(parts, Mapping) else {}
    known = {name: size for name, size in sizes.items() if size}
    if known and len(known) == len([size for size in sizes.values() if size != 0]):
        return known
    return {"all": peak} if peak else {}


def _off(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:+.1f} %)".replace("-", _MINUS)
