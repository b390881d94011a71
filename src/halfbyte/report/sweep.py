"""The page of a sweep: SWEEP/sweep.html, made of what sweep.json holds. Self-contained like a run's page, and escaped
by its template in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.report import sweep_pictures
from halfbyte.report.words import difference_text, label, number_text, value_text

Row = dict[str, Any]


def write_page(folder: Path, sweep: Mapping[str, Any]) -> Path:
    """Write `folder`/sweep.html about `sweep`, the object of sweep.json, and return its path."""
    file = folder / "sweep.html"
    file.write_text(render(sweep), encoding="utf-8")
    return file


def render(sweep: Mapping[str, Any]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = Markup  # our own SVG: matplotlib has escaped its texts
    verdict, sentence, lead = _headline(sweep)
    return environment.get_template("sweep.html").render(
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        title=str(sweep["study"]),
        verdict=verdict,
        sentence=sentence,
        lead=lead,
        notes=[*sweep["notes"], *_unended(sweep)],
        tiles=_tiles(sweep),
        mattered=_mattered(sweep),
        importances_note=sweep["importances_note"],
        knobs=_knobs(sweep),
        trials=_trials(sweep),
        names=list(sweep["space"]),
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


def _headline(sweep: Mapping[str, Any]) -> tuple[str, str, str]:
    """(verdict, sentence, lead)."""
    best, test = sweep["best"], sweep["test"]
    if best is None:
        return "open", "No trial has been completed yet.", ""
    count = len(sweep["trials"])
    loss = number_text(best["validation_loss"], 4)
    sentence = f"Best of {count} trial{'s' * (count != 1)}: {settings_text(best['values'])} (validation loss {loss})."
    if test is None:
        return "open", sentence, "The winner has not been scored on a test set."
    found = test["comparison"]
    change = (
        f"{value_text(found['metric'], found.get('a_value'))} → {value_text(found['metric'], found.get('b_value'))}"
    )
    lead = (
        f"On the test set, against the base: {label(found['metric'])} {change}, difference {difference_text(found)}: "
    )
    verdict = str(found.get("verdict", ""))
    kind = verdict if verdict in ("better", "worse") else "same"
    return kind, sentence, f"{lead}{verdict}. {test['note']}"


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
    return [*tiles, {"name": "Trials", "kind": "open", "value": str(len(trials)), "lines": lines}]


def _loss_tile(name: str, kind: str, trial: Mapping[str, Any] | None) -> Row:
    if trial is None or trial["validation_loss"] is None:
        return {"name": name, "kind": kind, "value": "–", "lines": ["no validation loss yet"]}
    lines = [f"lowest validation loss of trial {trial['number']}, nats a token"]
    lines += [trial["state"]] if trial["state"] != "complete" else []
    return {"name": name, "kind": kind, "value": number_text(trial["validation_loss"], 4), "lines": lines}


def _mattered(sweep: Mapping[str, Any]) -> Row | None:
    shares = sweep["importances"]
    if not shares:
        return None
    return {"title": "What mattered: each knob's share", "svg": sweep_pictures.importances(shares)}


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


def _trials(sweep: Mapping[str, Any]) -> list[Row]:
    """The trials, best first; those without a loss last."""
    best = sweep["best"]
    order = sorted(
        sweep["trials"],
        key=lambda t: (t["state"] != "complete", t["validation_loss"] is None, t["validation_loss"] or 0, t["number"]),
    )
    return [
        {
            "number": trial["number"],
            "state": trial["state"],
            "cells": [setting_text(trial["values"][key]) if key in trial["values"] else "–" for key in sweep["space"]],
            "loss": number_text(trial["validation_loss"], 4),
            "seconds": "–" if trial["seconds"] is None else f"{trial['seconds']:,.0f}",
            "error": trial["error"],
            "main": best is not None and trial["number"] == best["number"],
        }
        for trial in order
    ]


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
