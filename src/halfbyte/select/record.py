"""select.json: everything that a selection found, as plain data. docs/files.md describes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.evaluate.results import write_json
from halfbyte.select.evidence import Evidence, Look, Probe, Variant
from halfbyte.select.ranking import Ranking, metric_for
from halfbyte.select.words import Recommendation

FILE, SCHEMA = "select.json", 1


@dataclass
class Selection:
    """A selection as far as it has come."""

    folder: Path
    look: Look
    seed: int
    limit: int | None
    earlier: dict[str, Any] | None = None  # select.json of an earlier selection here that recommends something
    made: tuple[Path, ...] = ()  # folders that were not there before, the innermost first
    leaks: list[str] = field(default_factory=list)  # how what a probe learns from gives items of the task away
    evidence: list[Evidence] = field(default_factory=list)
    guess: dict[str, Any] | None = None  # result.json of always answering the training median
    base: Ranking | None = None
    probed: Ranking | None = None
    recommendation: Recommendation | None = None

    @property
    def variants(self) -> list[Variant]:
        return [variant for one in self.evidence for variant in one.variants]

    @property
    def exit_code(self) -> int:
        """0 where a variant was scored (or, of names of the catalogue, fits); 3 where none fits; else 1."""
        states = {variant.status for variant in self.variants}
        if "scored" in states or "planned" in states:
            return 0
        return 3 if "does not fit" in states else 1

    @property
    def kept(self) -> bool:
        """Whether what an earlier selection found stands, because this one has no score to set against it."""
        return self.earlier is not None and not any(variant.result for variant in self.variants)

    def write(self, *, finished: bool) -> Path:
        """Write select.json, unless an earlier one stands, and return its path. Raises HalfbyteError when the disk
        refuses."""
        file = self.folder / FILE
        if not self.kept:
            write_json(file, self.to_json(finished=finished))
        return file

    def leave_nothing(self) -> bool:
        """Where every candidate failed, take away the folders that were made for this selection, unless one holds more
        than select.json; whether that was done."""
        failed = all(variant.status == "failed" for variant in self.variants)
        if not failed or self.folder not in self.made or len(list(self.folder.iterdir())) > 1:
            return False
        (self.folder / FILE).unlink()
        for folder in self.made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        return True

    def to_json(self, *, finished: bool) -> dict[str, Any]:
        look, task = self.look, self.look.task_set
        metric, tuning = metric_for(look.kind), look.tuning
        return {
            "schema": SCHEMA,
            "finished": finished,
            "task": task.task.name,
            "kind": look.kind,
            "items": len(task.items),
            "limit": self.limit,
            "seed": self.seed,
            "metric": metric.name,
            "better": metric.better,
            "unit": metric.unit,
            "budget_bytes": look.asked.budget if look.asked.budget is not None else look.device.memory_bytes,
            "device": look.device.to_json(),
            "tuning": {"source": tuning.source, "items": None if tuning.train is None else len(tuning.train),
                       "adapter": asdict(tuning.config.adapter), "tune": asdict(tuning.config.tune)},
            "candidates": [self._candidate(one) for one in self.evidence],
            "leaks": self.leaks,
            "median": None if self.guess is None else self.guess["metrics"].get(metric.name),
            "ranking": _ranking(self.base),
            "probe_ranking": _ranking(self.probed),
            "recommendation": None if self.recommendation is None else asdict(self.recommendation),
            "kept": self.earlier["recommendation"] if self.earlier is not None and self.kept else None,
        }  # fmt: skip

    def _candidate(self, found: Evidence) -> dict[str, Any]:
        error = found.error
        parts = ("what", "where", "found", "do")
        return {
            "model": found.candidate.model,
            "revision": found.candidate.revision,
            "kind": found.candidate.kind,
            "label": found.candidate.label,
            "fingerprint": found.fingerprint or None,
            "parameters": found.parameters,
            "context": found.context,
            "licence": _plain(found.licence),
            "numbers": _plain(found.numbers),
            "training": _plain(found.training),
            "notes": found.notes,
            "error": None if error is None else {part: _text(getattr(error, part)) for part in parts},
            "variants": [self._variant(variant) for variant in found.variants],
        }

    def _variant(self, variant: Variant) -> dict[str, Any]:
        lengths = variant.lengths
        return {
            "name": variant.name,
            "weights": variant.weights,
            "shots": variant.shots,
            "status": variant.status,
            "reason": variant.reason,
            "plan": _plain(variant.planned),
            "tokens": None if lengths is None else asdict(lengths) | {"share_beyond": lengths.share_beyond},
            "evaluation": self._evaluation(variant.folder, variant.result),
            "probe": None if variant.probe is None else self._probe(variant.probe),
        }

    def _probe(self, probe: Probe) -> dict[str, Any]:
        return {"steps": probe.steps, "status": probe.status, "reason": probe.reason,
                "evaluation": self._evaluation(probe.folder, probe.result)}  # fmt: skip

    def _evaluation(self, folder: Path | None, result: dict[str, Any] | None) -> dict[str, Any] | None:
        """Where the result lies, from the selection's folder, and the figures that a table needs."""
        if folder is None or result is None:
            return None
        kept = ("metrics", "items", "unanswered", "seconds", "peak_bytes", "mapped_bytes", "compute", "warnings")
        place = Path(os.path.relpath(folder, self.folder)).as_posix()
        return {"folder": place, **{key: result.get(key) for key in kept}}


def _ranking(found: Ranking | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "order": _names(found.order),
        "tied": _names(found.tied),
        "chosen": found.chosen.name,
        "among": found.among,
        "against_best": [asdict(one) for one in found.against],
    }


def _names(entries: Sequence[Any]) -> list[str]:
    return [entry.name for entry in entries]


def _plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
