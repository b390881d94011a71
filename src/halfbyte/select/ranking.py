"""Who is best, and who can't be told from the best: scores in order, and paired comparisons by item.

The best by score is compared with each of the others. It was found by the same items, which flatters it: with twelve
equal candidates, correcting for eleven comparisons would call one of them worse 16 times in 100. So the p-values are
corrected for all pairs of candidates (Bonferroni), whichever of them turned out to be best. Probes are of the best out
of the box on these items, so theirs are corrected for all pairs of those that were scored there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.evaluate.compare import compare_several
from halfbyte.evaluate.metrics import Metric
from halfbyte.evaluate.metrics import metric_for as metric_for
from halfbyte.evaluate.results import measured, read_evaluation, table_of, units_of
from halfbyte.evaluate.statistics import LEVEL, Estimate

NEAR = 1.05  # times the least memory: as good as equal
_NO_DIFFERENCE = "no detectable difference"


@dataclass(frozen=True)
class Entry:
    """A scored variant (or its probe): the evaluation's folder and what result.json holds."""

    name: str
    folder: Path
    result: dict[str, Any]
    memory: int | None  # bytes to tune it, mapped weights included


@dataclass(frozen=True)
class Against:
    """Another one against the best: `verdict` says what the other is ("worse" or "no detectable difference")."""

    other: str
    difference: dict[str, Any]  # as in comparison.json: the other less the best
    verdict: str
    detectable: float | None  # the smallest difference that the items detect

    @property
    def p_adjusted(self) -> float:
        return float(self.difference["p_adjusted"])


@dataclass(frozen=True)
class Ranking:
    """`order` is best first; `tied` are the best and those that can't be told from it; `chosen` is one of these.

    `corrected` is its score with an interval that allows for the choice: at a level of 1 less 5 % over the number of
    those that it was chosen from, so that all their intervals hold together (Bonferroni). `among` is that number: all
    that were scored on the same items, also those that were then not probed.
    """

    metric: Metric
    order: tuple[Entry, ...]
    against: tuple[Against, ...]
    tied: tuple[Entry, ...]
    chosen: Entry
    corrected: Estimate
    among: int

    @property
    def best(self) -> Entry:
        return self.order[0]


def value_of(result: dict[str, Any], metric: Metric) -> float | None:
    found = result["metrics"].get(metric.name, {}).get("value")
    return None if found is None else float(found)


def rank(entries: Sequence[Entry], kind: str, *, seed: int, among: int = 0) -> Ranking | None:
    """The ranking of all entries that have a score; None where none has. `among`: the entries are the best of so many
    that were scored on the same items, and everything is corrected for all of these and their pairs."""
    metric = metric_for(kind)
    scored = [entry for entry in entries if value_of(entry.result, metric) is not None]
    if not scored:
        return None
    order = sorted(scored, key=lambda entry: (_loss(entry, metric), entry.memory or 2**63, entry.name))
    among = max(among, len(order))
    against = _compared(order, metric, seed, among)
    same = {one.other for one in against if one.verdict == _NO_DIFFERENCE}
    tied = [order[0], *(entry for entry in order[1:] if entry.name in same)]
    chosen = _choose(tied)
    lines = read_evaluation(chosen.folder).predictions
    corrected = measured(metric, table_of(lines), units_of(lines), seed, level=1 - (1 - LEVEL) / among)
    return Ranking(metric, tuple(order), tuple(against), tuple(tied), chosen, corrected, among)


def _loss(entry: Entry, metric: Metric) -> float:
    value = value_of(entry.result, metric)
    assert value is not None
    return value if metric.better == "lower" else -value


def _compared(order: Sequence[Entry], metric: Metric, seed: int, among: int) -> list[Against]:
    others = order[1:]
    if not others:
        return []
    folders = [entry.folder for entry in order]
    made = compare_several(folders, metric=metric.name, seed=seed, across=("shots",),
                           among=among * (among - 1) // 2)  # fmt: skip
    return [Against(other.name, one["difference"], one["verdict"], one["detectable"]["value"])
            for other, one in zip(others, made, strict=True)]  # fmt: skip


def _choose(tied: Sequence[Entry]) -> Entry:
    """The best score among those that take the least memory, or hardly more; `tied` is best first."""
    known = [entry.memory for entry in tied if entry.memory is not None]
    if not known:
        return tied[0]
    return next(entry for entry in tied if entry.memory is not None and entry.memory <= NEAR * min(known))
