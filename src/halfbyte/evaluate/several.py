"""Several comparisons at once: the more are made, the likelier one of them looks real by chance.

Holm's correction (1979, Scandinavian Journal of Statistics 6:65-70) keeps the chance of even one false alarm at 5 %,
whatever the comparisons have to do with each other, and is never weaker than Bonferroni's. The smallest of m p-values
must pass 5 % / m, the next one 5 % / (m - 1), and so on; the first one that fails ends it for all that follow.

An interval is shown at the level of the step that decided its comparison, so that it leaves 0 out where that step's
test says so. Together the intervals of what was found are no joint 95 % region: Holm's steps have none that tells much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.evaluate.statistics import LEVEL, below


@dataclass(frozen=True)
class Adjusted:
    """`p` is to be compared with 1 - LEVEL, as ever; `level` is that of the interval. `detected` is what came of the
    first and holds for the second: it is decided once, lest rounding decide twice. A comparison without a p (None)
    counts among the others as one with p = 1, and keeps none."""

    p: float | None
    level: float
    detected: bool


def holm(p_values: Sequence[float | None], *, level: float = LEVEL) -> list[Adjusted]:
    """The adjusted p and the interval's level of each comparison, in the order that they were given in."""
    known = [1.0 if p is None else p for p in p_values]
    order = sorted(range(len(known)), key=lambda at: known[at])
    adjusted: dict[int, Adjusted] = {}
    p, steps, ended = 0.0, len(order), False
    for rank, at in enumerate(order):
        left = len(order) - rank
        p = max(p, min(1.0, left * known[at]))
        steps = steps if ended else left
        ended = ended or not below(p, level)
        adjusted[at] = Adjusted(None if p_values[at] is None else p, 1 - (1 - level) / steps, not ended)
    return [adjusted[at] for at in range(len(p_values))]


def bonferroni(p_values: Sequence[float | None], among: int, *, level: float = LEVEL) -> list[Adjusted]:
    """As `holm`, for comparisons that the data themselves picked: the best of some results against the others, say,
    where each of their `among` pairs might have been asked for."""
    steps = [(None if p is None else min(1.0, among * p), 1 - (1 - level) / among) for p in p_values]
    return [Adjusted(p, step, below(p, level)) for p, step in steps]


def names(comparisons: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What each folder is called: its variant, or, where two have the same one, as much of its path as differs."""
    variants = {row[f"{side}_folder"]: row[side] for row in comparisons for side in "ab"}
    taken = list(variants.values())
    alike = [Path(folder) for folder, name in variants.items() if taken.count(name) > 1]
    first = next((at for at, parts in enumerate(zip(*(path.parts for path in alike))) if len({*parts}) > 1), 0)  # noqa: B905
    return {folder: str(Path(*Path(folder).parts[first:])) if Path(folder) in alike else name
            for folder, name in variants.items()}  # fmt: skip
