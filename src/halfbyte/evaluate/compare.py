"""Did it get better? Two evaluations of one frozen experiment, paired by item.

The difference is b's metric less a's, in the metric's own direction: below 0 is better for an error, above 0 for a
share. A verdict other than "no detectable difference" needs both the 95 % interval of the difference to leave 0 out and
p < 0.05. Items of one group are resampled and swapped together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.errors import ConfigError, DataError, nearest
from halfbyte.evaluate.metrics import Metric, Table, metrics_of
from halfbyte.evaluate.results import (
    SCHEMA,
    Evaluation,
    Prediction,
    as_json,
    few_units,
    flat_warning,
    plain,
    read_evaluation,
    table_of,
    units_of,
)
from halfbyte.evaluate.statistics import LEVEL, Floats, paired_difference, right_wrong_difference, verdict

_SHOWN = 5
_LABELS = {
    "data": "the items (ids, groups, prompts, references or options) differ",
    "shots": "the examples before the prompts differ",
}


@dataclass(frozen=True)
class _Pair:
    """Two evaluations with their items in the same order."""

    a: Sequence[Prediction]
    b: Sequence[Prediction]

    def only(self, keep: Sequence[bool]) -> _Pair:
        return _Pair([line for line, k in zip(self.a, keep, strict=True) if k],
                     [line for line, k in zip(self.b, keep, strict=True) if k])  # fmt: skip


def compare_folders(a: Path, b: Path, *, metric: str | None = None, seed: int = 0) -> dict[str, Any]:
    """What comparison.json holds: b against a, by `metric` (by default the first one of the task's kind).

    `wins` counts the items on which b is better, `losses` those on which a is. For numbers, `both_answered` holds the
    same figures over the items to which both gave one, so that a gain in format alone shows as that.

    Raises DataError for a folder that holds no evaluation, ConfigError when the two are not the same experiment (naming
    what differs) or there is no such metric.
    """
    one, other = read_evaluation(a), read_evaluation(b)
    _same_experiment(one, other)
    pair = _paired(one, other)
    chosen, warnings = _metric(one.kind, pair, metric)
    compared = _compare(chosen, pair, seed)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "task": one.result["task"],
        "kind": one.kind,
        "fingerprint": one.result["fingerprint"],
        "a": one.result["variant"],
        "b": other.result["variant"],
        "a_folder": str(a),
        "b_folder": str(b),
        "metric": chosen.name,
        "better": chosen.better,
        "unit": chosen.unit,
        "sign": f"b less a; {'below' if chosen.better == 'lower' else 'above'} 0 is better",
        **compared,
        "seed": seed,
    }
    warnings += few_units(int(units_of(pair.a).max()) + 1)
    warnings += _doubts(compared["difference"])
    if one.kind == "number" and metric is None:
        warnings += _both_answered(found, chosen, pair, seed)
    return dict(plain(found | {"warnings": warnings}))


def _same_experiment(one: Evaluation, other: Evaluation) -> None:
    if one.result["fingerprint"] == other.result["fingerprint"]:
        return
    mine, theirs = one.result["fingerprint_parts"], other.result["fingerprint_parts"]
    differ = []
    for key in dict.fromkeys([*mine, *theirs]):
        if mine.get(key) != theirs.get(key):
            told = f"{key}: {json.dumps(mine.get(key))} against {json.dumps(theirs.get(key))}"
            differ.append(_LABELS.get(key, told))
    raise ConfigError("the two evaluations are not of the same experiment", where=f"{one.folder} and {other.folder}",
                      found="\n         ".join(differ) or "other fingerprints",
                      do="evaluate both with the same task file, data and limit")  # fmt: skip


def _paired(one: Evaluation, other: Evaluation) -> _Pair:
    by_id = {line["id"]: line for line in other.predictions}
    missing = [line["id"] for line in one.predictions if line["id"] not in by_id]
    ids = {line["id"] for line in one.predictions}
    more = [line["id"] for line in other.predictions if line["id"] not in ids]
    if missing or more or len(by_id) != len(other.predictions):
        parts = [f"{len(lost)} items are missing in {folder}: {', '.join(map(repr, lost[:_SHOWN]))}"
                 for lost, folder in ((missing, other.folder), (more, one.folder)) if lost]  # fmt: skip
        raise DataError("the two evaluations don't hold the same items", where=f"{one.folder} and {other.folder}",
                        found="\n         ".join(parts) or "an id stands twice", do="evaluate again")  # fmt: skip
    return _Pair(one.predictions, [by_id[line["id"]] for line in one.predictions])


def _metric(kind: str, pair: _Pair, asked: str | None) -> tuple[Metric, list[str]]:
    """The metric that decides, and what to say about it."""
    table = table_of(pair.a)
    known = {metric.name: metric for metric in metrics_of(kind, table)}
    if asked is not None and asked not in known:
        raise ConfigError("there is no such metric", where=f"a task of kind '{kind}'", found=repr(asked),
                          do=nearest(asked, known, "metrics"))  # fmt: skip
    chosen = known[asked] if asked else next(iter(known.values()))
    if kind == "loss" and not np.array_equal(table["tokens"], table_of(pair.b)["tokens"]):
        if asked is None:
            return known["bits_per_byte"], ["the tokenizers differ, so bits per byte are compared, not loss a token"]
        if asked != "bits_per_byte":
            return chosen, [f"the tokenizers differ, so {asked} does not compare; bits_per_byte does"]
    return chosen, []


def _compare(metric: Metric, pair: _Pair, seed: int) -> dict[str, Any]:
    """Values, difference, wins, losses, ties and verdict of one metric."""
    a, b, unit_of = table_of(pair.a), table_of(pair.b), units_of(pair.a)
    gain = _gains(metric, a, b)
    wins, losses = int(np.count_nonzero(gain > 0)), int(np.count_nonzero(gain < 0))
    first, second = metric.statistic(a, unit_of), metric.statistic(b, unit_of)
    every = np.ones((1, first.units))
    whole = metric.n(a) == metric.n(b) == len(pair.a)
    if metric.share and whole and first.units == len(pair.a):
        up, down = (wins, losses) if metric.better == "higher" else (losses, wins)
        found, test = right_wrong_difference(up, down, len(pair.a))
    else:
        found, test = paired_difference(first, second, seed=seed)
    return {
        "n": len(pair.a),
        "a_value": float(first.value(every)[0]),
        "b_value": float(second.value(every)[0]),
        "difference": as_json(found) | {"p": test.p, "level": LEVEL, "method": found.method, "test": test.method},
        "wins": wins,
        "losses": losses,
        "ties": len(gain) - wins - losses,
        "verdict": verdict(found, test, metric.better),
    }


def _doubts(difference: dict[str, Any]) -> list[str]:
    """What to say where the interval, or the test, can't be taken at its word."""
    if difference["method"] == "no spread":
        return [flat_warning(["the difference"])]
    if difference["low"] is None:
        return []
    if (difference["low"] > 0 or difference["high"] < 0) == (difference["p"] < 1 - LEVEL):
        return []
    return ["interval and test disagree, as they do when few items make up most of the difference; no difference is"
            " called detectable then"]  # fmt: skip


def _gains(metric: Metric, a: Table, b: Table) -> Floats:
    """By how much b is better on each item that counts in both."""
    counted = (metric.denominator(a) > 0) & (metric.denominator(b) > 0)
    change = np.asarray(b[metric.item] - a[metric.item], dtype=np.float64)[counted]
    return change if metric.item_better == "higher" else -change


def _both_answered(found: dict[str, Any], metric: Metric, pair: _Pair, seed: int) -> list[str]:
    """Add the comparison over the items that both answered, where that is another one; what to say about it."""
    keep = [bool(x["scores"]["answered"] and y["scores"]["answered"]) for x, y in zip(pair.a, pair.b, strict=True)]
    if all(keep):
        return []
    if not any(keep):
        found["both_answered"] = None
        return ["no item has an answer from both: the difference is one of format, or nothing"]
    found["both_answered"] = _compare(metric, pair.only(keep), seed)
    if found["verdict"] != "no detectable difference" and found["both_answered"]["verdict"] != found["verdict"]:
        return [f"'{found['verdict']}' is a matter of format: on the {sum(keep)} items that both answered with a number"
                f" the verdict is '{found['both_answered']['verdict']}'"]  # fmt: skip
    return []


@dataclass(frozen=True)
class Change:
    """One item before and after."""

    id: str
    prompt: str
    reference: str
    a_answer: str | None
    b_answer: str | None
    a_score: float
    b_score: float
    gain: float  # above 0: b is better


def changes(a: Path, b: Path, *, metric: str | None = None, count: int = 10) -> tuple[list[Change], list[Change]]:
    """The `count` items that improved most from a to b, and those that worsened most; errors as `compare_folders`."""
    one, other = read_evaluation(a), read_evaluation(b)
    _same_experiment(one, other)
    pair = _paired(one, other)
    chosen, _ = _metric(one.kind, pair, metric)
    sign = 1.0 if chosen.item_better == "higher" else -1.0
    rows = []
    for x, y in zip(pair.a, pair.b, strict=True):
        before, after = float(x["scores"][chosen.item]), float(y["scores"][chosen.item])
        rows.append(Change(x["id"], x["prompt"], x["reference"], x["answer"], y["answer"], before, after,
                           sign * (after - before)))  # fmt: skip
    rows.sort(key=lambda row: (-row.gain, row.id))
    improved = [row for row in rows if row.gain > 0]
    worsened = [row for row in reversed(rows) if row.gain < 0]
    return improved[:count], worsened[:count]
