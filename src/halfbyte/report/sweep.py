"""The page of a sweep: SWEEP/sweep.html, made of what sweep.json holds. Self-contained like a run's page, and escaped
by its template in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.evaluate.results import write_atomically
from halfbyte.report import sweep_pictures
from halfbyte.report.fill import fill
from halfbyte.report.words import brief, difference_text, label, number_text, value_text

FILE = "sweep.html"
NAMED = 3  # options that the first sentences name
COLUMNS = 5  # options beyond which the table of trials has them in one column
Row = dict[str, Any]


def write_page(folder: Path, sweep: Mapping[str, Any]) -> Path:
    """Write `folder`/sweep.html about `sweep`, the object of sweep.json, whole or not at all, and return its path.
    Raises HalfbyteError when the disk refuses."""
    file = folder / FILE
    write_atomically(file, render(sweep))
    return file


def render(sweep: Mapping[str, Any]) -> str:
    """The page as HTML."""
    verdict, sentence = _headline(sweep)
    names, trials = _trials(sweep)
    return fill(
        "sweep.html",
        title=brief(str(sweep["study"])),
        verdict=verdict,
        sentence=sentence,
        leads=_leads(sweep),
        notes=[*sweep["notes"], *_unended(sweep)],
        tiles=_tiles(sweep),
        mattered=_mattered(sweep),
        importances_note=sweep["importances_note"],
        knobs=_knobs(sweep),
        trials=trials,
        names=names,
        facts=_facts(sweep),
    )


def setting_text(value: Any) -> str:
    """An option's value in a few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (int, float)):
        return number_text(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def settings_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {setting_text(value)}" for key, value in values.items())


def _headline(sweep: Mapping[str, Any]) -> tuple[str, str]:
    """(verdict, sentence): the best trial by the options that mattered most."""
    best, test = sweep["best"], sweep["test"]
    if best is None:
        return "open", "No trial has been completed yet."
    count, values, order = len(sweep["trials"]), best["values"], [*(sweep["importances"] or {}), *best["values"]]
    named = [key for key in dict.fromkeys(order) if key in values][:NAMED]
    told = settings_text({key: brief(setting_text(values[key]), 30) for key in named})
    more = len(values) - len(named)
    told += f" and {more} more" if more else ""
    loss = number_text(best["validation_loss"], 4)
    sentence = f"Best of {count} trial{'s' * (count != 1)}: {told} (validation loss {loss} nats a token)."
    verdict = "open" if test is None else str(test["comparison"].get("verdict", ""))
    return verdict if verdict in ("better", "worse", "open") else "same", sentence


def _leads(sweep: Mapping[str, Any]) -> list[str]:
    """What mattered, and what the winner scores on the test set."""
    shares, test = list((sweep["importances"] or {}).items()), sweep["test"]
    leads = []
    if shares:
        told = ", ".join(f"{key} {100 * share:.0f} %" for key, share in shares[:NAMED])
        leads.append(f"What mattered{' most' * (len(shares) > NAMED)}: {told}.")
    if sweep["best"] is None:
        return leads
    if test is None:
        return [*leads, "The winner has not been scored on a test set."]
    found = test["comparison"]
    before, after = (value_text(found["metric"], found.get(f"{side}_value")) for side in "ab")
    leads.append(f"On the test set, against the base: {label(found['metric'])} {before} → {after}, difference "
                 f"{difference_text(found)}: {found.get('verdict', '')}. {test['note']}")  # fmt: skip
    return leads


def _unended(sweep: Mapping[str, Any]) -> list[str]:
    states = [trial["state"] for trial in sweep["trials"]]
    return [] if sweep["finished"] else [
        f"The sweep has not ended: {sum(state in ('complete', 'pruned', 'failed') for state in states)} of "
        f"{sweep['trials_asked']} trials have."]  # fmt: skip


def _tiles(sweep: Mapping[str, Any]) -> list[Row]:
    best, trials = sweep["best"], sweep["trials"]
    own = next((trial for trial in trials if sweep["own"] and trial["number"] == 0), None)
    counts = {state: sum(trial["state"] == state for trial in trials) for state in dict.fromkeys(
        ["complete", "pruned", "failed", *(trial["state"] for trial in trials)])}  # fmt: skip
    seconds = sum(trial["seconds"] or 0 for trial in trials)
    tiles = [_loss_tile("Winner", "tuned", best), _loss_tile("The run as it stood", "base", own)]
    if not sweep["own"]:
        tiles[1]["lines"] = ["lies outside the space, so it was not tried"]
    lines = [f"{count} {state}" for state, count in counts.items() if count] + [f"{seconds:,.0f} s of training"]
    return [*tiles, {"name": "Trials", "tag": "", "kind": "open", "value": str(len(trials)), "lines": lines}]


def _loss_tile(name: str, kind: str, trial: Mapping[str, Any] | None) -> Row:
    if trial is None or trial["validation_loss"] is None:
        return {"name": name, "tag": "", "kind": kind, "value": "–", "lines": ["no validation loss yet"]}
    lines = [f"lowest validation loss of trial {trial['number']}, nats a token"]
    lines += [trial["state"]] if trial["state"] != "complete" else []
    return {"name": name, "tag": "", "kind": kind, "value": number_text(trial["validation_loss"], 4), "lines": lines}


def _mattered(sweep: Mapping[str, Any]) -> Row | None:
    shares = sweep["importances"]
    if not shares:
        return None
    return {"title": "Each knob's share", "svg": sweep_pictures.importances(shares)}


def _knobs(sweep: Mapping[str, Any]) -> list[Row]:
    """A picture a knob: the trials' losses against its values."""
    best, made = sweep["best"], []
    losses = [trial for trial in sweep["trials"] if trial["validation_loss"] is not None]
    for number, (key, where) in enumerate(sweep["space"].items()):
        points = [
            sweep_pictures.Point(
                trial["values"][key],
                trial["validation_loss"],
                "best" if best and trial["number"] == best["number"] else trial["state"],
            )
            for trial in losses
            if key in trial["values"]
        ]
        if points:
            svg = sweep_pictures.against(f"knob-{number}", key, where, points)
            made.append({"title": f"Validation loss against {key}", "svg": svg})
    return made


def _trials(sweep: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """(columns of the options, those of numbers with a leading "-"; the trials, best first, those without a loss
    last). Many options share one column."""
    best, space = sweep["best"], sweep["space"]
    together = len(space) > COLUMNS
    names = ["options"] if together else ["-" * _is_number(where) + key for key, where in space.items()]
    order = sorted(
        sweep["trials"],
        key=lambda t: (t["state"] != "complete", t["validation_loss"] is None, t["validation_loss"] or 0, t["number"]),
    )
    rows = []
    for trial in order:
        values = {key: brief(setting_text(value), 60) for key, value in trial["values"].items()}
        rows.append({
            "number": trial["number"],
            "state": trial["state"],
            "cells": [settings_text(values)] if together else [values.get(key, "–") for key in space],
            "loss": number_text(trial["validation_loss"], 4),
            "seconds": "–" if trial["seconds"] is None else f"{trial['seconds']:,.0f}",
            "error": trial["error"],
            "main": best is not None and trial["number"] == best["number"],
        })  # fmt: skip
    return names, rows


def _is_number(where: Any) -> bool:
    """Whether an option's range, or list of values, is of numbers."""
    return isinstance(where, Mapping) or all(type(value) in (int, float) for value in where)


def _facts(sweep: Mapping[str, Any]) -> list[tuple[str, str]]:
    spaces = [(key, _space_text(where)) for key, where in sweep["space"].items()]
    machine = sweep["machine"]
    return [
        *spaces,
        ("model", str(sweep["model"])),
        ("study", str(sweep["study"])),
        ("kept in", str(sweep["storage"])),
        ("seed", str(sweep["seed"])),
        ("judged by", "lowest validation loss of the run"),
        ("machine", f"{machine.get('processor', '')}, {machine.get('cores', '')} cores"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sweep["versions"].items())),
    ]


def _space_text(where: Any) -> str:
    if isinstance(where, list):
        return " | ".join(map(setting_text, where))
    text = f"{setting_text(where['low'])} to {setting_text(where['high'])}"
    text += ", logarithmic" if where.get("log") else ""
    return text + (f", in steps of {setting_text(where['step'])}" if where.get("step") else "")
