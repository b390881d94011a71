"""Who plays which part in the evidence, and what the sections of the page share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.evaluate.details import cut, lot
from halfbyte.report.read import MEDIAN, Evidence, Prediction, Variant
from halfbyte.report.words import item_error, metric_of, primary_metric, sides, unit_of

LONGEST = 400  # characters of a text that are shown
Row = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The evidence, and who plays which part in it."""

    evidence: Evidence
    base: Variant | None
    tuned: Variant | None
    metric: str | None
    unit: str

    @classmethod
    def of(cls, evidence: Evidence) -> Story:
        base, tuned = sides(evidence)
        unit = unit_of(list(evidence.variants.values()))
        return cls(evidence, base, tuned, primary_metric(evidence, base, tuned), unit)

    @property
    def guess(self) -> Variant | None:
        return self.evidence.variants.get(MEDIAN)

    @property
    def ordered(self) -> list[Variant]:
        """Bases, tuned ones, the constant guess."""
        known = {variant.name for variant in (self.tuned, self.guess) if variant}
        others = [variant for name, variant in self.evidence.variants.items() if name not in known]
        return [*others, *([self.tuned] if self.tuned else []), *([self.guess] if self.guess else [])]


def ranked(variant: Variant, metric: str) -> list[tuple[float, Prediction]]:
    """(error, item), smallest error first; equals in the order of their lot."""
    scored = [(error, p) for p in variant.predictions if (error := item_error(variant, p, metric)) is not None]
    return sorted(scored, key=lambda pair: (pair[0], lot(pair[1].id)))


def right_or_wrong(metric: str) -> bool:
    found = metric_of(metric)
    return (
        found is not None
        and (found.share or found.f1)
        and (found.item.startswith("acc") or found.item.partition(",")[0] in ("exact_match", "contains"))
    )


def spoken(variant: Variant) -> bool:
    """Whether the variant gave answers at all: a `loss` task has none."""
    return any(p.answer or p.parsed is not None for p in variant.predictions)


def shown(item: Prediction, longest: int) -> str:
    """The answer, or what was read from it where the model gave no text of its own (a choice by likelihood)."""
    return cut(item.answer if item.answer or item.parsed is None else str(item.parsed), longest)


def counted(found: Mapping[str, Any]) -> str:
    known = [f"{found[key]:,} {key}" for key in ("wins", "losses", "ties") if isinstance(found.get(key), int)]
    return ", ".join(known)


def verdict_kind(found: Mapping[str, Any]) -> str:
    return {"better": "better", "worse": "worse"}.get(str(found.get("verdict")), "same")
