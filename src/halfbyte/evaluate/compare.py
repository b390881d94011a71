"""Did it get better? Evaluations of one frozen experiment, paired by item.

The difference is b's metric less a's, in the metric's own direction: below 0 is better for an error, above 0 for a
share. The p-value decides whether it is more than chance, adjusted by Holm where several are compared with a, and the
interval has the level that goes with it. Items of one group are resampled and swapped together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.errors import ConfigError, DataError, nearest
from halfbyte.evaluate.declared import declared_by_both, metrics_for
from halfbyte.evaluate.details import most_changed
from halfbyte.evaluate.fingerprint import require_same
from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.paired import Paired, paired_all
from halfbyte.evaluate.results import (
    SCHEMA,
    Evaluation,
    Prediction,
    doubt_warnings,
    few_units,
    flat_warning,
    plain,
    read_evaluation,
    table_of,
)
from halfbyte.evaluate.several import bonferroni, holm
from halfbyte.evaluate.show import ShownComparison
from halfbyte.evaluate.statistics import Estimate

_SHOWN = 5
_IDENTICAL = (
    "both gave the same answer, with the same score, to each of the {n} items, as one model would: if they should be"
    " two, look whether the adapter was loaded"
)


@dataclass(frozen=True)
class _Pair:
    """Two evaluations with their items in the same order."""

    one: Evaluation
    other: Evaluation
    a: Sequence[Prediction]
    b: Sequence[Prediction]

    @classmethod
    def of(cls, one: Evaluation, other: Evaluation, across: Collection[str] = ()) -> _Pair:
        require_same(one, other, across)
        return cls(one, other, one.predictions, _same_order(one, other))

    def identical(self) -> bool:
        """Whether both gave the same answer, with the same scores, to every item."""
        return all(
            x["answer"] == y["answer"] and x["scores"] == y["scores"] for x, y in zip(self.a, self.b, strict=True)
        )

    def answered(self) -> tuple[list[Prediction], list[Prediction]]:
        """The items to which both gave an answer."""
        both = zip(self.a, self.b, strict=True)
        kept = [(x, y) for x, y in both if x["scores"]["answered"] and y["scores"]["answered"]]
        return [x for x, _ in kept], [y for _, y in kept]


def compare_folders(
    a: Path, b: Path, *, metric: str | None = None, seed: int = 0, across: Collection[str] = ()
) -> dict[str, Any]:
    """What comparison.json holds: b against a, by `metric` (by default the first one of the task's kind).

    `across` names parts of the fingerprint that may differ because they are what is compared ("shots": the same items
    asked with other examples before them).

    `wins` counts the items on which b is better, `losses` those on which a is. For numbers, `both_answered` holds the
    same figures over the items to which both gave one, so that a gain in format alone shows as that.

    Raises DataError for a folder that holds no evaluation, ConfigError when the two are not the same experiment (naming
    what differs), are one and the same folder, or there is no such metric.
    """
    return compare_several([a, b], metric=metric, seed=seed, across=across)[0]


def compare_several(
    folders: Sequence[Path],
    *,
    metric: str | None = None,
    seed: int = 0,
    detect: float | None = None,
    across: Collection[str] = (),
    among: int | None = None,
) -> list[dict[str, Any]]:
    """Each of `folders` but the first one against the first one, their p-values adjusted together.

    `detect` is a difference (of shares: a share, so that 0.02 are two points): `needed` then says how many items would
    detect it. `across`, what is returned and what is raised are as with `compare_folders`; ConfigError where `detect`
    is 0 or beyond what the metric can reach. `among`: the first one was picked by these very items, as one of so many
    pairs might have been, and the p-values are corrected for all of them (see `bonferroni`).
    """
    if detect is not None and not (np.isfinite(detect) and detect != 0):
        raise ConfigError("the difference to detect must be a finite number other than 0", found=f"{detect:g}",
                          do="name a difference, e.g. --detect 0.02")  # fmt: skip
    _require_distinct(folders)
    one = read_evaluation(folders[0])
    pairs = [_Pair.of(one, read_evaluation(folder), across) for folder in folders[1:]]
    chosen = [_metric(pair, metric) for pair in pairs]
    for which, _ in chosen:
        _check_reach(detect, which)
    asked = [(which, pair.a, pair.b) for pair, (which, _) in zip(pairs, chosen, strict=True)]
    made = paired_all(asked, seed=seed, together=among or len(pairs))
    frames = [_frame(pair, which, len(pairs), among, seed) for pair, (which, _) in zip(pairs, chosen, strict=True)]
    judged = _judged(made, detect, among)
    for pair, frame, paired, (row, found), (_, told) in zip(pairs, frames, made, judged, chosen, strict=True):
        frame |= row
        doubts = [_IDENTICAL.format(n=paired.n)] if pair.identical() else _doubts(found, paired)
        frame["warnings"] = [*_leaks(pair), *told, *few_units(paired.units, {"the difference": found.method}), *doubts]
    if one.kind == "number" and metric is None:
        _add_both_answered(frames, pairs, made, detect)
    return [ShownComparison(plain(frame)) for frame in frames]


def _check_reach(detect: float | None, metric: Metric) -> None:
    """Raises ConfigError for a difference that no two results can have."""
    if detect is not None and metric.widest is not None and abs(detect) > metric.widest:
        raise ConfigError(f"no two results differ so much in {metric.name}", where="--detect", found=f"{detect:g}",
                          do=f"name a difference between {-metric.widest:g} and {metric.widest:g}, not 0"
                          + "; a percentage point is 0.01" * metric.in_percent)  # fmt: skip


def _require_distinct(folders: Sequence[Path]) -> None:
    known: dict[Path, list[Path]] = {}
    for folder in folders:
        known.setdefault(Path(folder).resolve(), []).append(folder)
    twice = [f"{place}, as {' and '.join(map(str, named))}" for place, named in known.items() if len(named) > 1]
    if twice:
        raise ConfigError("a result can't be compared with itself", found="\n         ".join(twice),
                          do="name every folder once")  # fmt: skip


def _judged(
    made: Sequence[Paired], detect: float | None, among: int | None = None
) -> list[tuple[dict[str, Any], Estimate]]:
    """Adjust the p-values, and take each interval at the level that goes with it."""
    p_values = [paired.test.p for paired in made]
    adjusted = holm(p_values) if among is None else bonferroni(p_values, among)
    return [paired.result(at, detect) for paired, at in zip(made, adjusted, strict=True)]


def _frame(pair: _Pair, metric: Metric, comparisons: int, among: int | None, seed: int) -> dict[str, Any]:
    """What comparison.json says before it comes to figures."""
    return {
        "schema": SCHEMA,
        "task": pair.one.result["task"],
        "kind": pair.one.kind,
        "fingerprint": pair.one.result["fingerprint"],
        "a": pair.one.result["variant"],
        "b": pair.other.result["variant"],
        "a_folder": str(pair.one.folder),
        "b_folder": str(pair.other.folder),
        "metric": metric.name,
        "better": metric.better,
        "unit": metric.unit,
        "sign": f"b less a; {'below' if metric.better == 'lower' else 'above'} 0 is better",
        "comparisons": among or comparisons,
        "correction": "bonferroni" if among else "holm" if comparisons > 1 else None,
        "seed": seed,
    }


def _same_order(one: Evaluation, other: Evaluation) -> list[Prediction]:
    """The predictions of `other` in the order of `one`."""
    by_id = {line["id"]: line for line in other.predictions}
    missing = [line["id"] for line in one.predictions if line["id"] not in by_id]
    ids = {line["id"] for line in one.predictions}
    more = [line["id"] for line in other.predictions if line["id"] not in ids]
    if missing or more or len(by_id) != len(other.predictions):
        parts = [f"{len(lost)} items are missing in {folder}: {', '.join(map(repr, lost[:_SHOWN]))}"
                 for lost, folder in ((missing, other.folder), (more, one.folder)) if lost]  # fmt: skip
        raise DataError("the two evaluations don't hold the same items", where=f"{one.folder} and {other.folder}",
                        found="\n         ".join(parts) or "an id stands twice", do="evaluate again")  # fmt: skip
    return [by_id[line["id"]] for line in one.predictions]


def _metric(pair: _Pair, asked: str | None) -> tuple[Metric, list[str]]:
    """The metric that decides, and what to say about it."""
    kind, table = pair.one.kind, table_of(pair.a)
    declared = declared_by_both(pair.one.declared, pair.other.declared)
    known = {metric.name: metric for metric in metrics_for(kind, table, declared)}
    gone = [name for name in pair.one.declared or () if name not in known]
    told = [f"{', '.join(gone)}: not made of items in both results, so not compared"] if gone else []
    if asked is not None and asked not in known:
        raise ConfigError("there is no such metric", where=f"a task of kind '{kind}'", found=repr(asked),
                          do=nearest(asked, known, "metrics"))  # fmt: skip
    chosen = known[asked] if asked else next(iter(known.values()))
    if kind == "loss" and not np.array_equal(table["tokens"], table_of(pair.b)["tokens"]):
        if asked is None:
            return known["bits_per_byte"], [
                *told,
                "the tokenizers differ, so bits per byte are compared, not loss a token",
            ]
        if asked != "bits_per_byte":
            return chosen, [*told, f"the tokenizers differ, so {asked} does not compare; bits_per_byte does"]
    return chosen, told


def _leaks(pair: _Pair) -> list[str]:
    """What gives the items away, and whose data do where it is not both's."""
    known = {side.result["variant"]: side.result.get("leaks", ()) for side in (pair.one, pair.other)}
    if len(known) < 2:
        known = {f"the {which} result": side.result.get("leaks", ())
                 for which, side in (("first", pair.one), ("second", pair.other))}  # fmt: skip
    one, other = known.values()
    both = [leak for leak in one if leak in other]
    return both + [f"{name}: {leak}" for name, leaks in known.items() for leak in leaks if leak not in both]


def _doubts(found: Estimate, paired: Paired, named: str = "the difference") -> list[str]:
    """What to say where there is no interval, or where it can't be taken at its word."""
    metric, (a, b) = paired.metric, paired.counted
    if found.method == "none" and paired.units > 1:
        why = "so it is not defined" if found.value is None else "so it is not defined in many of the resamples"
        return [f"{metric.name} counts {a:,} of {paired.n:,} items of the first result and {b:,} of the second, {why}:"
                " there is neither an interval nor a test"]  # fmt: skip
    if found.method == "no spread":
        return [flat_warning([named])]
    return doubt_warnings(paired.units, {named: found.doubt})


def _add_both_answered(
    frames: list[dict[str, Any]], pairs: Sequence[_Pair], made: Sequence[Paired], detect: float | None
) -> None:
    """Add the comparisons over the items that both answered, where those are others; corrected among themselves."""
    kept = [pair.answered() for pair in pairs]
    fewer = [at for at, (a, _) in enumerate(kept) if len(a) < len(pairs[at].a)]
    for at in fewer:
        frames[at]["both_answered"] = None
    some = [at for at in fewer if kept[at][0]]
    parts = paired_all([(made[at].metric, *kept[at]) for at in some], seed=made[0].seed, together=max(1, len(some)))
    for at, part, (row, found) in zip(some, parts, _judged(parts, detect), strict=True):
        doubts = [*few_units(part.units, {"that difference": found.method}), *_doubts(found, part, "that difference")]
        frames[at]["both_answered"] = row
        frames[at]["warnings"] += [f"of the {part.n} items that both answered: {doubt}" for doubt in doubts]
    for at in fewer:
        frames[at]["warnings"] += _format_alone(frames[at])


def _format_alone(frame: dict[str, Any]) -> list[str]:
    both = frame["both_answered"]
    if both is None:
        return ["no item has an answer from both: whether more than the format differs can't be seen"]
    if frame["verdict"] == "no detectable difference" or both["verdict"] == frame["verdict"]:
        return []
    on = f"on the {both['n']} items that both answered with a number"
    if both["verdict"] == "no detectable difference":
        return [f"{on} there is no detectable difference: that '{frame['verdict']}' is more than a matter of format is"
                " not shown"]  # fmt: skip
    return [f"'{frame['verdict']}' is a matter of format: {on} the verdict is '{both['verdict']}'"]


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
    pair = _Pair.of(read_evaluation(a), read_evaluation(b))
    chosen, _ = _metric(pair, metric)
    items = {x["id"]: (x, y) for x, y in zip(pair.a, pair.b, strict=True)}
    before, after = ({name: float(both[side]["scores"][chosen.item]) for name, both in items.items()}
                     for side in (0, 1))  # fmt: skip

    def told(rows: list[tuple[str, float]]) -> list[Change]:
        return [Change(name, x["prompt"], x["reference"], x["answer"], y["answer"], before[name], after[name], gain)
                for name, gain in rows for x, y in [items[name]]]  # fmt: skip

    improved, worsened = most_changed(before, after, better=chosen.item_better, count=count)
    return told(improved), told(worsened)
